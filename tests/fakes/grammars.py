"""A vocabulary of bytes and some longer tokens, two schemas, and what it takes to walk through a grammar."""

import json

import numpy as np

from appliance.decoding.grammar import Constraint, Grammar, GrammarState, Vocabulary, compile_grammar
from appliance.decoding.json_bounds import DEFAULT_BOUNDS, Bounds
from appliance.decoding.sampling import Logits

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
