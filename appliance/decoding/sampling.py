"""One row of logits in, one token out.

Plain functions change logits (`temperature`, `top_k`, penalties, …), `processors` lines up the ones that a request asks
for, `choose` draws the token. A mask is minus infinity, everywhere: grammars and the loop breaker are processors too.

    params = SamplingParams(temperature=0.7, top_p=0.9, seed=1)
    params.validate(vocabulary_size)
    chain, rng = processors(params, prompt_length), params.generator()
    token = choose(apply(chain, tokens, logits), rng)

Order, and who else has it: bias, penalties (repetition, frequency, presence, then those of `penalties`), `extra`
(grammar masks, loop breaker), temperature, top-k, top-p, min-p. Bias and penalties come first because they say what the
distribution is and must move greedy decoding too; temperature comes before the truncations because OpenAI's clients
expect the nucleus of the tempered distribution. Transformers tempers and truncates in this very order; vLLM too, except
that min-p comes before top-k; llama.cpp truncates first and tempers last, so the same settings keep fewer tokens there
when the temperature is above 1, and more below. A mask commutes with bias and penalties, so its place among them is
free.

No function changes the array that it is given, unless it is given as `out` too; one that has nothing to do returns its
input. A chain writes into a buffer of its own, so make one for each answer and use its result before the next token:
fresh arrays of this size cost more in page faults than in arithmetic. Rows of a batch go through one at a time, since
every request has its own settings.

BUG: over a flat row of 262,144 logits, top-p without a small top-k takes longer than the 2 ms that a token should cost
(3 to 4 ms were measured on a busy machine).

What this does NOT do: make different machines' models agree. The same logits and seed give the same token everywhere,
because `weights` computes to the bit; but a model's logits differ between processor kinds.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from appliance.decoding import penalties, weights
from appliance.decoding.penalties import Tokens as Tokens
from appliance.decoding.penalties import copied as _copy
from appliance.decoding.weights import Logits as Logits
from appliance.errors import InternalError, InvalidRequest

Processor = Callable[[Tokens, Logits], Logits]

GREEDY_BELOW = 1e-5
"""Lower temperatures are greedy: dividing by them says nothing more and overflows."""

_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 10.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "no_repeat_ngram": (0, 64),
    "dry_multiplier": (0.0, 10.0),
    "dry_base": (1.0, 10.0),
    "dry_allowed_length": (1, 64),
    "lz_penalty": (0.0, 10.0),
}
_MAX_BIAS = 100.0


# --- what a request asks for ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How to draw tokens.

    Args:
        temperature: 0 is greedy; up to 2.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together have this probability; 1 keeps all.
        min_p: keep tokens at least this fraction as likely as the best one; 0 keeps all.
        repetition_penalty: divides positive and multiplies negative logits of each token in prompt or answer; 1 is off.
        frequency_penalty: taken off a logit once for each time that the answer holds the token; 0 is off.
        presence_penalty: taken off a logit if the answer holds the token; 0 is off.
        no_repeat_ngram: no n tokens of the answer stand in it twice; 0 is off.
        dry_multiplier: how much a continued repetition costs, growing with its length; 0 is off.
        dry_base: how fast it grows.
        dry_allowed_length: shortest repetition whose next token costs something.
        lz_penalty: how much of what a compressor would save on a token is taken off its logit; 0 is off.
        logit_bias: token id -> number added to its logit, from -100 to 100.
        seed: from -2**63 to 2**63 - 1; None draws one from the operating system.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram: int = 0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    lz_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, without chance."""
        return self.temperature < GREEDY_BELOW

    def generator(self, index: int = 0, purpose: int | None = None) -> np.random.Generator | None:
        """Make the source of chance for one answer; None if greedy, which `choose` understands.

        Args:
            index: which of a request's `n` answers; each has a stream of its own.
            purpose: for draws beside the answer's own: a number for each kind of them.
        """
        if self.greedy:
            return None
        seed = None if self.seed is None else self.seed % 2**64
        key = (index,) if purpose is None else (index, purpose)
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))

    def leaving(self, temperature: float, min_p: float) -> "SamplingParams":
        """Make the settings for the draws that leave a loop: at least this warm, and not without `min_p`.

        A greedy request leaves the same way each time, so its seed is fixed.
        """
        return replace(
            self,
            temperature=max(self.temperature, temperature),
            min_p=max(self.min_p, min_p),
            seed=0 if self.greedy and self.seed is None else self.seed,
        )

    def validate(self, vocabulary_size: int) -> None:
        """Refuse what cannot be meant.

        Args:
            vocabulary_size: number of the model's logits.
        Raises:
            InvalidRequest: a number is out of range or not finite; `param` names the field.
        """
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise _refused(name, f"it is {value}", f"a number from {low:g} to {high:g}")
        if self.top_k < 0:
            raise _refused("top_k", f"it is {self.top_k}", "0 (all tokens) or more")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise _refused("seed", f"it is {self.seed}", "a whole number of 64 bits")
        for token, bias in self.logit_bias.items():
            if not 0 <= token < vocabulary_size:
                raise _refused("logit_bias", f"it names token {token}", f"a token from 0 to {vocabulary_size - 1}")
            if not -_MAX_BIAS <= bias <= _MAX_BIAS:
                raise _refused("logit_bias", f"token {token} has {bias}", "a number from -100 to 100")


