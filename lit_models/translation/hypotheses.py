"""What beam search, greedy search and sampling share: hypotheses, their scores, and which tokens may come next.

The searches know nothing of a Transformer. They drive any network that answers `SearchNetwork`: `start` makes a state
from the encoder's memory, `step` reads one token per hypothesis and returns the logits of the next one. A recurrent
decoder with the same two functions can be searched without a change here.

**Length.** The length of a hypothesis is the number of target tokens after BOS. A forced prefix and EOS count.

**Score.** ``log_prob / length_divisor(length, alpha, kind)``, where ``log_prob`` is the sum of the log-probabilities of
all those tokens, EOS and a forced prefix among them.

**Banned tokens.** Padding and what the caller bans get a logit of -inf *before* the log-softmax: the rest of the
vocabulary is a distribution again. Minimum length, n-gram blocking and a forced prefix narrow the search *after* the
log-softmax: they choose among hypotheses and leave the probability of each one as the network gives it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, get_args

import torch
from torch import Tensor

LengthPenaltyKind = Literal["gnmt", "power", "none"]
"""``gnmt``: ((5 + length) / 6)^alpha, Wu et al. 2016, equation 14, also Vaswani et al. 2017. ``power``: length^alpha,
what fairseq, Marian, CTranslate2 and Hugging Face call length penalty. ``none``: 1."""

Length = TypeVar("Length", Tensor, float)

EXTRA_LENGTH = 50
"""Default maximum length: source length + 50 (Vaswani et al. 2017, section 6.1)."""

DROPPED_SHARE = 0.125
"""Finished sentences leave the batch once they are this share of it: leaving copies the caches of those that stay."""

_CACHED_VALUES = 1 << 18


class SearchState(Protocol):
    """What a network remembers between two steps, for ``batch * beam_size`` rows ordered by sentence."""

    def reorder(self, rows: Tensor) -> None:
        """Lets row ``i`` continue what row ``rows[i]`` held; ``rows`` is ``(batch * beam_size,)`` int64."""

    def select(self, sentences: Tensor) -> None:
        """Keeps the sentences ``(kept,)`` int64, in this order, and forgets the others."""


class SearchNetwork(Protocol):
    """A decoder that is advanced one position at a time.

    ``config`` has the token ids ``pad_id``, ``bos_id`` and ``eos_id``.
    """

    config: Any

    def start(self, memory: Tensor, memory_lengths: Tensor, beam_size: int = 1, max_length: int = ...) -> Any:
        """Makes the `SearchState` before the first token."""

    def step(self, tokens: Tensor, state: Any) -> Tensor:
        """Reads ``tokens`` (rows,) int64, advances ``state`` and returns logits ``(rows, vocab)``, float32.

        The caller may overwrite the logits.
        """


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One translation.

    Attributes:
        tokens: Target token ids without BOS and EOS.
        score: ``log_prob`` divided by the length penalty; what the n-best list is sorted by.
        log_prob: Natural logarithm of the probability of ``tokens`` (and of EOS, if ``finished``).
        finished: Whether it ended with EOS. False: it was cut at the maximum length.
    """

    tokens: list[int]
    score: float
    log_prob: float
    finished: bool


def length_divisor(length: Length, alpha: float, kind: LengthPenaltyKind) -> Length:
    """Returns what a log-probability is divided by to make it comparable between lengths: the length penalty.

    Args:
        length: Target tokens after BOS, EOS counted: a number, or a tensor of any shape.
        alpha: Strength. 0 compares plain log-probabilities, larger values favour longer translations.
        kind: Formula, see `LengthPenaltyKind`.

    Returns:
        A number, or a float32 tensor of the shape of ``length``.

    Raises:
        ValueError: ``kind`` is unknown.
    """
    if kind == "gnmt":
        return ((5.0 + length) / 6.0) ** alpha
    if kind == "power":
        return length**alpha
    if kind == "none":
        return length**0.0
    raise ValueError(f"length_penalty_kind is {kind!r}; it must be one of {', '.join(get_args(LengthPenaltyKind))}")


