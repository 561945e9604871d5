"""Grammars allow exactly what they should, and go back exactly."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.decoding import grammar as grammars
from appliance.decoding.grammar import Constraint, Vocabulary, compile_grammar, json_rule
from appliance.decoding.json_bounds import Bounds
from appliance.errors import InternalError
from tests.fakes.grammars import (
    CONTROL,
    OBJECT,
    SMALL,
    STOP,
    TINY,
    TREE,
    allowed,
    chance,
    feed,
    longest,
    noise,
    said,
    schema_grammar,
    walk,
)

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
        if not state.ended:
            allowed(state)  # a mask that was computed before must not be given out after
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
