"""Grammars allow exactly what they should, go back exactly, always end, and refuse in words what they cannot do."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.decoding import grammar as grammars
from appliance.decoding.conformity import conforms
from appliance.decoding.grammar import Constraint, Grammar, GrammarState, Vocabulary, compile_grammar, json_rule
from appliance.decoding.json_bounds import DEFAULT_BOUNDS, Bounds
from appliance.decoding.sampling import Logits
from appliance.errors import InternalError, InvalidRequest
from appliance.models.tokenizer import Tokenizer
from tests.fakes.built_models import smollm2

# One token a byte, longer ones as tokenizers have them, control tokens, padding.
LONGER = ['{"', '":', '": ', '", "', ", ", '"}', "]}", '""', "name", "true", "false", "null", "12", "000", "  ", "\\n"]
LONGER += ["[[", "[", "ab", "hello", "é", "日", "-1", "1e9", '\\"', "END", "{}", "[]", "\n", '"a"']
TEXTS = list(dict.fromkeys([*(bytes([b]) for b in range(256)), *(text.encode() for text in LONGER)]))
IDS, LONGEST = {data: token for token, data in enumerate(TEXTS)}, max(map(len, TEXTS))
CONTROL = {"<call>": len(TEXTS), "</call>": len(TEXTS) + 1, "<end>": len(TEXTS) + 2, "<turn>": len(TEXTS) + 3}
STOP = (CONTROL["<end>"], CONTROL["<turn>"])


def longest(text: str) -> list[int]:
    """Tokenize by the longest token of TEXTS each time."""
    data, found, at = text.encode(), [], 0
    while at < len(data):
        size = next(n for n in range(LONGEST, 0, -1) if data[at : at + n] in IDS)
        found.append(IDS[data[at : at + size]])
        at += size
    return found


TINY = Vocabulary([*TEXTS, *[b""] * (len(CONTROL) + 3)], CONTROL, STOP, longest)
SMALL = Bounds(string=40, items=6, depth=5, digits=8, total=400)

OBJECT = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "n": {"type": "integer"}, "tags": {"type": "array", "items": {}}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"type": "string"}, "c": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["v", "c"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def schema_grammar(schema: object, vocabulary: Vocabulary = TINY, bounds: Bounds = DEFAULT_BOUNDS) -> Grammar:
    return compile_grammar(Constraint("json_schema", json.dumps(schema)), vocabulary, bounds)


def chance(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def noise(rng: np.random.Generator, vocabulary: Vocabulary = TINY) -> Logits:
    return rng.standard_normal(len(vocabulary)).astype(np.float32)


def allowed(state: GrammarState, banned: tuple[int, ...] = ()) -> set[int]:
    row = state.mask(np.zeros(len(state.grammar.vocabulary), np.float32), banned)
    return set(np.flatnonzero(row == 0).tolist())


def feed(state: GrammarState, text: str) -> GrammarState:
    for token in state.grammar.vocabulary.encode(text):
        state.advance(token)
    return state


def said(state: GrammarState, tokens: list[int]) -> str:
    return b"".join(state.grammar.vocabulary.token_bytes[t] for t in tokens).decode("utf-8", "replace")


def walk(state: GrammarState, rng: np.random.Generator, steps: int) -> list[int]:
    """Say something random."""
    tokens = []
    while len(tokens) < steps and not state.ended:
        token = int(state.mask(noise(rng, state.grammar.vocabulary)).argmax())
        state.advance(token)
        tokens.append(token)
    return tokens


@pytest.fixture(scope="module")
def real() -> Vocabulary:
    """The vocabulary of SmolLM2."""
    with smollm2().open() as model:
        tokenizer = Tokenizer(bytes(model.files["tokenizer.json"]))
        tokenizer.cover(model.card.vocabulary_size)
        stop = model.card.tokens.stop
    return Vocabulary(tokenizer.token_bytes, tokenizer.control, stop, lambda text: tokenizer.encode(text, bos=False))


# --- what may come ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["regex", "lark", "json_schema", "json_object"])
def test_mask_is_what_one_can_say_next(kind: str) -> None:
    """Brute force over the whole vocabulary, along random answers: a bit is set just if the token is accepted."""
    source = {
        "regex": r"([a-z]{2,5}|[0-9]+(\.[0-9]{2})?) ?(é|日)*",
        "lark": 'start: "ab" (item)+ <call> "x" </call>?\nitem: /[0-9]+/ | "(" item ")"',
        "json_schema": json.dumps(OBJECT),
        "json_object": "",
    }[kind]
    # No bounds: they only narrow, and are tested on their own.
    free = Bounds(*[10**6] * 7)
    grammar = compile_grammar(Constraint(kind, source), TINY, free)  # type: ignore[arg-type]
    for seed in range(6):
        state, rng = grammar.start(), chance(seed)
        for _ in range(25):
            if state.ended:
                break
            found = allowed(state)
            accepted = {t for t in range(len(TINY)) if state.allows(t)}
            # What is forced is forced as the tokenizer would have it, in its longest tokens.
            assert found <= accepted if state.forced() else found == accepted
            assert (set(STOP) <= found) == state.complete
            assert bool(set(STOP) & found) == state.complete
            token = int(rng.choice(sorted(found)))
            if token in STOP:
                break
            state.advance(token)


def test_a_regular_expression_allows_exactly_its_language() -> None:
    """Against Python's own matcher, over every string of up to three tokens of a few."""
    vocabulary = Vocabulary(
        [b"a", b"b", b"ab", b"ba", b""], {"<end>": 4}, [4], lambda text: ["ab".index(c) for c in text]
    )
    grammar = compile_grammar(Constraint("regex", "a(ba)*b?"), vocabulary)
    language = {"a", "ab", "aba", "abab", "ababa", "ababab"}
    for tokens in np.ndindex(4, 4, 4):
        for size in (1, 2, 3):
            text = b"".join(vocabulary.token_bytes[t] for t in tokens[:size]).decode()
            state, legal = grammar.start(), True
            for token in tokens[:size]:
                legal = legal and state.allows(token)
                if legal:
                    state.advance(token)
            assert (legal and state.complete) == (text in language), text