def _refused(name: str, found: str, expected: str) -> InvalidRequest:
    return InvalidRequest(
        f"cannot sample with this {name}: {found}, expected {expected}",
        hint=f"correct {name}, or leave it out to use the model's default",
        param=name,
    )


def processors(
    params: SamplingParams,
    prompt_length: int = 0,
    extra: Sequence[Processor] = (),
    breakers: Collection[int] = (),
) -> list[Processor]:
    """Line up what a request asks for, in the order that the module explains; what is off takes no time.

    Args:
        params: validated settings.
        prompt_length: how many of the tokens are the prompt, which frequency and presence penalties leave out.
        extra: grammar masks and the loop breaker; they see penalized logits, before temperature.
        breakers: tokens that no repetition reaches across for DRY, see `penalties.sequence_breakers`.
    """
    p, start, out = params, prompt_length, _Buffer()
    chain: list[Processor] = [lambda tokens, x: require_sound(x)]
    if p.logit_bias:
        chain.append(lambda tokens, x: logit_bias(x, p.logit_bias, out.like(x)))
    if p.repetition_penalty != 1:
        chain.append(lambda tokens, x: repetition_penalty(x, p.repetition_penalty, tokens, out.like(x)))
    if p.frequency_penalty != 0:
        chain.append(lambda tokens, x: frequency_penalty(x, p.frequency_penalty, tokens[start:], out.like(x)))
    if p.presence_penalty != 0:
        chain.append(lambda tokens, x: presence_penalty(x, p.presence_penalty, tokens[start:], out.like(x)))
    chain.extend(_repetition(p, start, breakers, out))
    chain.extend(extra)
    if p.temperature != 1:
        chain.append(lambda tokens, x: temperature(x, p.temperature, out.like(x)))
    if p.greedy:
        return chain
    if p.top_k > 0:
        chain.append(lambda tokens, x: top_k(x, p.top_k, out.like(x)))
    if p.top_p < 1:
        chain.append(lambda tokens, x: top_p(x, p.top_p, out.like(x)))
    if p.min_p > 0:
        chain.append(lambda tokens, x: min_p(x, p.min_p, out.like(x)))
    return chain


