"""How much a quantization costs, measured and not assumed.

    figures = evaluate(model, weights, text)

runs the model and the float32 reference over the same text and compares: perplexity of each, the mean divergence of
their distributions, and how often they agree on the likeliest token. The station writes the figures to the card.

What this does NOT show: how good the model is at anything. A text of a thousand tokens separates quantizations of one
model; it does not rank models, and perplexities under different tokenizers do not compare. The figures are those of the
station's processor: int8 kernels differ a little from one kind to another.

Source: perplexity is exp of the mean negative log likelihood; KL divergence after Kullback and Leibler 1951, in nats.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tokenizers
from numpy.typing import NDArray

from appliance.engine.session import Session
from appliance.errors import BuildError
from appliance.files import Progress, no_progress
from appliance.forge import reference as plain
from appliance.forge.weights import Weights
from appliance.models.card import Figures

DEFAULT_TOKENS = 1024
_ROWS = 64  # logits that are held at a time, of each of the two

Logits = NDArray[np.float32]
Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Text:
    """What to measure on."""

    name: str
    content: bytes


@dataclass
class _Sums:
    tokens: int = 0
    loss: float = 0.0
    reference_loss: float = 0.0
    divergence: float = 0.0
    agreed: int = 0


def evaluate(
    model: Session,
    reference: Session | Weights,
    text: Text,
    *,
    max_tokens: int = DEFAULT_TOKENS,
    progress: Progress = no_progress,
) -> Figures:
    """Compare a model with its float32 reference.

    Args:
        model: the quantized one.
        reference: the source's weights, or another session of the same tokenizer.
        text: UTF-8.
        max_tokens: how many of its tokens to predict.
    Raises:
        BuildError: the text is too short, or the two models do not have the same tokens.
    """
    if isinstance(reference, Session) and _tokenizer_file(reference) != _tokenizer_file(model):
        raise BuildError(f"cannot compare {model.card.name} with {reference.card.name}: their tokenizers differ")
    tokens = _tokens(model, text, max_tokens)
    inputs, targets = tokens[:-1], tokens[1:]
    if isinstance(reference, Session):
        expected = _session_logits(reference, inputs)
    else:
        expected = plain.logits(reference, plain.hidden_states(reference, inputs, portion(progress, 0.0, 0.5)), _ROWS)
    sums, report = _Sums(), portion(progress, 0.5, 1.0)
    for found, wanted in zip(_session_logits(model, inputs), expected, strict=True):
        report(f"measuring {model.card.name}", sums.tokens / len(targets))
        for row in range(len(found)):
            _add(sums, found[row], wanted[row], int(targets[sums.tokens]))
    progress(f"measuring {model.card.name}", 1.0)
    n = sums.tokens
    return Figures(
        text=text.name,
        text_sha256=hashlib.sha256(text.content).hexdigest(),
        tokens=n,
        perplexity=round(float(np.exp(sums.loss / n)), 3),
        reference_perplexity=round(float(np.exp(sums.reference_loss / n)), 3),
        kl_divergence=round(max(0.0, sums.divergence / n), 6),
        top1_agreement=round(sums.agreed / n, 4),
    )


def portion(progress: Progress, start: float, stop: float) -> Progress:
    """Give a step its share of the whole bar."""

    def report(what: str, fraction: float) -> None:
        progress(what, start + (stop - start) * fraction)

    return report


def _tokens(model: Session, text: Text, max_tokens: int) -> Tokens:
    card = model.card
    # The bare library: the engine's own class also makes tables for decoding, which take memory beside two models.
    tokenizer = tokenizers.Tokenizer.from_str(_tokenizer_file(model).decode())
    tokenizer.encode_special_tokens = True  # prose holds no control tokens
    ids = tokenizer.encode(text.content.decode("utf-8", "replace"), add_special_tokens=False).ids
    if card.tokens.add_bos and card.tokens.bos is not None:
        ids = [card.tokens.bos, *ids]
    ids = ids[: min(max_tokens + 1, card.context_length)]
    if len(ids) < 2:
        raise BuildError(f"cannot measure on {text.name}: {len(ids)} tokens, expected at least 2")
    return np.array(ids, np.int64)


def _tokenizer_file(session: Session) -> bytes:
    return bytes(session.model.files["tokenizer.json"])


def _session_logits(session: Session, tokens: Tokens) -> Iterator[Logits]:
    cache = session.new_cache(len(tokens))
    for start in range(0, len(tokens), _ROWS):
        chunk = tokens[start : start + _ROWS]
        yield session.forward(cache, chunk, np.arange(len(chunk), dtype=np.int64))


def _add(sums: _Sums, found: Logits, expected: Logits, target: int) -> None:
    """Add one position: logits of both, shape (vocabulary,), and the token that really followed."""
    log_sum, _ = _log_sum_exp(found)
    reference_log_sum, weights = _log_sum_exp(expected)
    sums.loss += log_sum - float(found[target])
    sums.reference_loss += reference_log_sum - float(expected[target])
    # KL = sum p (log p - log q); the logarithms of the sums stand outside of the sum because p sums to one.
    difference = float((weights * (expected - found)).sum(dtype=np.float64) / weights.sum(dtype=np.float64))
    sums.divergence += difference - reference_log_sum + log_sum
    sums.agreed += int(found.argmax() == expected.argmax())
    sums.tokens += 1


def _log_sum_exp(logits: Logits) -> tuple[float, Logits]:
    """Logarithm of the sum of exponentials, and the exponentials scaled to a largest of 1."""
    peak = logits.max()
    weights = np.exp(logits - peak)
    return float(np.log(weights.sum(dtype=np.float64)) + peak), weights