def test_mask_leaves_the_models_row_alone_and_masks_padding() -> None:
    """The row of logits may be longer than the vocabulary, and is never written to."""
    state = schema_grammar({"enum": [True, 12]}).start()
    row = np.arange(len(TINY) + 37, dtype=np.float32)
    before = row.copy()
    for _ in range(2):
        masked = state.mask(row)
        finite = np.flatnonzero(np.isfinite(masked))
        assert {TINY.token_bytes[t] for t in finite} == {b"t", b"true", b"1", b"12"}
        assert np.array_equal(masked[finite], row[finite])
        assert masked.size == row.size
    assert np.array_equal(row, before)


def test_both_ways_of_masking_agree(real: Vocabulary) -> None:
    """Many legal tokens or few, in any order: the reused row never keeps anything of the step before."""
    state = schema_grammar(OBJECT, real).start()
    rng = chance(3)
    row = noise(rng, real)
    for token in real.encode('{"name": "Anna é", "n": 12, "tags": ["a", {"b": [true]}]}'):
        masked = state.mask(row)
        bits = state._matcher.compute_bitmask()
        legal = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[: len(real)].astype(bool)
        beyond = set(np.flatnonzero(legal & ~np.isfinite(masked)).tolist())
        assert not np.isfinite(masked[~legal]).any()
        assert np.array_equal(masked[np.isfinite(masked)], row[np.isfinite(masked)])
        # What the bounds take away is little: white space and digits without end.
        assert all(len(real.token_bytes[t]) > 1 for t in beyond)
        state.advance(token)
    assert state.ended


def test_banned_tokens_are_masked_while_another_remains() -> None:
    """A ban never leaves nothing to say."""
    state = compile_grammar(Constraint("regex", "[ab]"), TINY).start()
    a, b = ord("a"), ord("b")
    assert allowed(state) == {a, b}
    assert allowed(state, (a,)) == {b}
    assert allowed(state, (a, b)) == {a, b}
    assert allowed(state, (10**9, -3, a)) == {b}
    assert allowed(state) == {a, b}


def test_stop_tokens_come_only_when_complete() -> None:
    """All of the model's stop tokens, and nothing else once nothing more can come."""
    state = schema_grammar(OBJECT).start()
    feed(state, '{"name": "x", "n": 1')
    assert not state.complete
    assert not set(STOP) & allowed(state)
    assert not any(state.allows(t) for t in STOP)
    with pytest.raises(InternalError):
        state.advance(STOP[0])
    feed(state, "}")
    assert state.complete
    assert state.ended
    assert allowed(state) == set(STOP)
    state.advance(STOP[1])
    assert state.ended
    assert state.forced() == []
    with pytest.raises(InternalError):
        state.advance(STOP[1])


def test_complete_is_not_ended() -> None:
    """A number may go on although it could stop."""
    state = feed(schema_grammar({"type": "integer"}).start(), "12")
    assert state.complete
    assert not state.ended
    assert set(STOP) < allowed(state)
    assert state.shortest_completion() == []


def test_illegal_token_changes_nothing() -> None:
    """The state can be used after the error."""
    state = feed(schema_grammar(OBJECT).start(), '{"name": "x')
    before = allowed(state)
    for token in (ord("\n"), CONTROL["<call>"], len(TINY) + 5, -1):
        with pytest.raises(InternalError):
            state.advance(token)
    assert allowed(state) == before
    feed(state, '", "n": 5}')
    assert state.ended


def test_control_tokens_come_only_by_name() -> None:
    """A grammar that names one yields it; no text does."""
    named = compile_grammar(Constraint("lark", 'start: <call> "x" </call>'), TINY).start()
    assert allowed(named) == {CONTROL["<call>"]}
    anything = compile_grammar(Constraint("lark", r"start: /(.|\n)*/"), TINY).start()
    assert not allowed(anything) & {CONTROL["<call>"], CONTROL["</call>"]}
    spelled = compile_grammar(Constraint("regex", "<call>"), TINY).start()
    assert allowed(spelled) == {ord("<")}


def test_characters_may_be_cut_by_tokens(real: Vocabulary) -> None:
    """Escapes, characters of several bytes and of several tokens are followed, and only whole ones are complete."""
    value = {"name": 'quote " back \\ line \n tab \t nul \x01 é 日本 🦜🧪', "n": 1}
    text = json.dumps(value, ensure_ascii=False)
    state = schema_grammar(OBJECT, real).start()
    feed(state, text)
    assert state.ended
    cut = feed(schema_grammar({"type": "string"}).start(), '"')
    cut.advance(0xF0)
    assert ord('"') not in allowed(cut)
    assert allowed(cut) <= set(range(0x80, 0xC0))


def test_json_is_written_on_one_line_with_single_spaces() -> None:
    """The form that json.dumps writes; white space is not the model's to choose."""
    grammar = schema_grammar(OBJECT)
    assert feed(grammar.start(), '{"name": "x", "n": 1, "tags": [1, {"a": 2}]}').ended
    for text in ('{"name":"x","n":1}', '{ "name": "x", "n": 1}', '{"name": "x",\n"n": 1}', '{"name":  "x"}'):
        with pytest.raises(InternalError):
            feed(grammar.start(), text)
    options = {"x-guidance": {"whitespace_flexible": True, "lenient": True}}
    with pytest.raises(InternalError):
        feed(schema_grammar(OBJECT | options).start(), '{ "name": "x", "n": 1}')


