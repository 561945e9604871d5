"""From a GGUF file's vocabulary to a `tokenizer.json`.

Two families are known: byte-level BPE ("gpt2") with the pre-tokenizers of SmolLM2, Qwen 2 and 3, and LFM2, and
SentencePiece-style BPE with byte fallback ("llama" in GGUF, although Gemma is meant here). A safetensors source brings
its own tokenizer.json, which is only checked. The tests hold both against other implementations, string by string.

What this does NOT do: unigram models, and pre-tokenizers that have not been tested: those are refused, because a
wrong one still gives answers, only worse. And Unicode normalization: Qwen's own tokenizer composes characters (NFC)
first; here, as in llama.cpp, text is taken as it is.

Source: GGUF specification (tokenizer.ggml.*), Hugging Face tokenizers; Sennrich et al. 2016 (BPE); Kudo and
Richardson 2018 (SentencePiece).
"""

import re
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from appliance.errors import BuildError
from appliance.forge.weights import SourceTokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # GGUF's token types
_SPACE = "\u2581"  # SentencePiece's visible space
_INNER_SPACE = re.compile(f"[^{_SPACE}]{_SPACE}")
# Where words end, by GGUF's names: contractions, letters, up to so many digits, marks, line ends, blanks.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {"qwen2": _WORDS.replace("DIGITS", ""), "lfm2": _WORDS.replace("DIGITS", "{1,3}")}
_BYTE_LEVEL = ("smollm", *_PATTERNS)


def make_tokenizer(source: SourceTokenizer) -> bytes:
    """Make the tokenizer.json of a source: the same source gives the same bytes.

    Raises:
        BuildError: a family or pre-tokenizer that is not known, or a vocabulary that contradicts itself.
    """
    if source.json is not None:
        return _checked(source.json)
    if len(set(source.tokens)) != len(source.tokens):
        raise BuildError("cannot build the tokenizer: a token stands twice in the vocabulary, expected distinct tokens")
    if source.kind == "gpt2" and source.pre in _BYTE_LEVEL:
        tokenizer = _byte_level(source)
    elif source.kind == "llama" and source.pre == "default":
        tokenizer = _sentencepiece(source)
    else:
        raise BuildError(
            f"cannot build the tokenizer: family {source.kind!r} with pre-tokenizer {source.pre!r}, "
            f"expected gpt2 with {' or '.join(_BYTE_LEVEL)}, or llama with default",
            hint="bring the model as safetensors with its own tokenizer.json",
        )
    _add_special(tokenizer, source)
    return tokenizer.to_str().encode()


def _byte_level(source: SourceTokenizer) -> Tokenizer:
    """Words by the rules of the pre-tokenizer, then BPE over the bytes of each."""
    merges = []
    for rank, merge in enumerate(source.merges):
        left, space, right = merge.partition(" ")
        if not (left and space and right) or " " in right:
            raise BuildError(f"cannot build the tokenizer: merge {rank} is {merge!r}, expected two parts")
        merges.append((left, right))
    vocabulary = {token: i for i, token in enumerate(source.tokens)}
    # LFM2 takes a word that is a token as it is, whatever its merges would make of it.
    options = {"ignore_merges": True} if source.pre == "lfm2" else {}
    tokenizer = _bpe(models.BPE, vocab=vocabulary, merges=merges, fuse_unk=False, byte_fallback=False, **options)
    pattern = _PATTERNS.get(source.pre)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [  # SmolLM2: digits apart one by one, then GPT-2's own words
            pre_tokenizers.Split(Regex(pattern or r"\p{N}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(source: SourceTokenizer) -> Tokenizer:
    """Spaces made visible, no words: BPE over the whole text, unknown characters as bytes."""
    vocabulary = {token: i for i, token in enumerate(source.tokens)}
    unknown = None if source.unknown is None else source.tokens[source.unknown]
    tokenizer = _bpe(
        models.BPE,
        vocab=vocabulary,
        merges=_merges(source, vocabulary),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    # Where no piece has a space behind another character, cutting before each run of spaces changes nothing, and BPE
    # goes word by word instead of over the whole prompt at once.
    if not any(_INNER_SPACE.search(t) for t, kind in zip(source.tokens, source.types, strict=True) if kind == _NORMAL):
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{_SPACE}*[^{_SPACE}]+|{_SPACE}+"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _merges(source: SourceTokenizer, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Derive BPE merges from SentencePiece's scores.

    SentencePiece joins the neighbours whose joint piece has the best score; so every way to cut a piece into two
    pieces is a merge with the rank of the piece. Among the cuts of one piece the order is that of the parts' ids.
    """
    pieces = [
        (-score, i)
        for i, (score, kind) in enumerate(zip(source.scores, source.types, strict=True))
        if kind == _NORMAL and len(source.tokens[i]) > 1
    ]
    pieces.sort()
    parts = {source.tokens[i]: i for i, kind in enumerate(source.types) if kind == _NORMAL}
    merges: list[tuple[str, str]] = []
    for _, i in pieces:
        piece = source.tokens[i]
        cuts = []
        for at in range(1, len(piece)):
            left, right = parts.get(piece[:at]), parts.get(piece[at:])
            if left is not None and right is not None:
                cuts.append((left, right))
        merges.extend((source.tokens[left], source.tokens[right]) for left, right in sorted(cuts))
    return merges


def _bpe(make: type[models.BPE], **arguments: Any) -> Tokenizer:
    try:
        return Tokenizer(make(**arguments))
    except Exception as e:
        raise BuildError(f"cannot build the tokenizer: {e}") from e


def _add_special(tokenizer: Tokenizer, source: SourceTokenizer) -> None:
    """Tell the tokenizer which tokens are found in the text before any other rule."""
    typed = list(zip(source.tokens, source.types, strict=True))
    special = [t for t, kind in typed if kind in (_CONTROL, _UNKNOWN)]
    plain = [t for t, kind in typed if kind == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain])


def _checked(data: bytes) -> bytes:
    try:
        Tokenizer.from_str(data.decode())
    except Exception as e:
        raise BuildError(f"cannot use the source's tokenizer.json: {str(e)[:200]}") from e
    return data