def _repetition(p: SamplingParams, start: int, breakers: Collection[int], out: "_Buffer") -> list[Processor]:
    """The penalties that look for repetitions of several tokens."""
    chain: list[Processor] = []
    if p.no_repeat_ngram > 0:
        chain.append(lambda tokens, x: penalties.no_repeat_ngram(x, p.no_repeat_ngram, tokens[start:], out.like(x)))
    if p.dry_multiplier != 0:
        dry = (p.dry_base, p.dry_allowed_length, breakers)
        chain.append(lambda tokens, x: penalties.dry(x, p.dry_multiplier, tokens, *dry, out.like(x)))
    if p.lz_penalty != 0:
        chain.append(lambda tokens, x: penalties.lz(x, p.lz_penalty, tokens, out.like(x)))
    return chain


class _Buffer:
    """One array that a chain writes into, made when the first row shows its size."""

    __slots__ = ("_array",)

    def __init__(self) -> None:
        self._array: Logits | None = None

    def like(self, logits: Logits) -> Logits:
        if self._array is None or self._array.shape != logits.shape:
            self._array = np.empty_like(logits)
        return self._array


def apply(chain: Sequence[Processor], tokens: Tokens, logits: Logits) -> Logits:
    """Pass logits through a chain."""
    for processor in chain:
        logits = processor(tokens, logits)
    return logits


# --- bias and penalties -----------------------------------------------------------------------------------------------


def require_sound(logits: Logits) -> Logits:
    """Let a model's own logits through; minus infinity stands for those that were not computed.

    Raises:
        InternalError: one is not a number or plus infinity, or none is a number: the model or its kernel is broken,
            and a token drawn from it would look like an answer.
    """
    return logits if math.isfinite(logits.max()) else require_finite(logits)  # a maximum carries NaN


def require_finite(logits: Logits) -> Logits:
    """Let a model's own logits through, all of them.

    Raises:
        InternalError: one is not a number or infinite.
    """
    # Two reductions instead of isfinite: both carry NaN, and neither makes an array.
    if not (math.isfinite(logits.max()) and math.isfinite(logits.min())):
        bad = int(np.count_nonzero(~np.isfinite(logits)))
        raise InternalError(
            f"cannot sample: {bad} of {logits.size} logits are not finite, expected numbers",
            hint="verify the model package; if it is sound, report a defect",
        )
    return logits


def logit_bias(logits: Logits, biases: Mapping[int, float], out: Logits | None = None) -> Logits:
    """Add to chosen tokens' logits.

    Args:
        logits: float32, shape (vocabulary,).
        biases: token id -> number to add.
    Source: OpenAI's API reference, `logit_bias`.
    """
    out = _copy(logits, out)
    ids = np.fromiter(biases.keys(), np.intp, len(biases))
    out[ids] += np.fromiter(biases.values(), np.float32, len(biases))
    return out


def repetition_penalty(logits: Logits, penalty: float, tokens: Tokens, out: Logits | None = None) -> Logits:
    """Make every token that was seen less likely, however often it was seen.

    Args:
        logits: float32, shape (vocabulary,).
        penalty: above 1 discourages, below 1 encourages.
        tokens: prompt and answer.
    Raises:
        ValueError: the penalty is not positive.
    Source: Keskar et al. 2019 (CTRL), section 4.1, in the form that Transformers gave it: negative logits are
        multiplied, since dividing them would reward.
    """
    if not penalty > 0:
        raise ValueError(f"penalty must be positive, not {penalty}")
    ids = np.asarray(tokens, np.intp)
    # Read before anything is written, so that a token seen twice is still penalized once.
    seen = logits[ids]
    out = _copy(logits, out)
    out[ids] = np.where(seen > 0, seen / np.float32(penalty), seen * np.float32(penalty))
    return out


def frequency_penalty(logits: Logits, penalty: float, tokens: Tokens, out: Logits | None = None) -> Logits:
    """Take `penalty` off a token's logit for each time that it was seen.

    Args:
        logits: float32, shape (vocabulary,).
        penalty: below 0 encourages.
        tokens: the answer so far, without the prompt.
    Source: OpenAI's API guide, frequency and presence penalties.
    """
    out = _copy(logits, out)
    ids, counts = np.unique(np.asarray(tokens, np.intp), return_counts=True)
    out[ids] -= np.float32(penalty) * counts.astype(np.float32)
    return out