# --- forced tokens and going back -------------------------------------------------------------------------------------


def test_forced_tokens_are_legal_and_canonical(real: Vocabulary) -> None:
    """What must come is what the tokenizer would have made of the same text."""
    state = schema_grammar(OBJECT, real).start()
    forced = state.forced()
    assert said(state, forced) == '{"name":'
    assert real.encode('{"name": "x"')[: len(forced)] == forced
    for token in forced:
        assert token in allowed(state)
        state.advance(token)


def test_forced_tokens_are_legal_along_random_answers() -> None:
    """Also in grammars with choices and control tokens."""
    lark = compile_grammar(
        Constraint("lark", "start: <call> " + json_rule(OBJECT) + ' </call> ("END" | "ENOUGH")'), TINY
    )
    for seed, grammar in enumerate(
        [schema_grammar(OBJECT, bounds=SMALL), schema_grammar(TREE, bounds=SMALL), lark] * 4
    ):
        state, rng, met = grammar.start(), chance(seed), 0
        for _ in range(60):
            for token in state.forced():
                assert allowed(state) >= {token}
                state.advance(token)
                met += 1
            if state.ended:
                break
            walk(state, rng, 1)
        assert met


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(1, 30), st.integers(0, 40)), max_size=6))
def test_rollback_is_exact(seed: int, moves: list[tuple[int, int]]) -> None:
    """After any walk and way back, masks, forced tokens and bounds are those of a fresh state with the same tokens."""
    rng = chance(seed)
    constraint, bounds = [
        (Constraint("json_schema", json.dumps(OBJECT)), SMALL),
        (Constraint("json_schema", json.dumps({"type": "object"})), SMALL),
        (Constraint("regex", "([a-z]+[0-9]*)*(END)?"), SMALL),
        (Constraint("lark", "start: /[a-z]*/ <call> " + json_rule(OBJECT)), SMALL),
    ][seed % 4]
    grammar = compile_grammar(constraint, TINY, bounds)
    state, tokens = grammar.start(), list[int]()
    for forward, back in moves:
        tokens += walk(state, rng, forward)
        if state.complete and not state._stopped and rng.random() < 0.5:
            state.advance(STOP[0])
            tokens.append(STOP[0])
        back = min(back, len(tokens))
        state.rollback(back)
        del tokens[len(tokens) - back :]
        fresh = grammar.start()
        for token in tokens:
            fresh.advance(token)
        assert (state.complete, state.ended) == (fresh.complete, fresh.ended)
        assert state.forced() == fresh.forced()
        assert [p._replace(overruns=0) for p in state._places] == [p._replace(overruns=0) for p in fresh._places]
        if not state._stopped:
            assert allowed(state) == allowed(fresh)
        else:
            break


def test_rollback_over_too_much_is_refused() -> None:
    """A caller's bug, not a state."""
    state = feed(schema_grammar({"type": "integer"}).start(), "12")
    with pytest.raises(ValueError, match="cannot take back 4 of"):
        state.rollback(4)
    state.rollback(0)
    state.rollback(len(TINY.encode("12")))
    assert not state.complete


def test_threads_share_a_vocabulary_and_a_grammar() -> None:
    """Compiled in one thread, used in others at the same time; each state goes its own way."""
    vocabulary = Vocabulary(TINY.token_bytes, CONTROL, STOP, longest)
    start = threading.Barrier(6)

    def run(seed: int) -> list[int]:
        start.wait()
        state = schema_grammar(OBJECT, vocabulary).start() if seed % 2 else shared.start()
        return walk(state, chance(5), 40)

    shared = schema_grammar(OBJECT, vocabulary)
    with ThreadPoolExecutor(6) as pool:
        walks = list(pool.map(run, range(6)))
    assert all(tokens == walks[0] for tokens in walks)


# --- it always ends ---------------------------------------------------------------------------------------------------

DAYS = {
    "type": "object",
    "patternProperties": {"^(mon|tue|wed|thu|fri)$": {"type": "integer"}},
    "additionalProperties": False,
}
LETTERS = DAYS | {"patternProperties": {"^[ab]{1,2}$": {"enum": ["a, b", [1], {}]}}}
ENDLESS: dict[str, Any] = {
    "anything": {},
    "object": {"type": "object"},
    "array": {"type": "array"},
    "string": {"type": "string"},
    "number": {"type": "number"},
    "multiple": {"type": "integer", "multipleOf": 7},
    "tree": TREE,
    "map of maps": {"type": "object", "additionalProperties": {"$ref": "#"}},
    "demanding": {"type": "string", "minLength": 120},
    "pattern": {"type": "object", "properties": {"a": {"type": "string", "pattern": "^.*END$"}}, "required": ["a"]},
    "required": OBJECT | {"required": ["name", "n", "tags"]},
    "days": DAYS,
    "map of few names": LETTERS,
    "maps of days": LETTERS | {"patternProperties": {"^[ab]$": DAYS | {"minProperties": 5}}},
    "names of a union": {"anyOf": [LETTERS | {"minProperties": 2}, {"type": "array", "items": DAYS, "minItems": 1}]},
}
TASTES = {
    "blanks": lambda d: not d.strip(),
    "digits": lambda d: not d.strip(b"0123456789"),
    "letters": lambda d: d[:1].isalpha(),
    "items": lambda d: b"," in d,
    "depth": lambda d: b"[" in d or b"{" in d,
    "quotes": lambda d: b'"' in d,
    "escapes": lambda d: b"\\" in d,
    "short": lambda d: len(d) == 1,
    "beyond ascii": lambda d: d[0] > 0x7F,
    "signs": lambda d: d[:1] in (b"-", b".", b"e", b"E", b"+"),
}


