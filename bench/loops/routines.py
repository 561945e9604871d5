"""Texts whose lines come again because life does: rows of a knitting pattern, sets of a training, rounds of breath.

Written after the finder and for `bench.loops.unseen` alone: nothing was tuned on them. Each kind is a function of a
source of chance, and gives what was asked and the answer. Every name and number is invented.
"""

import random
from collections.abc import Callable, Iterator

_NAMES = ("Arnaud", "Bianchi", "Cernik", "Dubois", "Eklund", "Farkas", "Greco", "Hansen", "Ilves", "Jansen", "Kruger",
          "Laine", "Mancini", "Nilsen", "Olsen", "Petit", "Quist", "Riva", "Sato", "Toth")  # fmt: skip
Asked = tuple[str, str]


def knitting(rng: random.Random) -> Asked:
    """Rows, two or four of which make the pattern."""
    even = rng.choice(("Purl across.", "Purl all stitches.", "K2, purl to last 2 sts, k2."))
    odd = rng.sample(
        ("Knit across.", "K2, *yo, k2tog; rep from * to end.", "*K1, p1; rep from * to end.", "K3, p3."), 2
    )
    rows = [even if n % 2 == 0 else odd[n // 2 % len(odd)] for n in range(1, rng.choice((8, 12, 16, 24, 32)) + 1)]
    body = "\n".join(f"Row {n}{' (WS)' if n % 2 == 0 else ' (RS)'}: {row}" for n, row in enumerate(rows, 1))
    return "Write the rows of a knitted scarf.", f"Cast on {rng.randrange(24, 60, 2)} stitches.\n{body}\nBind off."


def training(rng: random.Random) -> Asked:
    """Sets with the same rest between them."""
    moves = rng.sample(("push-ups", "squats", "lunges", "sit-ups", "burpees", "jumping jacks", "rows", "planks"), 3)
    rest = rng.choice((30, 45, 60, 90))
    lines = []
    for number in range(1, rng.randrange(4, 7)):
        lines.append(f"Set {number}")
        for move in moves:
            lines += [f"- Do {rng.choice((10, 12, 12, 15))} {move}.", f"- Rest for {rest} seconds."]
    return f"Give me a circuit of {', '.join(moves)}.", "\n".join(lines)


def week(rng: random.Random) -> Asked:
    """A plan of days, many of them the same."""
    days = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    usual = rng.choice(("Oatmeal with berries", "Two eggs and toast", "Yogurt with honey"))
    lines = []
    for number in range(1, rng.randrange(2, 5)):
        lines.append(f"Week {number}")
        for day in days:
            dinner = rng.choice(("rice and beans", "lentil soup", "baked fish with potatoes", "a salad with chicken"))
            lines.append(f"{day}: Breakfast: {usual}. Lunch: A sandwich and an apple. Dinner: {dinner.capitalize()}.")
    return "Make a meal plan for some weeks.", "\n".join(lines)


def doses(rng: random.Random) -> Asked:
    """When to take what, day by day."""
    drugs = rng.sample(
        ("metformin 500 mg", "ramipril 5 mg", "paracetamol 1 g", "vitamin D 800 IU"), rng.randrange(1, 4)
    )
    lines = [f"Day {day}, {time}: take {drug} with a glass of water." for day in range(1, rng.randrange(5, 12))
             for time in ("08:00", "20:00") for drug in drugs]  # fmt: skip
    return "Write out the times at which to take the tablets.", "\n".join(lines)


def survey(rng: random.Random) -> Asked:
    """Statements with the same answers below each."""
    scale = rng.choice(("Strongly disagree / Disagree / Neither / Agree / Strongly agree", "( ) Yes ( ) No ( ) Unsure",
                        "1  2  3  4  5", "Never, Rarely, Sometimes, Often, Always"))  # fmt: skip
    about = ("The staff", "The waiting time", "The food", "My room", "The information", "The car park", "The web site",
             "The treatment", "The doctor", "The night shift", "The pharmacy", "The reception")  # fmt: skip
    end = rng.choice(("met my expectations.", "was as I had hoped.", "could be better."))
    return "Write a questionnaire for patients.", "\n\n".join(
        f"{n}. {what} {end}\n   {scale}" for n, what in enumerate(rng.sample(about, len(about)), 1)
    )


def breath(rng: random.Random) -> Asked:
    """An exercise that is spoken round by round."""
    count, rounds = rng.choice(("four", "five", "six")), rng.randrange(5, 11)
    one = f"Breathe in for {count} counts. Hold for {count} counts. Breathe out for {count} counts."
    form = rng.randrange(3)
    body = "\n".join(one if form == 0 else f"Round {n}: {one}" for n in range(1, rounds + 1))
    begin = "Sit upright and close your eyes.\n" if form else "Find a quiet place.\n\n"
    return f"Lead me through {rounds} rounds of box breathing.", f"{begin}{body}\nOpen your eyes."


def chat(rng: random.Random) -> Asked:
    """Talks of a help desk, which open and close in the same words."""
    topics = rng.sample(("my invoice", "a broken lamp", "the Wi-Fi", "my badge", "a lost key", "the printer", "parking",
                         "my password", "the projector", "a meeting room"), rng.randrange(6, 10))  # fmt: skip
    return "Make up talks for the training of a help desk.", "\n\n".join(
        f"Customer: Hello, I have a question about {topic}.\nAgent: Thank you for calling. How can I help you?\n"
        f"Customer: It is about {topic}, since {rng.choice(('today', 'Monday', 'last week'))}.\n"
        f"Agent: I have opened ticket {rng.randrange(10**4, 10**5)}. Is there anything else I can help you with?\n"
        "Customer: No, thank you.\nAgent: Have a nice day."
        for topic in topics
    )


def minutes(rng: random.Random) -> Asked:
    """A vote by roll call, or who was there."""
    answer = rng.choice(("Yes", "Aye", "present", "here", "no report"))
    form = rng.choice(("{}: {}.", "- {}: {}", "{} ... {}", "The clerk called {}. The answer was: {}."))
    names = rng.sample(_NAMES, rng.randrange(14, 20))
    other = ("No", "excused", "abstained")
    return "Set down the roll call.", "\n".join(
        form.format(name, rng.choice(other) if rng.random() < 0.1 else answer) for name in names
    )


def contract(rng: random.Random) -> Asked:
    """Clauses that begin, or end, alike."""
    goods = rng.sample(("pumps", "valves", "cables", "meters", "lamps", "filters", "tools", "batteries", "pipes"), 8)
    tail = rng.choice(("at its own cost and without delay", "in accordance with clause 4", "to the site of the Buyer"))
    end = rng.choice(("", " The Buyer shall confirm receipt in writing.", " This does not limit clause 9."))
    return "Draft the clauses on delivery.", "\n".join(
        f"3.{n} The Supplier shall deliver the {what} {tail}.{end}" for n, what in enumerate(goods, 1)
    )


def chords(rng: random.Random) -> Asked:
    """A song's chords, the same line after line."""
    line = rng.choice(("C  G  Am  F", "Em  C  G  D", "| A | A | D | A |", "Dm7 G7 Cmaj7 Cmaj7"))
    parts = ("Intro", "Verse 1", "Chorus", "Verse 2", "Chorus", "Bridge", "Verse 3", "Chorus", "Outro")
    return "Write the chords of a simple song.", "\n\n".join(
        f"[{part}]\n" + "\n".join([line] * rng.choice((2, 4))) for part in parts
    )


def subtitles(rng: random.Random) -> Asked:
    """Numbered cues with times, many of them music or breath."""
    said = ("[music]", "[music]", "[applause]", "Yes.", "No, not yet.", "Where is she?", "[door closes]", "Come in.")
    second, cues = 5, []
    for n in range(1, rng.randrange(25, 50)):
        step = rng.randrange(2, 6)
        cues.append(f"{n}\n00:{second // 60:02d}:{second % 60:02d},000 --> 00:{(second + step) // 60:02d}:"
                    f"{(second + step) % 60:02d},500\n{rng.choice(said)}")  # fmt: skip
        second += step + 1
    return "Give me the subtitles.", "\n\n".join(cues)


def pings(rng: random.Random) -> Asked:
    """What network tools print, answer by answer."""
    host = f"192.0.2.{rng.randrange(1, 250)}"
    lines = [f"64 bytes from {host}: icmp_seq={n} ttl=57 time={rng.choice((0.4, 11.2, 11.3, 12.0))} ms"
             for n in range(1, rng.randrange(20, 60))]  # fmt: skip
    if rng.random() < 0.5:
        lines = [f"Reply from {host}: bytes=32 time<1ms TTL=64"] * rng.choice((4, 10, 25))
    return f"What does ping {host} print?", "\n".join(lines)


def bumps(rng: random.Random) -> Asked:
    """A history of changes by a robot."""
    packages = ("lodash", "serde", "jackson-core", "actions/checkout", "boto", "eslint", "log4j", "tokio", "vite")
    form = rng.choice(("{:07x} Bump {} from 1.{}.0 to 1.{}.1", "* [`{:07x}`] - chore(deps): bump {} from {} to {}"))
    return "Show the log of the last months.", "\n".join(
        form.format(rng.getrandbits(28), rng.choice(packages[: rng.choice((1, 9))]), n % 7, n % 7 + 1)
        for n in range(rng.randrange(20, 45))
    )


def greetings(rng: random.Random) -> Asked:
    """Cards, signs and vows: a sentence that is said to each."""
    wish = rng.choice(("Thank you for your help this year. We wish you happy holidays.", "Welcome to the team!",
                       "Congratulations on your degree. We are proud of you."))  # fmt: skip
    names = rng.sample(_NAMES, rng.randrange(8, 15))
    return "Write a short card to each of them.", "\n\n".join(f"Dear {name},\n{wish}\nThe office" for name in names)


KINDS: dict[str, Callable[[random.Random], Asked]] = {
    "knitting": knitting, "training": training, "meal plan": week, "doses": doses, "survey": survey,
    "breathing": breath, "help desk talks": chat, "roll call": minutes, "contract": contract, "chords": chords,
    "subtitles": subtitles, "ping": pings, "commit log": bumps, "cards": greetings,
}  # fmt: skip


def routines(kind: str, count: int) -> Iterator[Asked]:
    """Make `count` requests and answers of a kind."""
    for n in range(count):
        yield KINDS[kind](random.Random(f"{kind} {n}"))  # noqa: S311  varies documents, hides nothing
