"""The tokenizer that is made from GGUF metadata tokenizes like llama.cpp; see tests/vectors/make_golden.py."""

import json
from pathlib import Path

import pytest

from appliance.errors import BuildError
from appliance.forge.tokenizer import make_tokenizer
from appliance.forge.weights import SourceTokenizer
from appliance.models.tokenizer import Tokenizer
from tests.fakes import built_models

VECTORS = Path(__file__).parents[1] / "vectors"


def check(path: Path, name: str) -> None:
    tokenizer = Tokenizer((path / "tokenizer.json").read_bytes())
    for case in json.loads((VECTORS / f"{name}_tokens.json").read_text()):
        ids = tokenizer.encode(case["text"])
        assert ids == case["tokens"], case["text"]
        # The visible space is the one character that SentencePiece cannot tell from a space.
        assert b"".join(tokenizer.token_bytes[i] for i in ids).decode() == (
            case["text"].replace("\u2581", " ") if name == "gemma3" else case["text"]
        )


def test_smollm2_tokenizes_like_llama_cpp(smollm2: built_models.BuiltModel) -> None:
    """35 strings in many scripts, and back to the same text."""
    check(smollm2.path, "smollm2")


@pytest.mark.slow
def test_gemma3_tokenizes_like_llama_cpp() -> None:
    """The same strings through SentencePiece-style BPE with byte fallback."""
    check(built_models.gemma3().path, "gemma3")


@pytest.mark.parametrize("pre", ["qwen2", "lfm2"])
def test_words_end_where_llama_cpp_ends_them(pre: str) -> None:
    """A vocabulary whose merges go over every blank, digit and mark shows each border of a word that is wrong."""
    vectors = json.loads((VECTORS / "words.json").read_text())
    size = len(vectors["tokens"])
    vocabulary = {"tokens": vectors["tokens"], "types": [1] * size, "scores": [0.0] * size, "merges": vectors["merges"]}
    tokenizer = Tokenizer(make_tokenizer(SourceTokenizer(kind="gpt2", pre=pre, **vocabulary)))
    for case in vectors[pre]:
        ids = tokenizer.encode(case["text"])
        assert ids == case["tokens"], case["text"]
        assert b"".join(tokenizer.token_bytes[i] for i in ids).decode() == case["text"]


def sentencepiece(**changes: object) -> SourceTokenizer:
    tokens = ["<unk>", "<s>", "<0x41>", "a", "b", "ab", "\u2581", "\u2581a", "abb", "bb", "  "]
    fields: dict[str, object] = {
        "kind": "llama",
        "pre": "default",
        "tokens": tokens,
        "types": [2, 3, 6, *[1] * 7, 4],
        "scores": [0.0, 0.0, 0.0, -9.0, -9.0, -2.0, -9.0, -1.0, -4.0, -3.0, 0.0],
        "unknown": 0,
    }
    return SourceTokenizer(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("ab", ["ab"]),
        ("abb", ["abb"]),  # a+bb and ab+b both lead there
        (" ab", ["\u2581a", "b"]),  # the better score joins first
        ("a  b", ["a", "  ", "b"]),  # user-defined tokens are found in the text before all else
        ("A", ["<0x41>"]),
        ("<s>", ["<s>"]),
    ],
)
def test_scores_become_merges(text: str, pieces: list[str]) -> None:
    """SentencePiece joins by score; the merges that are derived do the same."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(make_tokenizer(sentencepiece()).decode())
    assert tokenizer.encode(text).tokens == pieces


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "bert"}, "family 'bert'"),
        ({"pre": "qwen2"}, "pre-tokenizer 'qwen2'"),
        ({"kind": "gpt2", "pre": "gpt-4o"}, "pre-tokenizer 'gpt-4o'"),
        ({"tokens": ["a", "a"]}, "stands twice"),
        ({"kind": "gpt2", "pre": "smollm", "merges": ["a b c"]}, "expected two parts"),
        ({"kind": "gpt2", "pre": "smollm", "merges": ["x y"]}, "cannot build the tokenizer"),
        ({"json": b"{}"}, "tokenizer.json"),
        ({"json": b"\xff"}, "tokenizer.json"),
    ],
)
def test_unknown_vocabularies_are_refused(changes: dict[str, object], words: str) -> None:
    """A tokenizer that has not been tested is worse than none."""
    with pytest.raises(BuildError, match=words):
        make_tokenizer(sentencepiece(**changes))