def adversaries(vocabulary: Vocabulary) -> dict[str, Logits]:
    """Logits that always prefer one thing, and never to stop."""
    rows = {}
    for name, taste in TASTES.items():
        row = np.zeros(len(vocabulary), np.float32)
        for token, data in enumerate(vocabulary.token_bytes):
            if data and taste(data):
                row[token] = 10 - 0.05 * len(data)
        row[list(vocabulary.stop)] = -100
        rows[name] = row
    return rows


def ends(grammar: Grammar, rows: list[Logits], rng: np.random.Generator, budget: int) -> int:
    """Let an adversary speak; the tokens that it took to a complete and conforming answer."""
    state, tokens = grammar.start(), list[int]()
    spread = noise(rng, grammar.vocabulary) * np.float32(0.3)
    while not state.ended:
        assert len(tokens) < budget, said(state, tokens[-60:])
        row = rows[int(rng.integers(len(rows)))] + spread
        tokens.append(int(state.mask(row).argmax()))
        state.advance(tokens[-1])
        if tokens[-1] in grammar.vocabulary.stop:
            tokens.pop()
            break
    assert state.complete
    assert conforms(grammar.constraint, said(state, tokens)) is None, said(state, tokens)
    return len(tokens)


@pytest.mark.parametrize("name", ENDLESS)
def test_no_grammar_is_a_place_to_loop(name: str) -> None:
    """110 answers of adversaries that want one thing only: all end by themselves, complete and valid."""
    grammar = schema_grammar(ENDLESS[name], bounds=SMALL)
    for seed, row in enumerate(adversaries(TINY).values()):
        ends(grammar, [row], chance(seed), budget=SMALL.total + 200)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("bounds", [SMALL, DEFAULT_BOUNDS], ids=["small", "default"])
def test_no_runaway_in_a_thousand_answers(name: str, bounds: Bounds, real: Vocabulary) -> None:
    """1,100 of them on the real vocabulary, mixed tastes too, and the default bounds as well."""
    grammar = schema_grammar(ENDLESS[name], real, bounds)
    rows = list(adversaries(real).values())
    runs = 100 if bounds is SMALL else 2
    for seed in range(runs):
        wanted = [rows[seed % len(rows)]] if seed % 3 else rows
        ends(grammar, wanted, chance(seed), budget=bounds.total + 300)


def test_a_bound_gives_way_to_the_schema() -> None:
    """Where only what passes a bound is legal, the answer goes on and is led out."""
    long = schema_grammar({"type": "string", "pattern": "^[a-z]{60}$"}, bounds=SMALL)
    ends(long, [adversaries(TINY)["letters"]], chance(1), budget=200)
    short = feed(schema_grammar({"type": "object"}, bounds=SMALL).start(), '{"' + "a" * 40)
    assert {TINY.token_bytes[t] for t in allowed(short)} <= {b'"', b'":', b'": '}


def test_an_object_closes_when_its_names_are_used_up() -> None:
    """No comma leads to where only a name could follow that is there already, and no letter leads into one."""
    grammar = schema_grammar(DAYS)
    four = '{"mon": 1, "tue": 2, "wed": 3, "thu": 4'
    assert {b",", b", ", b"}"} <= {TINY.token_bytes[t] for t in allowed(feed(grammar.start(), four))}
    all_five = {TINY.token_bytes[t] for t in allowed(feed(grammar.start(), four + ', "fri": 5'))}
    assert b"}" in all_five
    assert not any(b"," in data for data in all_five)
    assert {TINY.token_bytes[t] for t in allowed(feed(grammar.start(), '{"mon": 1, "'))} == {b"t", b"w", b"f"}
    assert {TINY.token_bytes[t] for t in allowed(feed(grammar.start(), '{"mon": 1, "tue": 2, "t'))} == {b"h"}
    nested = schema_grammar({"type": "array", "items": DAYS})
    assert {b", ", b"]"} <= {TINY.token_bytes[t] for t in allowed(feed(nested.start(), "[" + four + ', "fri": 5}'))}


def test_an_object_that_needs_more_names_than_there_are_ends_all_the_same() -> None:
    """It is not complete, however well it is written: the verdict says so, and no defect is reported."""
    grammar = schema_grammar(LETTERS | {"minProperties": 9})
    for seed, row in enumerate(adversaries(TINY).values()):
        state, rng = grammar.start(), chance(seed)
        said_so_far = walk_to_the_end(state, row, rng)
        assert state.ended
        assert not state.complete
        assert "two members" in (conforms(grammar.constraint, said_so_far) or "")


@pytest.mark.parametrize("schema", [DAYS, LETTERS], ids=["days", "letters"])
def test_names_are_used_up_on_a_real_vocabulary_too(schema: Any, real: Vocabulary) -> None:
    """Where one token is a comma, a blank and the beginning of a name, and the engine writes what is forced."""
    grammar = schema_grammar(schema, real)
    for seed, row in enumerate(adversaries(real).values()):
        state, rng, tokens = grammar.start(), chance(seed), list[int]()
        while not state.ended:
            choice = int(state.mask(row + noise(rng, real) * np.float32(0.3)).argmax())
            for token in [choice] if state.ended else [choice, *forced_after(state, choice)]:
                state.advance(token)
                tokens.append(token)
        text = said(state, [token for token in tokens if token not in real.stop])
        assert conforms(grammar.constraint, text) is None, text


