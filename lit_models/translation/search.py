"""Beam search as one batched state machine over any network with ``start`` and ``step``.

`beam_search`, `greedy_search` and `sample_search` return the n best `Hypothesis` of every sentence; `score_target`
gives the log-probability of a translation that is known. How length, score and bans are defined: `hypotheses.py`.

**The beam.** At every step each sentence's ``beam_size`` live hypotheses are extended by every token, and the best
``2 * beam_size`` extensions are looked at. Those among the best ``beam_size`` that end with EOS are finished; the best
``beam_size`` that do not end stay alive. This is the beam of fairseq and of Hugging Face, and with equal settings it
finds the same translations.

**When it stops.** See `StopRule`. A finished hypothesis never stops a sentence by coming out on top of one step: a live
one may still have the better length-normalised score in the end.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lit_models.translation.hypotheses import (
    Hypothesis,
    LengthPenaltyKind,
    SearchNetwork,
    SearchState,
    TokenRules,
    check_length_penalty,
    check_numbers,
    length_divisor,
    resolve_max_length,
    sentences_to_keep,
)
from lit_models.translation.sampling import greedy_search, sample_search

__all__ = [
    "Hypothesis",
    "LengthPenaltyKind",
    "SearchNetwork",
    "SearchState",
    "StopRule",
    "beam_search",
    "greedy_search",
    "length_divisor",
    "sample_search",
    "score_target",
]

StopRule = Literal["exact", "estimate", "first"]
"""When a sentence is done, beside reaching its maximum length.