def presence_penalty(logits: Logits, penalty: float, tokens: Tokens, out: Logits | None = None) -> Logits:
    """Take `penalty` off a token's logit once, if it was seen.

    Args:
        logits: float32, shape (vocabulary,).
        penalty: below 0 encourages.
        tokens: the answer so far, without the prompt.
    Source: OpenAI's API guide, frequency and presence penalties.
    """
    ids = np.asarray(tokens, np.intp)
    lowered = logits[ids] - np.float32(penalty)
    out = _copy(logits, out)
    out[ids] = lowered
    return out


# --- temperature and truncation ---------------------------------------------------------------------------------------


def temperature(logits: Logits, value: float, out: Logits | None = None) -> Logits:
    """Sharpen below 1, flatten above; 0 masks all but the best token, of equal ones the one with the lowest id.

    Args:
        logits: float32, shape (vocabulary,).
        value: 0 or more; below `GREEDY_BELOW` it is 0.
    Returns:
        The logits over the temperature, shifted so that the best one is 0, which changes no probability.
    Raises:
        ValueError: the temperature is negative or not a number.
    """
    if not value >= 0:
        raise ValueError(f"temperature must not be negative, not {value}")
    if value < GREEDY_BELOW:
        best = logits.argmax()
        out = np.empty_like(logits) if out is None else out
        out.fill(-np.inf)
        out[best] = 0
        return out
    # Shift first: then only what is too far below the best can overflow, and minus infinity is what it should become.
    with np.errstate(over="ignore"):
        out = np.subtract(logits, logits.max(), out=out)
        out /= np.float32(value)
    return out


def top_k(logits: Logits, k: int, out: Logits | None = None) -> Logits:
    """Mask all but the `k` likeliest tokens; of equal ones the lowest ids stay.

    Args:
        logits: float32, shape (vocabulary,).
        k: at least 1.
    Raises:
        ValueError: `k` is below 1.
    Source: Fan et al. 2018, section 5.4.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if k >= logits.size:
        return logits
    return _keep(logits, *_kth_best(logits, k), out)


def top_p(logits: Logits, p: float, out: Logits | None = None) -> Logits:
    """Mask all but the fewest likeliest tokens that together have probability `p`; of equal ones the lowest ids stay.

    Args:
        logits: float32, shape (vocabulary,).
        p: from 0 (the best token only) to 1 (all).
    Raises:
        ValueError: `p` is outside [0, 1].
    Source: Holtzman et al. 2020, section 3.1.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must be from 0 to 1, not {p}")
    if p == 1:
        return logits
    return _keep(logits, *weights.nucleus(logits, p), out)