def forced_after(state: GrammarState, token: int) -> list[int]:
    state.advance(token)
    found = [] if state.ended else state.forced()
    state.rollback(1)
    return found


def walk_to_the_end(state: GrammarState, row: Logits, rng: np.random.Generator) -> str:
    tokens: list[int] = []
    while not state.ended:
        assert len(tokens) < 300, said(state, tokens)
        tokens.append(int(state.mask(row + noise(rng) * np.float32(0.3)).argmax()))
        state.advance(tokens[-1])
    return said(state, [token for token in tokens if token not in STOP])


def test_the_same_name_in_other_letters_is_the_same() -> None:
    """Escapes may be written with capitals; JSON does not tell them apart."""
    state = feed(schema_grammar({"type": "object"}).start(), '{"\\u001f": 1, "\\u001F": 2}')
    assert state.ended
    assert not state.complete


def test_json_in_a_tool_grammar_is_bounded_too() -> None:
    """Text before a call is free; within its JSON a string, a number and a list end."""
    source = "start: /[a-z ]*/ <call> " + json_rule({"type": "object"}) + " </call>"
    state = compile_grammar(Constraint("lark", source), TINY).start()
    feed(state, "let me call this ")
    state.advance(CONTROL["<call>"])
    feed(state, '{"a": 12345678901234567890')
    assert not any(TINY.token_bytes[t][:1].isdigit() for t in allowed(state))
    feed(state, ', "b": "x"}')
    state.advance(CONTROL["</call>"])
    assert state.ended


# --- the shortest end -------------------------------------------------------------------------------------------------

STRING, INTEGER = {"type": "string"}, {"type": "integer"}
CUT: dict[str, tuple[Any, Any]] = {
    "flat": (OBJECT, {"name": "Ada Lovelace", "n": 36, "tags": ["a", None, {"b": [1, 2]}]}),
    "tree": (TREE, {"v": "root", "c": [{"v": "leaf", "c": []}, {"v": "branch", "c": [{"v": "", "c": []}]}]}),
    "enum": ({"enum": ["alpha", "alphabet", "beta", 17, None, True]}, "alphabet"),
    "const": ({"const": {"a": [1, 2, {"b": "c"}]}}, {"a": [1, 2, {"b": "c"}]}),
    "min length": ({"type": "string", "minLength": 30}, "x" * 40),
    "max length": ({"type": "string", "minLength": 3, "maxLength": 5}, "abcd"),
    "pattern": ({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}, "AB-1234"),
    "open pattern": ({"type": "string", "pattern": "^[a-z]+@[a-z]+\\.(com|org)$"}, "someone@example.org"),
    "suffix": ({"type": "string", "pattern": "^.*END$"}, "the END"),
    "date": ({"type": "string", "format": "date"}, "2024-02-29"),
    "date-time": ({"type": "string", "format": "date-time"}, "2024-02-29T12:30:00Z"),
    "uuid": ({"type": "string", "format": "uuid"}, "123e4567-e89b-12d3-a456-426614174000"),
    "email": ({"type": "string", "format": "email"}, "a.b@example.com"),
    "ipv4": ({"type": "string", "format": "ipv4"}, "192.168.0.1"),
    "integer": ({"type": "integer", "minimum": 100, "maximum": 99_999}, 4711),
    "negative": ({"type": "integer", "maximum": -5}, -123),
    "number": ({"type": "number"}, -12.5e-3),
    "range": ({"type": "number", "minimum": 0.25, "maximum": 0.75}, 0.5),
    "multiple": ({"type": "integer", "multipleOf": 7}, 49),
    "boolean": ({"type": "boolean"}, False),
    "null": ({"type": "null"}, None),
    "items": ({"type": "array", "items": INTEGER, "minItems": 3, "maxItems": 6}, [1, 22, 333, 4444]),
    "tuple": ({"type": "array", "prefixItems": [STRING, INTEGER], "items": False, "minItems": 2}, ["a", 1]),
    "objects": ({"type": "array", "minItems": 2, "items": OBJECT}, [{"name": "a", "n": 1}, {"name": "b", "n": 2}]),
    "map": ({"type": "object", "additionalProperties": INTEGER}, {"a": 1, "b": 22}),
    "min properties": ({"type": "object", "minProperties": 2, "additionalProperties": INTEGER}, {"a": 1, "b": 2}),
    "pattern properties": (
        {"type": "object", "patternProperties": {"^x_[0-9]+$": STRING}, "additionalProperties": False},
        {"x_1": "a", "x_22": "b"},
    ),
    "any of": ({"anyOf": [OBJECT, {"type": "array", "items": STRING}, INTEGER]}, ["a", "b"]),
    "one of": ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, 12),
    "all of": ({"allOf": [{"type": "object", "required": ["name"]}, OBJECT]}, {"name": "x", "n": 1}),
    "optional": ({"type": "object", "properties": dict.fromkeys("abcdef", INTEGER)}, {"a": 1, "c": 2, "f": 3}),
    "nested required": (
        {"type": "object", "properties": {"a": OBJECT, "b": {"type": "array", "items": OBJECT, "minItems": 1}}}
        | {"required": ["a", "b"]},
        {"a": {"name": "q", "n": 0}, "b": [{"name": "", "n": -1, "tags": []}]},
    ),
    "nullable": ({"type": ["string", "null"]}, "maybe"),
    "unicode": (
        {"type": "object", "properties": {"schlüssel": STRING}, "required": ["schlüssel"]},
        {"schlüssel": "日本é"},
    ),
    "escapes": (STRING, 'a"b\\c\nd\te\x01'),
    "anything": ({}, [{"a": "b"}, [], {}, "c", -1.5e10, None, True]),
}