``exact``: n hypotheses are finished and no live one can still beat the worst of them: not even if it ended, without
losing another bit of probability, at the length where the penalty is kindest to it (Hugging Face's
``early_stopping="never"``). ``estimate``: ``beam_size`` hypotheses are finished and no live one beats the worst of them
at its present length (``early_stopping=False``, its default). ``first``: ``beam_size`` hypotheses are finished
(``early_stopping=True``)."""


@torch.inference_mode()
def beam_search(
    network: SearchNetwork,
    memory: Tensor,
    memory_lengths: Tensor,
    *,
    beam_size: int = 4,
    max_length: Tensor | int | None = None,
    length_penalty: float = 0.6,
    length_penalty_kind: LengthPenaltyKind = "gnmt",
    num_hypotheses: int = 1,
    stop: StopRule = "exact",
    min_length: int = 0,
    banned_tokens: Sequence[int] = (),
    no_repeat_ngram_size: int = 0,
    prefix: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """Searches the translations with the best length-normalised scores.

    A beam of one is greedy search: it follows one hypothesis and ends where that one ends. Equal scores are ordered
    by the rank of the hypothesis that was extended. A sentence's result does not depend on the rest of the batch.

    Args:
        network: A network with ``start`` and ``step``.
        memory: What the encoder made, ``(batch, source_length, dim)``.
        memory_lengths: Valid positions of each memory, ``(batch,)``.
        beam_size: Live hypotheses of each sentence.
        max_length: Target tokens at most, EOS counted: a number, ``(batch,)`` numbers, or None for source length + 50.
        length_penalty: Its alpha; 0 compares plain log-probabilities.
        length_penalty_kind: Its formula.
        num_hypotheses: The n of the n-best list, at most ``beam_size``.
        stop: When a sentence is done.
        min_length: Target tokens at least, EOS counted.
        banned_tokens: Token ids that never appear; padding never does.
        no_repeat_ngram_size: No n-gram of this many tokens appears twice; 0 allows all.
        prefix: Forced first tokens, ``(batch, prefix_length)`` int64, padded on the right; None for none.

    Returns:
        The n best hypotheses of each sentence, best score first, no two alike. Live hypotheses that were cut at the
        maximum length (``finished`` is False) follow only where fewer than n have finished. Fewer than n come back
        only where no more exist.

    Raises:
        ValueError: An argument is out of its range, or the logits are NaN.
    """
    _check_beam(beam_size, num_hypotheses, stop)
    check_length_penalty(length_penalty)
    if beam_size == 1 and stop != "first":  # a beam of one that ends with its first finished hypothesis is the same
        return greedy_search(
            network,
            memory,
            memory_lengths,
            max_length=max_length,
            length_penalty=length_penalty,
            length_penalty_kind=length_penalty_kind,
            min_length=min_length,
            banned_tokens=banned_tokens,
            no_repeat_ngram_size=no_repeat_ngram_size,
            prefix=prefix,
        )
    limits = resolve_max_length(max_length, memory_lengths)
    rules = TokenRules(
        network,
        limits,
        min_length=min_length,
        banned_tokens=banned_tokens,
        no_repeat_ngram_size=no_repeat_ngram_size,
        prefix=prefix,
    )
    if not limits.numel():
        return []
    beams = _Beams(rules, limits, beam_size, num_hypotheses, stop, length_penalty, length_penalty_kind)
    state = network.start(memory, memory_lengths, beam_size=beam_size, max_length=int(limits.max()))
    tokens = torch.full((limits.shape[0] * beam_size,), network.config.bos_id, device=limits.device)
    while True:
        rows = beams.advance(network.step(tokens, state))
        kept = beams.release()
        if kept is not None and not kept.numel():
            return beams.results
        if rows is not None:
            state.reorder(rows)
        if kept is not None:
            state.select(kept)
        tokens = beams.latest


def _check_beam(beam_size: int, num_hypotheses: int, stop: str) -> None:
    if beam_size < 1:
        raise ValueError(f"beam_size is {beam_size}; it must be at least 1")
    if not 1 <= num_hypotheses <= beam_size:
        raise ValueError(f"num_hypotheses is {num_hypotheses}; it must be from 1 to beam_size ({beam_size})")
    if stop not in get_args(StopRule):
        raise ValueError(f"stop is {stop!r}; it must be one of {', '.join(get_args(StopRule))}")


class _Beams:
    """Live and finished hypotheses of the sentences that are still in the batch.

    Attributes:
        results: Hypotheses of all sentences; a sentence's list is empty until it is released.
        live_tokens: ``(batch, beam_size, length)`` int64.
        live_log_probs: ``(batch, beam_size)`` float32, best first; -inf where there is no hypothesis.
        done_tokens: Finished hypotheses, EOS included, ``(batch, kept, length)``, filled with padding.
        done_scores: Their scores ``(batch, kept)``, best first; -inf where there is none yet.
        done_log_probs: Their log-probabilities ``(batch, kept)``.
    """

    def __init__(
        self,
        rules: TokenRules,
        limits: Tensor,
        beam_size: int,
        num_hypotheses: int,
        stop: StopRule,
        alpha: float,
        kind: LengthPenaltyKind,
    ) -> None:
        batch, device = limits.shape[0], limits.device
        self.rules, self.limits, self.stop = rules, limits, stop
        self.beam_size, self.num_hypotheses, self.alpha, self.kind = beam_size, num_hypotheses, alpha, kind
        # The stop rules of others wait for a full beam; for an exact answer the n best are enough.
        kept = num_hypotheses if stop == "exact" else beam_size
        self.results: list[list[Hypothesis]] = [[] for _ in range(batch)]
        self.sentences = torch.arange(batch, device=device)
        self.live_tokens = torch.empty(batch, beam_size, 0, dtype=torch.int64, device=device)
        self.live_log_probs = torch.full((batch, beam_size), -torch.inf, device=device)
        self.live_log_probs[:, 0] = 0.0  # all start alike: one of them is enough
        self.done_tokens = torch.empty(batch, kept, 0, dtype=torch.int64, device=device)
        self.done_scores = torch.full((batch, kept), -torch.inf, device=device)
        self.done_log_probs = torch.full((batch, kept), -torch.inf, device=device)
        self.over = torch.zeros(batch, dtype=torch.bool, device=device)
        self.identity = torch.arange(batch * beam_size, device=device)

    @property
    def latest(self) -> Tensor:
        """The last token of each live hypothesis, ``(batch * beam_size,)`` int64."""
        return self.live_tokens[..., -1].flatten()

    def advance(self, logits: Tensor) -> Tensor | None:
        """Extends every live hypothesis by one token.

        Args:
            logits: ``(batch * beam_size, vocab)`` float32; overwritten.

        Returns:
            The row that each row continues, ``(batch * beam_size,)`` int64, or None if each continues itself.
        """
        log_probs, tokens, parents = self._best_extensions(logits)
        ends = tokens == self.rules.eos_id
        finished = ends[:, : self.beam_size] & log_probs[:, : self.beam_size].isfinite() & ~self.over[:, None]
        lives = ends.to(torch.int8).sort(dim=1, stable=True).indices[:, : self.beam_size]
        rows = parents.gather(1, lives)
        first_rows = self.identity[:: self.beam_size][: rows.shape[0], None]
        flat_rows = (rows + first_rows).flatten()
        any_finished, reordered = torch.stack((finished.any(), (flat_rows != self.identity).any())).tolist()
        if any_finished:
            self._finish(finished, log_probs, tokens, parents)
        history = self.live_tokens
        if reordered:
            history = history.flatten(0, 1)[flat_rows].view_as(history)
        self.live_tokens = torch.cat((history, tokens.gather(1, lives)[..., None]), dim=2)
        self.live_log_probs = log_probs.gather(1, lives)
        self.over |= self._is_over()
        return flat_rows if reordered else None

    def _best_extensions(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns log-probabilities, tokens and parents of the best extensions, each ``(batch, 2 * beam_size)``."""
        batch, beam_size = self.live_log_probs.shape
        log_probs = self.rules.log_probs(logits, self.live_tokens.flatten(0, 1))
        # None of a hypothesis's own extensions after the first 2 * beam_size can be among the best of the sentence.
        count = min(2 * beam_size, log_probs.shape[1])
        gained, tokens = largest(log_probs, count)
        totals = (gained.view(batch, beam_size, count) + self.live_log_probs[..., None]).flatten(1)
        best, places = totals.sort(dim=1, descending=True, stable=True)
        best, places = best[:, : 2 * beam_size], places[:, : 2 * beam_size]
        return best, tokens.view(batch, -1).gather(1, places), places // count

    def _finish(self, finished: Tensor, log_probs: Tensor, tokens: Tensor, parents: Tensor) -> None:
        """Merges the extensions that end, marked by ``finished`` ``(batch, beam_size)``, into the finished ones."""
        batch, kept, old_length = self.done_tokens.shape
        length = self.live_tokens.shape[2] + 1
        log_probs, tokens, parents = (column[:, : self.beam_size] for column in (log_probs, tokens, parents))
        scores = (log_probs / length_divisor(float(length), self.alpha, self.kind)).masked_fill(~finished, -torch.inf)
        index = parents[..., None].expand(-1, -1, length - 1)
        sequences = torch.cat((self.live_tokens.gather(1, index), tokens[..., None]), dim=2)
        old = torch.nn.functional.pad(self.done_tokens, (0, length - old_length), value=self.rules.pad_id)
        merged = torch.cat((self.done_scores, scores), dim=1)
        self.done_scores, order = merged.sort(dim=1, descending=True, stable=True)
        self.done_scores, order = self.done_scores[:, :kept], order[:, :kept]
        self.done_log_probs = torch.cat((self.done_log_probs, log_probs), dim=1).gather(1, order)
        self.done_tokens = torch.cat((old, sequences), dim=1).gather(1, order[..., None].expand(-1, -1, length))

    def _is_over(self) -> Tensor:
        """Returns which sentences are done, ``(batch,)`` bool."""
        length = self.live_tokens.shape[2]
        best, worst = self.live_log_probs[:, 0], self.done_scores[:, -1]
        over = (length >= self.limits) | ~best.isfinite()
        if self.stop == "first":
            return over | worst.isfinite()
        if self.stop == "estimate":
            kindest = torch.full_like(self.limits, length)
        else:
            # Log-probabilities are not positive: a growing divisor favours the longest end, a shrinking one the next.
            kindest = self.limits if self.alpha > 0 else torch.full_like(self.limits, length + 1)
        return over | (best / length_divisor(kindest, self.alpha, self.kind) <= worst)

    def release(self) -> Tensor | None:
        """Takes the sentences that are done out of the batch, once they are many enough.

        Returns:
            The numbers of the sentences that stay, ``(kept,)`` int64, or None if all stay.
        """
        # Live hypotheses go on growing while their sentence stays: one that needs them leaves at once.
        incomplete = ~self.done_scores[:, self.num_hypotheses - 1].isfinite()
        kept = sentences_to_keep(self.over, urgent=incomplete)
        if kept is None:
            return None
        self._collect(self.over.nonzero()[:, 0])
        self.rules.select(kept)
        self.sentences, self.limits, self.over = self.sentences[kept], self.limits[kept], self.over[kept]
        self.live_tokens, self.live_log_probs = self.live_tokens[kept], self.live_log_probs[kept]
        self.done_tokens, self.done_scores = self.done_tokens[kept], self.done_scores[kept]
        self.done_log_probs = self.done_log_probs[kept]
        self.identity = self.identity[: kept.shape[0] * self.beam_size]
        return kept

    def _collect(self, leaving: Tensor) -> None:
        """Writes the results of the sentences whose numbers in the batch are ``leaving`` ``(n,)``."""
        check_numbers(self.live_log_probs[leaving])
        done_tokens = self.done_tokens[leaving]
        lengths = (done_tokens != self.rules.pad_id).sum(-1) - 1  # without EOS
        done = (done_tokens, lengths, self.done_scores[leaving], self.done_log_probs[leaving])
        live_log_probs = self.live_log_probs[leaving]
        live_scores = live_log_probs / length_divisor(float(self.live_tokens.shape[2]), self.alpha, self.kind)
        live = (self.live_tokens[leaving], live_scores, live_log_probs)
        sentences = self.sentences[leaving].tolist()
        done_lists = zip(*(column.tolist() for column in done), strict=True)
        live_lists = zip(*(column.tolist() for column in live), strict=True)
        for sentence, done_list, live_list in zip(sentences, done_lists, live_lists, strict=True):
            found = [
                Hypothesis(tokens[:length], score, log_prob, True)
                for tokens, length, score, log_prob in zip(*done_list, strict=True)
            ]
            found += [
                Hypothesis(tokens, score, log_prob, False) for tokens, score, log_prob in zip(*live_list, strict=True)
            ]
            existing = [hypothesis for hypothesis in found if hypothesis.score > -math.inf]
            self.results[sentence] = existing[: self.num_hypotheses]