def check_length_penalty(alpha: float) -> None:
    """Raises ValueError if the strength of the length penalty is infinite or not a number."""
    if not math.isfinite(alpha):
        raise ValueError(f"length_penalty is {alpha}; it must be a finite number (0 compares plain log-probabilities)")


def sentences_to_keep(done: Tensor, urgent: Tensor | None = None) -> Tensor | None:
    """Decides whether the finished sentences leave the batch now; costs one wait for the device.

    Args:
        done: Which sentences are finished, ``(batch,)`` bool.
        urgent: Which of the finished ones must not stay, ``(batch,)`` bool; None for none.

    Returns:
        The numbers ``(kept,)`` int64 of the others, or None to let all stay for now.
    """
    must_leave = done.new_zeros(()) if urgent is None else (done & urgent).any()
    num_done, any_urgent = torch.stack((done.sum(), must_leave.long())).tolist()
    if num_done == 0 or (not any_urgent and num_done < DROPPED_SHARE * done.shape[0]):
        return None
    return (~done).nonzero()[:, 0]


def check_numbers(log_probs: Tensor) -> None:
    """Raises ValueError if a log-probability is NaN: the weights are, and no translation means anything."""
    if bool(log_probs.isnan().any()):
        raise ValueError("the network's logits are NaN: its weights are broken, use an earlier checkpoint")


