"""Songs, litanies and poems that repeat themselves and are right to: all of them in the public domain.

`songs()` gives the ones without a number, `counting_songs()` those that count, as a singer would write them out.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


@dataclass(frozen=True)
class Song:
    """A text and its name."""

    name: str
    text: str


def _bottles(first: int, what: str, where: str) -> str:
    def number(n: int) -> str:
        return _WORDS[n] if n < len(_WORDS) else str(n)

    verses = []
    for n in range(first, 0, -1):
        line = f"{number(n).capitalize()} {what}{'s' if n > 1 else ''} {where},"
        rest = f"{what}{'s' if n != 2 else ''} {where}."
        verses.append(
            f"{line}\n{line}\nAnd if one {what} should accidentally fall,\nThere'll be {number(n - 1)} {rest}"
        )
    return "\n\n".join(verses)


def _beer(first: int, last: int) -> str:
    verses = []
    for n in range(first, last, -1):
        more = f"{n - 1} bottle{'s' if n != 2 else ''}" if n > 1 else "no more bottles"
        now = f"{n} bottle{'s' if n > 1 else ''} of beer"
        verses.append(f"{now} on the wall, {now}.\nTake one down and pass it around, {more} of beer on the wall.")
    return "\n\n".join(verses)


def _mow(last: int) -> str:
    verses = []
    for n in range(1, last + 1):
        who = f"{_WORDS[n].capitalize()} m{'a' if n == 1 else 'e'}n went to mow,"
        chain = ", ".join([*(f"{_WORDS[k]} men" for k in range(n, 1, -1)), "one man and his dog"]).capitalize()
        verses.append(f"{who}\nWent to mow a meadow,\n{chain},\nWent to mow a meadow.")
    return "\n\n".join(verses)


def _old_man() -> str:
    rhymes = ("thumb", "shoe", "knee", "door", "hive", "sticks", "up in heaven", "gate", "spine", "once again")
    return "\n\n".join(
        f"This old man, he played {_WORDS[n]},\nHe played knick-knack on my {rhyme};\n"
        "With a knick-knack paddywhack,\nGive the dog a bone,\nThis old man came rolling home."
        for n, rhyme in enumerate(rhymes, 1)
    )


def _in_the_bed() -> str:
    verses = [
        f'There were {_WORDS[n]} in the bed\nAnd the little one said,\n"Roll over! Roll over!"\n'
        "So they all rolled over and one fell out."
        for n in range(10, 1, -1)
    ]
    return "\n\n".join([*verses, 'There was one in the bed\nAnd the little one said,\n"Good night!"'])


def _twelve_days() -> str:
    gifts = (
        "a partridge in a pear tree", "two turtle doves", "three French hens", "four calling birds", "five gold rings",
        "six geese a-laying", "seven swans a-swimming", "eight maids a-milking", "nine ladies dancing",
        "ten lords a-leaping", "eleven pipers piping", "twelve drummers drumming",
    )  # fmt: skip
    days = (
        "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
        "twelfth",
    )  # fmt: skip
    verses = []
    for n, day in enumerate(days):
        given = [*gifts[n:0:-1], ("and " if n else "") + gifts[0]]
        verses.append(f"On the {day} day of Christmas my true love sent to me\n" + ",\n".join(given) + ".")
    return "\n\n".join(verses)


def _rushes() -> str:
    lines = (
        "One is one and all alone and evermore shall be so.", "Two, two, the lily-white boys, clothed all in green, O,",
        "Three, three, the rivals,", "Four for the Gospel makers,", "Five for the symbols at your door,",
        "Six for the six proud walkers,", "Seven for the seven stars in the sky,", "Eight for the April rainers,",
        "Nine for the nine bright shiners,", "Ten for the ten commandments,",
        "Eleven for the eleven who went to heaven,", "Twelve for the twelve Apostles,",
    )  # fmt: skip
    return "\n\n".join(
        f"I'll sing you {_WORDS[n]}, O,\nGreen grow the rushes, O.\nWhat is your {_WORDS[n]}, O?\n"
        + "\n".join(lines[n - 1 :: -1])
        for n in range(1, 13)
    )


def _farm() -> str:
    beasts = (
        ("cow", "moo"), ("pig", "oink"), ("duck", "quack"), ("horse", "neigh"), ("sheep", "baa"), ("hen", "cluck"),
        ("dog", "woof"), ("cat", "meow"), ("donkey", "hee-haw"), ("goose", "honk"),
    )  # fmt: skip
    return "\n\n".join(
        f"Old MacDonald had a farm, E-I-E-I-O,\nAnd on that farm he had a {beast}, E-I-E-I-O,\n"
        f"With a {cry}-{cry} here and a {cry}-{cry} there,\nHere a {cry}, there a {cry}, everywhere a {cry}-{cry},\n"
        "Old MacDonald had a farm, E-I-E-I-O."
        for beast, cry in beasts
    )


def _verses(lines: Sequence[str], form: str) -> str:
    """Put each line into the form of a verse."""
    return "\n\n".join(form.replace("X", line) for line in lines)


def _jack() -> str:
    parts = (
        "the house that Jack built", "the malt that lay in", "the rat that ate", "the cat that killed",
        "the dog that worried", "the cow with the crumpled horn that tossed", "the maiden all forlorn that milked",
        "the man all tattered and torn that kissed", "the priest all shaven and shorn that married",
        "the cock that crowed in the morn that waked", "the farmer sowing his corn that kept",
    )  # fmt: skip
    return "\n\n".join("This is " + "\n".join(parts[n::-1]) + "." for n in range(len(parts)))


def counting_songs() -> list[Song]:
    """Give the songs that count."""
    return [
        *(Song("Ten green bottles", _bottles(n, "green bottle", "hanging on the wall")) for n in (10, 12, 20, 30)),
        *(Song("Ninety-nine bottles of beer", _beer(99, n)) for n in (0, 50, 80)),
        *(Song("Thirty bottles of beer", _beer(30, n)) for n in (0, 10)),
        *(Song("One man went to mow", _mow(n)) for n in (8, 10, 12)),
        Song("This old man", _old_man()),
        Song("Ten in the bed", _in_the_bed()),
        Song("The twelve days of Christmas", _twelve_days()),
        Song("Green grow the rushes, O", _rushes()),
    ]


def songs() -> list[Song]:
    """Give the songs with refrains, the litanies and the poems."""
    built: dict[str, Callable[[], str]] = {"Old MacDonald": _farm, "The house that Jack built": _jack}
    return [
        *(Song(name, make()) for name, make in built.items()),
        *(Song(name, _verses(lines, form)) for name, form, lines in _FORMS),
        *(Song(name, text) for name, text in _WRITTEN),
    ]


_FORMS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "She'll be coming round the mountain",
        "She'll be X,\nShe'll be X,\nShe'll be X, she'll be X,\nShe'll be X.",
        ("coming round the mountain when she comes", "driving six white horses when she comes",
         "wearing silk pyjamas when she comes", "singing hallelujah when she comes"),
    ),
    (
        "What shall we do with the drunken sailor",
        "X,\nX,\nX\nEarly in the morning.\nHooray and up she rises,\nHooray and up she rises,\nHooray and up she "
        "rises\nEarly in the morning.",
        ("What shall we do with the drunken sailor", "Put him in the longboat till he's sober",
         "Pull out the plug and wet him all over", "Put him in the scuppers with a hose-pipe on him",
         "Heave him by the leg in a running bowline", "That's what we do with a drunken sailor"),
    ),
    (
        "Here we go round the mulberry bush",
        "This is the way we X,\nX, X,\nThis is the way we X\nOn a cold and frosty morning.",
        ("wash our hands", "wash our clothes", "dry our clothes", "sweep the floor", "brush our hair", "go to school"),
    ),
    (
        "London Bridge is falling down",
        "X,\nX, X.\nX,\nMy fair lady.",
        ("London Bridge is falling down", "Build it up with wood and clay", "Wood and clay will wash away",
         "Build it up with iron and steel", "Iron and steel will bend and bow", "Set a man to watch all night"),
    ),
    (
        "Skip to my Lou",
        "X,\nX,\nX,\nSkip to my Lou, my darling.\nSkip, skip, skip to my Lou,\nSkip, skip, skip to my Lou,\nSkip, skip,"
        " skip to my Lou,\nSkip to my Lou, my darling.",
        ("Lost my partner, what'll I do", "I'll find another one, prettier than you",
         "Fly's in the buttermilk, shoo, fly, shoo", "There's a little red wagon, paint it blue"),
    ),
    (
        "Litany",
        "X,\nHave mercy on us.",
        ("Lord, have mercy", "Christ, have mercy", "God the Father of heaven", "God the Son, Redeemer of the world",
         "God the Holy Ghost", "Holy Trinity, one God"),
    ),
    (
        "Litany of the Saints",
        "Saint X,\nPray for us.",
        ("Michael", "Gabriel", "Raphael", "John the Baptist", "Joseph", "Peter", "Paul", "Andrew", "James", "John",
         "Thomas", "Philip", "Bartholomew", "Matthew", "Simon", "Thaddeus", "Matthias", "Barnabas", "Luke", "Mark",
         "Stephen", "Laurence", "Vincent", "Sylvester", "Gregory", "Ambrose", "Augustine", "Jerome", "Martin",
         "Nicholas", "Benedict", "Bernard", "Dominic", "Francis", "Agatha", "Lucy", "Agnes", "Cecilia", "Catherine"),
    ),
    (
        "Psalm 136",
        "X: for his mercy endureth for ever.",
        ("O give thanks unto the LORD; for he is good", "O give thanks unto the God of gods",
         "O give thanks to the Lord of lords", "To him who alone doeth great wonders",
         "To him that by wisdom made the heavens", "To him that stretched out the earth above the waters",
         "To him that made great lights", "The sun to rule by day", "The moon and stars to rule by night",
         "To him that smote Egypt in their firstborn", "And brought out Israel from among them",
         "With a strong hand, and with a stretched out arm", "To him which divided the Red sea into parts",
         "And made Israel to pass through the midst of it", "But overthrew Pharaoh and his host in the Red sea",
         "To him which led his people through the wilderness", "To him which smote great kings",
         "And slew famous kings", "Sihon king of the Amorites", "And Og the king of Bashan",
         "And gave their land for an heritage", "Even an heritage unto Israel his servant",
         "Who remembered us in our low estate", "And hath redeemed us from our enemies",
         "Who giveth food to all flesh", "O give thanks unto the God of heaven"),
    ),
    (
        "The Beatitudes",
        "Blessed are X.",
        ("the poor in spirit: for theirs is the kingdom of heaven", "they that mourn: for they shall be comforted",
         "the meek: for they shall inherit the earth", "the merciful: for they shall obtain mercy",
         "the pure in heart: for they shall see God", "the peacemakers: for they shall be called the children of God"),
    ),
    (
        "Hush, little baby",
        "And if that X,\nMama's going to buy you another one.",
        ("mocking bird won't sing", "diamond ring turns brass", "looking glass gets broke", "billy goat won't pull",
         "cart and bull turn over", "dog named Rover won't bark", "horse and cart fall down"),
    ),
    (
        "The rosary, a part",
        "X\n" + "Hail Mary, full of grace, the Lord is with thee; blessed art thou among women, and blessed is the "
        "fruit of thy womb, Jesus. Holy Mary, Mother of God, pray for us sinners, now and at the hour of our death. "
        "Amen.\n" * 3,
        ("For an increase of faith.", "For an increase of hope."),
    ),
)  # fmt: skip

_BEGAT = re.findall(
    r"\w+",
    "Abraham Isaac Jacob Judas Phares Esrom Aram Aminadab Naasson Salmon Booz Obed Jesse David Solomon Roboam Abia Asa "
    "Josaphat Joram Ozias Joatham Achaz Ezekias Manasses Amon Josias Jechonias Salathiel Zorobabel Abiud Eliakim Azor "
    "Sadoc Achim Eliud Eleazar Matthan Jacob Joseph",
)

_WRITTEN: tuple[tuple[str, str], ...] = (
    ("The book of the generation", "\n".join(f"And {a} begat {b};" for a, b in itertools.pairwise(_BEGAT))),
    (
        "Frère Jacques",
        "Frère Jacques, Frère Jacques,\nDormez-vous? Dormez-vous?\nSonnez les matines! Sonnez les matines!\n"
        "Ding, dang, dong. Ding, dang, dong.\n\n"
        "Are you sleeping, are you sleeping,\nBrother John, Brother John?\nMorning bells are ringing, morning bells "
        "are ringing.\nDing, dang, dong. Ding, dang, dong.",
    ),
    ("A round, sung three times", "Row, row, row your boat\nGently down the stream,\nMerrily, merrily, merrily, "
     "merrily,\nLife is but a dream.\n\n" * 3),
    (
        "Jingle Bells",
        "Dashing through the snow\nIn a one-horse open sleigh,\nO'er the fields we go,\nLaughing all the way;\n\n"
        "Jingle bells, jingle bells,\nJingle all the way;\nOh, what joy it is to ride\nIn a one-horse open sleigh.\n\n"
        "A day or two ago\nI thought I'd take a ride,\nAnd soon Miss Fannie Bright\nWas seated by my side;\n\n"
        "Jingle bells, jingle bells,\nJingle all the way;\nOh, what joy it is to ride\nIn a one-horse open sleigh.",
    ),
    (
        "My Bonnie",
        "My Bonnie lies over the ocean,\nMy Bonnie lies over the sea,\nMy Bonnie lies over the ocean,\nO bring back my "
        "Bonnie to me.\n\nBring back, bring back,\nO bring back my Bonnie to me, to me,\nBring back, bring back,\nO "
        "bring back my Bonnie to me.\n\nO blow, ye winds, over the ocean,\nO blow, ye winds, over the sea,\nO blow, ye "
        "winds, over the ocean,\nAnd bring back my Bonnie to me.",
    ),
    (
        "Edgar Allan Poe, The Bells",
        "Hear the sledges with the bells,\nSilver bells!\nWhat a world of merriment their melody foretells!\nHow they "
        "tinkle, tinkle, tinkle,\nIn the icy air of night!\nWhile the stars that oversprinkle\nAll the heavens, seem "
        "to twinkle\nWith a crystalline delight;\nKeeping time, time, time,\nIn a sort of Runic rhyme,\nTo the "
        "tintinnabulation that so musically wells\nFrom the bells, bells, bells, bells,\nBells, bells, bells,\nFrom "
        "the jingling and the tinkling of the bells.",
    ),
    (
        "Rudyard Kipling, Boots",
        "We're foot, slog, slog, slog, sloggin' over Africa,\nFoot, foot, foot, foot, sloggin' over Africa,\n(Boots, "
        "boots, boots, boots, movin' up and down again!)\nThere's no discharge in the war!\n\nSeven, six, eleven, five,"
        " nine-an'-twenty mile to-day,\nFour, eleven, seventeen, thirty-two the day before,\n(Boots, boots, boots, "
        "boots, movin' up and down again!)\nThere's no discharge in the war!\n\nDon't, don't, don't, don't, look at "
        "what's in front of you.\n(Boots, boots, boots, boots, movin' up an' down again);\nMen, men, men, men, men go "
        "mad with watchin' 'em,\nAn' there's no discharge in the war!",
    ),
    (
        "William Blake, The Lamb",
        "Little Lamb, who made thee?\nDost thou know who made thee?\nGave thee life, and bid thee feed,\nBy the stream "
        "and o'er the mead;\nGave thee clothing of delight,\nSoftest clothing, woolly, bright;\nGave thee such a "
        "tender voice,\nMaking all the vales rejoice?\nLittle Lamb, who made thee?\nDost thou know who made thee?\n\n"
        "Little Lamb, I'll tell thee,\nLittle Lamb, I'll tell thee:\nHe is called by thy name,\nFor He calls Himself a "
        "Lamb.\nHe is meek, and He is mild,\nHe became a little child.\nI a child, and thou a lamb,\nWe are called by "
        "His name.\nLittle Lamb, God bless thee!\nLittle Lamb, God bless thee!",
    ),
    (
        "Christina Rossetti, Who has seen the wind",
        "Who has seen the wind?\nNeither I nor you:\nBut when the leaves hang trembling,\nThe wind is passing "
        "through.\n\nWho has seen the wind?\nNeither you nor I:\nBut when the trees bow down their heads,\nThe wind is "
        "passing by.",
    ),
    (
        "Ecclesiastes 3",
        "To every thing there is a season, and a time to every purpose under the heaven: A time to be born, and a time "
        "to die; a time to plant, and a time to pluck up that which is planted; A time to kill, and a time to heal; a "
        "time to break down, and a time to build up; A time to weep, and a time to laugh; a time to mourn, and a time "
        "to dance; A time to cast away stones, and a time to gather stones together; a time to embrace, and a time to "
        "refrain from embracing; A time to get, and a time to lose; a time to keep, and a time to cast away; A time to "
        "rend, and a time to sew; a time to keep silence, and a time to speak; A time to love, and a time to hate; a "
        "time of war, and a time of peace.",
    ),
)  # fmt: skip