def complete_everywhere(grammar: Grammar, text: str) -> Iterator[tuple[int, int]]:
    """Cut an answer after every token, and complete it: how many tokens were left, and how many were found."""
    tokens = grammar.vocabulary.encode(text)
    for cut in range(len(tokens) + 1):
        state = grammar.start()
        for token in tokens[:cut]:
            state.advance(token)
        found = state.shortest_completion()
        assert found is not None, text[:cut]
        assert found == [] or not state.complete
        for token in found:
            state.advance(token)
        assert state.complete
        whole = said(state, [*tokens[:cut], *found])
        assert conforms(grammar.constraint, whole) is None, whole
        yield len(tokens) - cut, len(found)


@pytest.mark.parametrize("name", CUT)
def test_every_answer_can_be_completed_wherever_it_is_cut(name: str, real: Vocabulary) -> None:
    """The completion is legal, makes the answer complete and valid, and is never longer than it has to be by much."""
    schema, instance = CUT[name]
    text = json.dumps(instance, ensure_ascii=False)
    for left, found in complete_everywhere(schema_grammar(schema, real), text):
        assert found <= left + 8


def test_answers_are_completed_on_a_vocabulary_of_bytes_too() -> None:
    """Without the tokens that make it easy."""
    for name in ("flat", "tree", "pattern", "any of", "nested required", "escapes"):
        schema, instance = CUT[name]
        list(complete_everywhere(schema_grammar(schema), json.dumps(instance, ensure_ascii=False)))


@pytest.mark.parametrize(
    ("kind", "source", "text"),
    [
        ("regex", r"[a-z]+@[a-z]+\.com", "someone@example.com"),
        ("regex", "(yes|no), because .{10,40}\\.", "yes, because it is what it is."),
        ("regex", ".*END", "some words END"),
        ("lark", 'start: expr\nexpr: NUM | "(" expr "+" expr ")"\nNUM: /[0-9]+/', "((1+22)+(3+4))"),
        (
            "lark",
            "start: %json " + json.dumps(OBJECT | {"x-guidance": {"whitespace_flexible": False}}),
            '{"name":"x","n":1}',
        ),
    ],
)
def test_expressions_and_grammars_are_completed(kind: str, source: str, text: str, real: Vocabulary) -> None:
    """The search needs no JSON."""
    grammar = compile_grammar(Constraint(kind, source), real)  # type: ignore[arg-type]
    list(complete_everywhere(grammar, text))


def test_long_ways_are_found_in_bounded_time(real: Vocabulary) -> None:
    """A minLength or a minItems of hundreds."""
    started = time.monotonic()
    for schema in ({"type": "string", "minLength": 3_000}, {"type": "array", "minItems": 200, "items": OBJECT}):
        state = schema_grammar(schema, real).start()
        walk(state, chance(1), 20)
        found = state.shortest_completion()
        assert found
        for token in found:
            state.advance(token)
        assert state.complete
    assert time.monotonic() - started < 20


def test_an_end_that_only_luck_would_find_is_not_found() -> None:
    """The search gives up within its bound."""
    state = compile_grammar(Constraint("regex", "([a-z]{40}x|[a-y]{3})*qzj{700}w[0-9]{3}"), TINY).start()
    started = time.monotonic()
    state.shortest_completion()
    assert time.monotonic() - started < 10


# --- what is refused --------------------------------------------------------------------------------------------------


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