def log_softmax_(logits: Tensor) -> Tensor:
    """Returns the log-softmax of each row ``(rows, vocab)`` as float32, on a CPU in the memory of the logits.

    Rows are done in groups that fit into the processor's cache: a second array of the logits' size is fresh memory at
    every step, and asking the system for it takes longer than the log-softmax itself.
    """
    if logits.device.type != "cpu" or logits.dtype != torch.float32:
        return logits.log_softmax(-1, dtype=torch.float32)
    for rows in logits.split(max(1, _CACHED_VALUES // logits.shape[1])):
        rows.copy_(rows.log_softmax(-1))
    return logits


def resolve_max_length(max_length: Tensor | int | None, memory_lengths: Tensor) -> Tensor:
    """Returns the maximum length of each sentence's translation, ``(batch,)`` int64, on the memory's device.

    Args:
        max_length: One number for all sentences, one per sentence ``(batch,)``, or None for source length + 50.
        memory_lengths: Source tokens of each sentence, ``(batch,)``.

    Raises:
        ValueError: A maximum is below 1, or their number is not that of the sentences.
    """
    lengths = memory_lengths.to(torch.int64)
    if max_length is None:
        return lengths + EXTRA_LENGTH
    limits = torch.as_tensor(max_length, device=lengths.device, dtype=torch.int64)
    if limits.ndim and limits.shape != lengths.shape:
        raise ValueError(f"max_length has shape {tuple(limits.shape)}; the batch has {lengths.shape[0]} sentences")
    if limits.numel() and int(limits.min()) < 1:
        raise ValueError(f"max_length is {int(limits.min())}; it must be at least 1 (EOS counts)")
    return limits.expand_as(lengths).clone()


class TokenRules:
    """Turns logits into log-probabilities of the tokens that may come next; -inf marks those that may not.

    Args:
        network: Its ``config`` tells ``pad_id`` and ``eos_id``.
        limits: Maximum length of each sentence, ``(batch,)`` int64.
        min_length: EOS is not allowed before this many tokens; EOS counts.
        banned_tokens: Token ids that never appear, beside padding.
        no_repeat_ngram_size: No n-gram of this many tokens appears twice; 0 allows all.
        prefix: Forced first tokens ``(batch, prefix_length)`` int64, padded on the right; None for none.

    Raises:
        ValueError: A value is out of its range, or the prefix does not fit.
    """

    def __init__(
        self,
        network: SearchNetwork,
        limits: Tensor,
        *,
        min_length: int = 0,
        banned_tokens: Sequence[int] = (),
        no_repeat_ngram_size: int = 0,
        prefix: Tensor | None = None,
    ) -> None:
        if min_length < 0 or no_repeat_ngram_size < 0:
            name, value = (
                ("min_length", min_length) if min_length < 0 else ("no_repeat_ngram_size", no_repeat_ngram_size)
            )
            raise ValueError(f"{name} is {value}; it must not be negative")
        if limits.numel() and min_length > int(limits.min()):
            raise ValueError(f"min_length {min_length} is larger than the maximum length {int(limits.min())}")
        self.pad_id: int = network.config.pad_id
        self.eos_id: int = network.config.eos_id
        if self.eos_id in banned_tokens:
            raise ValueError(f"banned_tokens contains the end of sentence ({self.eos_id}): no translation could end")
        self.min_length = min_length
        self.no_repeat_ngram_size = no_repeat_ngram_size
        self.banned = torch.tensor(sorted({self.pad_id, *banned_tokens}), device=limits.device)
        self.prefix = None if prefix is None or prefix.shape[-1] == 0 else self._checked(prefix, limits)

    def _checked(self, prefix: Tensor, limits: Tensor) -> Tensor:
        if prefix.ndim != 2 or prefix.shape[0] != limits.shape[0]:
            raise ValueError(
                f"prefix has shape {tuple(prefix.shape)}; it must be (batch, length) for {limits.shape[0]} sentences"
            )
        prefix = prefix.to(limits.device)
        given = prefix != self.pad_id
        if bool((given[:, 1:] & ~given[:, :-1]).any()):
            raise ValueError(f"prefix has padding ({self.pad_id}) before a token; it must be padded on the right")
        forbidden = torch.cat((self.banned, self.banned.new_tensor([self.eos_id])))
        bad = given & torch.isin(prefix, forbidden)
        if bool(bad.any()):
            raise ValueError(f"prefix contains token {int(prefix[bad][0])}, which is banned or ends the sentence")
        if bool((given.sum(1) >= limits).any()):
            raise ValueError("prefix is as long as the maximum length: nothing could follow it")
        return prefix

    def select(self, sentences: Tensor) -> None:
        """Keeps the rules of the sentences ``(kept,)`` int64 only."""
        if self.prefix is not None:
            self.prefix = self.prefix[sentences]

    def log_probs(self, logits: Tensor, history: Tensor) -> Tensor:
        """Returns the log-probabilities of the next token.

        Args:
            logits: ``(rows, vocab)``; overwritten. A sentence's rows are neighbours, and each has as many.
            history: Tokens so far after BOS, ``(rows, length)`` int64.

        Returns:
            ``(rows, vocab)`` float32, -inf where a token may not come next.
        """
        rows, length = history.shape
        logits[:, self.banned] = -torch.inf
        log_probs = log_softmax_(logits)
        forced = None
        if self.prefix is not None and length < self.prefix.shape[1]:
            forced = self.prefix[:, length].repeat_interleave(rows // self.prefix.shape[0])[:, None]
            forced_log_probs = log_probs.gather(1, forced)
        if length + 1 < self.min_length:
            log_probs[:, self.eos_id] = -torch.inf
        if 0 < self.no_repeat_ngram_size <= length:
            log_probs.scatter_(1, self._repeating(history), -torch.inf)
        if forced is not None:
            log_probs.masked_fill_(forced != self.pad_id, -torch.inf)
            log_probs.scatter_(1, forced, forced_log_probs)  # rows without a forced token write padding's -inf
        return log_probs

    def _repeating(self, history: Tensor) -> Tensor:
        """Returns ``(rows, windows)`` tokens that would complete an n-gram for the second time, else padding."""
        size = self.no_repeat_ngram_size
        windows = history.unfold(1, size, 1)
        context = history[:, history.shape[1] - size + 1 :]
        repeats = (windows[..., :-1] == context[:, None]).all(-1)
        return torch.where(repeats, windows[..., -1], self.pad_id)