def largest(values: Tensor, count: int, groups: int = 256) -> tuple[Tensor, Tensor]:
    """Returns the ``count`` largest values of each row, largest first, and their columns: ``topk`` made fast on a CPU.

    PyTorch's ``topk`` looks at one value at a time on a CPU. The largest values lie in the groups of columns (every
    ``groups``-th) with the largest maxima, and maxima are computed eight or sixteen at a time.

    Args:
        values: ``(rows, columns)``.
        count: At most ``columns``.
        groups: Number of groups.

    Returns:
        Values ``(rows, count)`` and columns ``(rows, count)`` int64.
    """
    rows, columns = values.shape
    members = columns // groups
    if values.device.type != "cpu" or members < 8 or 4 * count > groups:
        top = values.topk(count, dim=1)
        return top.values, top.indices
    grouped = members * groups
    best_groups = values[:, :grouped].view(rows, members, groups).amax(1).topk(count, dim=1).indices
    candidates = (best_groups[..., None] + groups * torch.arange(members)).flatten(1)
    rest = torch.arange(grouped, columns).expand(rows, -1)
    candidates = torch.cat((candidates, rest), dim=1)
    top = values.gather(1, candidates).topk(count, dim=1)
    return top.values, candidates.gather(1, top.indices)


@torch.inference_mode()
def score_target(
    network: Any,
    source: Tensor,
    source_lengths: Tensor,
    target_input: Tensor,
    target_output: Tensor,
    *,
    banned_tokens: Sequence[int] = (),
) -> Tensor:
    """Returns the log-probability of each given translation, EOS included: what a search reports as ``log_prob``.

    All positions are computed at once.

    Args:
        network: A network with ``encode``, ``decode`` and ``project``.
        source: Source tokens ``(batch, source_length)`` int64, padded on the right.
        source_lengths: ``(batch,)``.
        target_input: ``BOS y1 ... yn``, ``(batch, target_length)`` int64, padded on the right.
        target_output: ``y1 ... yn EOS``, ``(batch, target_length)`` int64; positions with padding do not count.
        banned_tokens: What the search bans beside padding.

    Returns:
        ``(batch,)`` float32.
    """
    pad_id = network.config.pad_id
    memory = network.encode(source, source_lengths)
    logits = network.project(network.decode(target_input, memory, source_lengths))
    logits[..., [pad_id, *banned_tokens]] = -torch.inf
    log_probs = logits.log_softmax(-1, dtype=torch.float32).gather(2, target_output[..., None])[..., 0]
    return log_probs.masked_fill(target_output == pad_id, 0.0).sum(1)
