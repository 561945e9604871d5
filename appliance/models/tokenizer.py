"""Text to tokens and tokens to bytes, from the package's own `tokenizer.json`.

Text that comes from a caller never turns into a control token: a user who writes `<|im_start|>` gets these characters
tokenized like any others. Only a template's own words may be control tokens (`special=True`).

No word of a text is kept: the library's cache of words is off.

Source: the `tokenizers` library's file format; GPT-2's byte-to-unicode table for byte-level models.
"""

import json
import threading
from typing import Any

import tokenizers

from appliance.errors import CardMismatch

_SPACE = "\u2581"  # SentencePiece's visible blank


class Tokenizer:
    """The tokenizer of one model.

    Attributes:
        token_bytes: for each token id the bytes it stands for; empty for control tokens.
        control: text of each control token, and its id.
        names: text of each token beyond the plain vocabulary, by id.
    """

    def __init__(self, data: bytes, *, bos: int | None = None) -> None:
        """Read a `tokenizer.json`.

        Args:
            data: the file.
            bos: token to begin every prompt with; None for models that want none.
        Raises:
            CardMismatch: it is not a tokenizer that this version understands.
        """
        try:
            text = data.decode("utf-8")
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
            if isinstance(self._tokenizer.model, tokenizers.models.BPE | tokenizers.models.Unigram):
                # The words of callers would stay in each thread that has tokenized, after the tokenizer has gone.
                self._tokenizer.model._resize_cache(0)
            described = json.loads(text)
        except Exception as e:
            raise CardMismatch(f"cannot read tokenizer.json: {str(e)[:200]}") from e
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._bos = bos
        self._lock = threading.Lock()
        added = {t["id"]: t for t in described.get("added_tokens", [])}
        self.names = {i: t["content"] for i, t in added.items()}
        self.control = {t["content"]: i for i, t in added.items() if t.get("special")}
        self.token_bytes = _token_bytes(self._tokenizer, described, added)
        self._longest = max(max(map(len, self.token_bytes)), max(map(len, self.names.values()), default=0))

    def cover(self, vocabulary_size: int) -> None:
        """Give ids that a model can say but the tokenizer does not know the empty text: padding of the vocabulary.

        Raises:
            CardMismatch: the tokenizer has more tokens than the model.
        """
        missing = vocabulary_size - len(self.token_bytes)
        if missing < 0:
            raise CardMismatch(
                f"cannot use tokenizer.json: {len(self.token_bytes)} tokens, expected at most {vocabulary_size}"
            )
        self.token_bytes.extend([b""] * missing)

    @property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return self._longest

    def __len__(self) -> int:
        return len(self.token_bytes)

    def encode(self, text: str, *, special: bool = False, bos: bool = True) -> list[int]:
        """Tokenize.

        Args:
            text: any string.
            special: whether control tokens may come out of it; only for text that Skerry or a signed template wrote.
            bos: whether to begin with the model's first token, if it has one.
        """
        with self._lock:  # the library's switch belongs to the tokenizer, not to the call
            self._tokenizer.encode_special_tokens = not special
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if bos and self._bos is not None and ids[:1] != [self._bos]:
            return [self._bos, *ids]
        return ids


def _token_bytes(tokenizer: Any, described: dict[str, Any], added: dict[int, dict[str, Any]]) -> list[bytes]:
    byte_level = "ByteLevel" in json.dumps([described.get("decoder"), described.get("pre_tokenizer")])
    table = _byte_of_character() if byte_level else {}
    result = [b""] * tokenizer.get_vocab_size(with_added_tokens=True)
    for token, index in tokenizer.get_vocab(with_added_tokens=True).items():
        if index >= len(result):
            raise CardMismatch(f"cannot use tokenizer.json: token id {index} of {len(result)} tokens")
        if index in added:
            result[index] = b"" if added[index].get("special") else token.encode()
        elif byte_level:
            result[index] = bytes(table[c] for c in token) if all(c in table for c in token) else token.encode()
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            result[index] = bytes([int(token[3:5], 16)])
        else:
            result[index] = token.replace(_SPACE, " ").encode()
    return result


def _byte_of_character() -> dict[str, int]:
    """Invert GPT-2's table, which gives every byte a printable character."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in printable}
    table |= {chr(0x100 + n): b for n, b in enumerate(b for b in range(256) if b not in printable)}
    return table