REFUSED: list[tuple[str, Any, str]] = [
    ("not", {"properties": {"a": {"items": {"not": {"type": "string"}}}}}, "not at #/properties/a/items"),
    ("if", {"if": {"type": "string"}, "then": {"minLength": 3}}, "if, then at #"),
    ("uniqueItems", {"type": "array", "uniqueItems": True}, "uniqueItems at #"),
    ("contains", {"properties": {"a/b": {"contains": {}}}}, "contains at #/properties/a~1b"),
    ("format", {"properties": {"a": {"type": "string", "format": "color"}}}, "format at #/properties/a"),
    ("look-around", {"items": {"type": "string", "pattern": "(?=a)b"}}, "pattern at #/items"),
    ("oneOf", {"oneOf": [{"minLength": 1, "type": "string"}, {"pattern": "a", "type": "string"}]}, "oneOf at #"),
    ("minProperties", {"minProperties": 3, "properties": {"b": {}}}, "minProperties at #"),
    ("no type", {"properties": {"a": {"type": "strin"}}}, "type at #/properties/a/type"),
    ("no schema", [1], "an array, expected an object"),
    ("nothing", {"type": "integer", "minimum": 4, "maximum": 3}, "minimum at #"),
    ("ref elsewhere", {"items": {"$ref": "http://127.0.0.1:9/x.json"}}, "$ref at #/items refers to another document"),
    ("ref to a file", {"$ref": "file:///etc/passwd"}, "refers to another document"),
    ("ref to nothing", {"items": {"$ref": "#/$defs/no"}}, "$ref at #/items"),
    ("dialect", {"$schema": "http://127.0.0.1:9/schema"}, "$schema names no known dialect"),
    ("self", {"$ref": "#"}, "the schema at #"),
    ("endless", {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "may never end"),
    ("deep", nested(60), "nested deeper than"),
    ("many", {"anyOf": [{"const": i} for i in range(5_000)]}, "subschemas, expected at most"),
    ("large", {"enum": ["x" * 200] * 1_000}, "characters, expected at most"),
    ("values", {"enum": [0] * 21_000}, "more than"),
    ("long string", {"type": "string", "minLength": 10**9}, "minLength at #"),
    ("long array", {"items": {"type": "array", "minItems": 10**9}}, "minItems at #/items"),
    ("states", {"type": "integer", "multipleOf": 1_000_003}, "multipleOf at #"),
    ("states together", {"allOf": [{"multipleOf": 9_973}, {"multipleOf": 9_967}]}, "multipleOf at #/allOf/1"),
    ("product", {"allOf": [{"anyOf": [{"required": [f"{i}{c}"]} for c in "abcd"]} for i in range(12)]}, "#"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "schema", "found"), REFUSED, ids=[name for name, _, _ in REFUSED])
def test_schema_is_refused_in_words(name: str, schema: object, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keyword and where it is; within a second or two, without a traceback and without the network."""
    monkeypatch.setattr(socket, "socket", _no_network)
    started = time.monotonic()
    with pytest.raises(InvalidRequest) as caught:
        schema_grammar(schema)
    assert found in caught.value.message
    assert caught.value.param == "response_format"
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert time.monotonic() - started < 5


def _no_network(*_: object, **__: object) -> None:
    raise AssertionError("a schema reached for the network")


@pytest.mark.parametrize("text", ["", "{", "nan", '{"const": NaN}', "1", "null", "[" * 200_000, '{"const": "\ud800"}'])
def test_what_is_no_schema_is_refused(text: str) -> None:
    """Not JSON, half characters, or no object."""
    with pytest.raises(InvalidRequest, match="cannot use this JSON schema"):
        compile_grammar(Constraint("json_schema", text), TINY)


@pytest.mark.parametrize(
    ("kind", "source", "found"),
    [
        ("regex", "[", "unclosed"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", "(a)\\1", "backreferences"),
        ("regex", "a{1000000}", "too many"),
        ("regex", "(" * 3_000 + "a" + ")" * 3_000, "cannot use this regular expression"),
        ("regex", "x" * 70_000, "70000 characters"),
        ("regex", "\ud800", "half a character"),
        ("lark", "start: <nope>", "unknown special token"),
        ("lark", "start: nothing", "unknown name"),
        ("lark", 'start: "a" start', "may never end"),
        ("lark", "%import .secrets.KEY\nstart: KEY", "cannot use this Lark grammar"),
        ("lark", "start: %json " + json.dumps({"not": {}}), "not"),
        ("lark", "", "cannot use this Lark grammar"),
    ],
)
def test_expression_or_grammar_is_refused_in_words(kind: str, source: str, found: str) -> None:
    """What does not parse, cannot be done, or would take all the memory."""
    started = time.monotonic()
    with pytest.raises(InvalidRequest) as caught:
        compile_grammar(Constraint(kind, source), TINY)  # type: ignore[arg-type]
    assert found in caught.value.message
    assert caught.value.param == "response_format"
    assert "\n" not in caught.value.message
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "source",
    [
        "(a{1,999}){1,999}",
        "(.*a.{200}b.*c.{200}){3}",
        r"(\w+\s?){1,5000}",
        "(x+x+)+y",
        "[ab]*a[ab]{30}c",
        "(a|ab)*c{0,9999}",
    ],
)
def test_hostile_expressions_cost_little(source: str) -> None:
    """They work, or end in an error that says why; no step takes long."""
    started = time.monotonic()
    try:
        state = compile_grammar(Constraint("regex", source), TINY).start()
        walk(state, chance(1), 80)
        state.shortest_completion()
    except InvalidRequest as e:
        assert "too many" in e.message  # noqa: PT017 (either end is right)
    assert time.monotonic() - started < 10


def test_doubling_references_cost_little() -> None:
    """2**25 ways through a schema of 26 lines: compiled at once, and not validated for ever."""
    for keyword in ("allOf", "anyOf"):
        parts = {f"a{i}": {keyword: [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(25)}
        schema = {"$defs": parts | {"a25": {"type": "string"}}, "$ref": "#/$defs/a0"}
        started = time.monotonic()
        grammar = schema_grammar(schema)
        assert conforms(grammar.constraint, '"x"') in (None, "the schema takes too long to validate against")
        assert time.monotonic() - started < 10


MANY = {"type": "object", "properties": {f"p{i}": {"type": "boolean"} for i in range(900)}}


def test_a_schema_that_becomes_too_complex_is_told_so() -> None:
    """900 optional members: the hint is for whoever writes schemas."""
    with pytest.raises(InvalidRequest, match="cannot go on with this JSON schema") as caught:
        walk(schema_grammar(MANY).start(), chance(1), 80)
    assert "fewer properties" in (caught.value.hint or "")


def test_a_grammar_that_failed_keeps_no_memory_and_works_again() -> None:
    """What its automaton has grown to goes with it; the next answer gets a fresh one."""
    grammar = schema_grammar(MANY)
    with pytest.raises(InvalidRequest):
        walk(grammar.start(), chance(1), 80)
    assert grammar._matcher is None
    assert TINY.token_bytes.index(b"{") in allowed(grammar.start())
    assert grammar._matcher is not None


# --- the second check -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "text", "reason"),
    [
        (OBJECT, '{"name": "x", "n": 1}', None),
        (OBJECT, '  {"n": 1, "name": "x"}\n', None),
        (OBJECT, '{"name": "x", "n": 1} and more', "text after the JSON's end"),
        (OBJECT, '{"name": "x", "n": 1}{"name": "x", "n": 1}', "text after the JSON's end"),
        (OBJECT, '{"name": "x", "n": 1', "not JSON, at 20"),
        (OBJECT, "", "not JSON, at 0"),
        (OBJECT, '{"name": "x", "name": "y", "n": 1}', "two members of the same name"),
        (OBJECT, '{"name": "x", "n": 1, "tags": [{"a": 1, "a": 1}]}', "two members of the same name"),
        (OBJECT, '{"name": "x", "n": "secret"}', "#/n breaks type"),
        (OBJECT, '{"name": "secret"}', "# breaks required"),
        (OBJECT, '{"name": "x", "n": 1, "more": 1}', "# breaks additionalProperties"),
        (OBJECT, '{"name": "x", "n": 1, "tags": [NaN]}', "NaN"),
        (OBJECT, '{"name": "x", "n": 1, "tags": [-Infinity]}', "Infinity"),
        (OBJECT, '{"name": "x", "n": 1, "tags": [1e999]}', "beyond what a double can hold"),
        ({}, "9" * 5_000, "beyond what a double can hold"),
        (OBJECT, '{"name": "\\ud800", "n": 1}', "half a character"),
        ({"type": "string"}, '"\\ud800"', "half a character"),
        ({"type": "array"}, '[["\\ud800"]]', "half a character"),
        ({}, "[" * 100_000, "nested too deeply"),
        ({"type": "string", "pattern": "^a+$"}, '"secret"', "# breaks pattern"),
        ({"type": "string", "pattern": "^(a+)+$"}, '"' + "a" * 40 + '"', None),
        ({"type": "string", "pattern": "^(a+)+$"}, '"' + "a" * 40 + '!"', "# breaks pattern"),
        ({"type": "string", "pattern": "^(a|\u007f)+$"}, '"' + "a\u007f" * 40 + '"', None),
        ({"type": "string", "pattern": "^\\S$"}, '"\ufeff"', "# breaks pattern"),
        ({"patternProperties": {"^(x+)+$": {"type": "integer"}}}, '{"xxx": "secret"}', "#/* breaks type"),
        ({"patternProperties": {"^x": {}}, "additionalProperties": False}, '{"y": 1}', "# breaks additionalProperties"),
        ({"type": "string", "format": "date"}, '"2023-02-30"', "# breaks format"),
        ({"type": "string", "format": "date-time"}, '"2023-02-28T23:59:60Z"', None),
        ({"type": "string", "format": "date-time"}, '"2023-02-28T22:59:61Z"', "# breaks format"),
        ({"type": "string", "format": "time"}, '"23:59:60+24:30"', "# breaks format"),
        ({"type": "string", "format": "ipv4"}, '"999.1.1.1"', "# breaks format"),
    ],
)
def test_answer_is_judged_again(schema: object, text: str, reason: str | None) -> None:
    """By another implementation, strictly, quickly, and without a word of the text in the reason."""
    started = time.monotonic()
    found = conforms(Constraint("json_schema", json.dumps(schema)), text)
    assert (found is None) == (reason is None), found
    assert reason is None or reason in (found or "")
    assert "secret" not in (found or "")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("constraint", "text", "good"),
    [
        (Constraint("json_object"), '{"a": [1]}', True),
        (Constraint("json_object"), "[1]", False),
        (Constraint("json_object"), '{"a": 1, "a": 1}', False),
        (Constraint("regex", "[a-z]+[0-9]?"), "abc1", True),
        (Constraint("regex", "[a-z]+[0-9]?"), "abc12", False),
        (Constraint("regex", "[a-z]+[0-9]?"), "", False),
        (Constraint("regex", "(a+)+b"), "a" * 60 + "b", True),
        (Constraint("regex", "(a+)+b"), "a" * 60, False),
        (Constraint("regex", r"\p{Lu}\p{Ll}+"), "Émile", True),
        (Constraint("regex", r"\p{Lu}\p{Ll}+"), "émile", False),
        (Constraint("lark", 'start: "a" b*\nb: "(" b ")" | "x"'), "a((x))x", True),
        (Constraint("lark", 'start: "a" b*\nb: "(" b ")" | "x"'), "a((x)", False),
        (Constraint("lark", 'start: "a" b*\nb: "(" b ")" | "x"'), "ab", False),
        (Constraint("lark", 'start: <call> "x" </call>'), "<call>x</call>", True),
        (Constraint("lark", 'start: <call> "x" </call>'), "x", False),
    ],
)
def test_other_forms_are_judged_again(constraint: Constraint, text: str, good: bool) -> None:
    """Objects, expressions (those that could take for ever, by replay) and grammars with control tokens."""
    assert (conforms(constraint, text, TINY) is None) == good


def test_nothing_is_written_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    """llguidance's own warnings quote the answer; a daemon's log must not."""
    state = feed(schema_grammar(OBJECT).start(), '{"name": "secret')
    with pytest.raises(InternalError):
        state.advance(ord("\n"))
    compile_grammar(Constraint("lark", 'start: "a" | "a"'), TINY)
    conforms(Constraint("lark", 'start: "a"'), "secret")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_the_vocabulary_is_built_when_it_is_needed() -> None:
    """Making one costs nothing."""
    vocabulary = Vocabulary(TINY.token_bytes, CONTROL, STOP, longest)
    assert vocabulary._tokenizer is None
    schema_grammar({"type": "null"}, vocabulary)
    assert vocabulary._tokenizer is not None
    with pytest.raises(ValueError, match="at least one stop token"):
        Vocabulary(TINY.token_bytes, CONTROL, [], longest)


def test_overrun_leads_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many tokens in a row past a bound, only the next token of the shortest way may come."""
    monkeypatch.setattr(grammars, "OVERRUN", 3)
    state = schema_grammar({"type": "string", "pattern": "^.*END$"}, bounds=SMALL).start()
    feed(state, '"' + "a" * 40)
    for _ in range(3):
        assert len(allowed(state)) > 50
        state.advance(ord("a"))
    for _ in range(6):
        (only,) = allowed(state)
        state.advance(only)
        if state.ended:
            break
    assert state.ended