def min_p(logits: Logits, p: float, out: Logits | None = None) -> Logits:
    """Mask tokens less likely than `p` times the best one.

    Args:
        logits: float32, shape (vocabulary,).
        p: from 0 (all) to 1 (the best token and its equals).
    Raises:
        ValueError: `p` is outside [0, 1].
    Source: Nguyen et al. 2024, section 3.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must be from 0 to 1, not {p}")
    if p == 0:
        return logits
    return _keep(logits, logits.max() + np.float32(math.log(p)), 0, out)


def _keep(logits: Logits, threshold: np.float32, surplus: int, out: Logits | None) -> Logits:
    """Keep what reaches `threshold`, without the last `surplus` of those that equal it."""
    out = np.empty_like(logits) if out is None else out
    keep = logits >= threshold
    if surplus:
        keep[np.flatnonzero(logits == threshold)[-surplus:]] = False
    if 16 * np.count_nonzero(keep) < keep.size:
        ids = np.flatnonzero(keep)
        few = logits[ids]
        out.fill(-np.inf)
        out[ids] = few
        return out
    for block in weights.blocks(logits.size):
        # +inf keeps and -inf masks under minimum. Unlike np.where this has no branch to mispredict: 6x faster when the
        # kept tokens lie scattered.
        limit = keep[block].astype(np.float32)
        limit -= np.float32(0.5)
        limit *= np.float32(np.inf)
        np.minimum(logits[block], limit, out=out[block])
    return out


def _kth_best(logits: Logits, k: int) -> tuple[np.float32, int]:
    """Find the k-th best logit, and how many reach it beyond k."""
    candidates = logits[_candidates(logits, k)]
    threshold = np.partition(candidates, -k)[-k]
    return threshold, int(np.count_nonzero(candidates >= threshold)) - k


def _candidates(logits: Logits, k: int) -> NDArray[np.intp] | slice:
    """Narrow the search for the k best: a few tokens that surely hold them."""
    # The k-th best maximum of any partition into blocks has k logits at or above it, so it is a lower bound.
    step = max(1, logits.size // 512)
    maxima = np.maximum.reduceat(logits, np.arange(0, logits.size, step))
    if k > maxima.size:
        return slice(None)
    return np.flatnonzero(logits >= np.partition(maxima, -k)[-k])


# --- the draw ---------------------------------------------------------------------------------------------------------


def choose(logits: Logits, rng: np.random.Generator | None) -> int:
    """Draw one token by its probability; without `rng` take the best one, of equal ones the one with the lowest id.

    Args:
        logits: float32, shape (vocabulary,); masked tokens, at minus infinity, are never drawn.
        rng: gives 64 bits a token, whatever the logits are; `SamplingParams.generator` makes it.
    Raises:
        InternalError: there is a NaN or a plus infinity, or every token is masked.
    """
    first = int(logits.argmax())
    best = logits[first]  # argmax stops at a NaN, so this one element speaks for all
    if not math.isfinite(best):
        found = "every token is masked" if best == -np.inf else f"a logit is {best}"
        raise InternalError(
            f"cannot sample: {found}, expected at least one finite logit and no NaN", hint="report this as a defect"
        )
    if rng is None:
        return first
    return weights.draw(logits, _bits(rng))


def _bits(rng: np.random.Generator) -> int:
    # The raw stream of PCG64 is fixed for ever; numpy may change how Generator's own methods use it.
    return int(rng.bit_generator.random_raw())


# --- what the model thought -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities in the model's own distribution, before any processor.

    Args:
        token: the one that was drawn.
        logprob: its own.
        top: (token, logprob) of the likeliest ones, best first, equal ones by id; may or may not hold `token`.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def logprobs(logits: Logits, token: int, top: int = 0) -> TokenLogprobs:
    """Say how likely the model itself found a token, and which it found likeliest.

    Args:
        logits: the model's, float32, shape (vocabulary,): not yet processed, since OpenAI's and vLLM's are not either.
        token: the one that was drawn.
        top: how many of the likeliest to list, from 0.
    Raises:
        InternalError: a logit is not finite.
        ValueError: `top` is negative or larger than the vocabulary.
    """
    if not 0 <= top <= logits.size:
        raise ValueError(f"top must be from 0 to {logits.size}, not {top}")
    require_finite(logits)
    best = logits.max()
    total = math.fsum(
        float(np.exp(logits[block] - best).sum(dtype=np.float64)) for block in weights.blocks(logits.size)
    )
    normalizer = float(best) + math.log(total)
    likeliest = _best_ids(logits, top) if top else []
    return TokenLogprobs(
        token=token,
        logprob=float(logits[token]) - normalizer,
        top=tuple((i, float(logits[i]) - normalizer) for i in likeliest),
    )


def _best_ids(logits: Logits, k: int) -> list[int]:
    """Find the ids of the k best logits, best first, equal ones by id."""
    found = _candidates(logits, k)
    ids = np.arange(logits.size) if isinstance(found, slice) else found
    order = np.argsort(-logits[ids], kind="stable")
    return [int(i) for i in ids[order[:k]]]
