"""Greedy search and sampling: every hypothesis goes its own way, one token at a time.

Sampling follows Fan et al. 2018 (top-k, arXiv 1805.04833) and Holtzman et al. 2020 (top-p, arXiv 1904.09751).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lit_models.translation.hypotheses import (
    Hypothesis,
    LengthPenaltyKind,
    SearchNetwork,
    TokenRules,
    check_length_penalty,
    check_numbers,
    length_divisor,
    resolve_max_length,
    sentences_to_keep,
)

LEAST_TEMPERATURE = 1e-6
"""Smaller ones would divide log-probabilities beyond what float32 holds."""


@torch.inference_mode()
def greedy_search(
    network: SearchNetwork,
    memory: Tensor,
    memory_lengths: Tensor,
    *,
    max_length: Tensor | int | None = None,
    length_penalty: float = 0.6,
    length_penalty_kind: LengthPenaltyKind = "gnmt",
    min_length: int = 0,
    banned_tokens: Sequence[int] = (),
    no_repeat_ngram_size: int = 0,
    prefix: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """Takes the most probable token at every position.

    The arguments are those of `lit_models.translation.search.beam_search`. The length penalty changes the score that is
    reported, never the tokens.

    Returns:
        One list for each sentence with its one hypothesis.

    Raises:
        ValueError: An argument is out of its range, or the logits are NaN.
    """
    check_length_penalty(length_penalty)
    limits = resolve_max_length(max_length, memory_lengths)
    rules = TokenRules(
        network,
        limits,
        min_length=min_length,
        banned_tokens=banned_tokens,
        no_repeat_ngram_size=no_repeat_ngram_size,
        prefix=prefix,
    )
    tokens, log_prob = _decode_rows(network, memory, memory_lengths, limits, rules, 1, lambda row: row.max(-1).indices)
    return _collect(tokens, log_prob, rules, length_penalty, length_penalty_kind)


@torch.inference_mode()
def sample_search(
    network: SearchNetwork,
    memory: Tensor,
    memory_lengths: Tensor,
    *,
    num_hypotheses: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    max_length: Tensor | int | None = None,
    length_penalty: float = 0.6,
    length_penalty_kind: LengthPenaltyKind = "gnmt",
    min_length: int = 0,
    banned_tokens: Sequence[int] = (),
    no_repeat_ngram_size: int = 0,
    prefix: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """Draws every token from the network's distribution, sharpened and cut as asked.

    Temperature, then top-k, then top-p shape the distribution that is drawn from. ``log_prob`` and ``score`` of the
    result stay those of the network itself, so that they compare with the scores of a beam.

    Args:
        network: See `lit_models.translation.search.beam_search`, as for all arguments that are not named here.
        memory: What the encoder made, ``(batch, source_length, dim)``.
        memory_lengths: Valid positions of each memory, ``(batch,)``.
        num_hypotheses: Independent draws for each sentence; the same translation may come twice.
        temperature: Divides the log-probabilities; above 0. Below 1 is bolder, above 1 more varied.
        top_k: Only this many most probable tokens are drawn from; 0 for all.
        top_p: Only the most probable tokens that together reach this probability are drawn from; in (0, 1].
        generator: Source of random numbers, on the device of ``memory``. The same state and the same batch give the
            same translations; the draws of a sentence depend on the others of its batch.
        max_length: Target tokens at most.
        length_penalty: Strength of the length penalty.
        length_penalty_kind: Its formula.
        min_length: Target tokens at least.
        banned_tokens: Token ids that never appear.
        no_repeat_ngram_size: No n-gram of this many tokens appears twice; 0 allows all.
        prefix: Forced first tokens.

    Returns:
        ``num_hypotheses`` hypotheses for each sentence, best score first.

    Raises:
        ValueError: An argument is out of its range, or the logits are NaN.
    """
    check_sampling(temperature, top_k, top_p)
    check_length_penalty(length_penalty)
    if num_hypotheses < 1:
        raise ValueError(f"num_hypotheses is {num_hypotheses}; it must be at least 1")
    limits = resolve_max_length(max_length, memory_lengths)
    rules = TokenRules(
        network,
        limits,
        min_length=min_length,
        banned_tokens=banned_tokens,
        no_repeat_ngram_size=no_repeat_ngram_size,
        prefix=prefix,
    )

    def draw(log_probs: Tensor) -> Tensor:
        kept = filter_log_probs(log_probs / temperature, top_k, top_p)
        # The largest of p / Exponential(1) falls on a token with probability p: a draw that needs no host check.
        waiting = torch.empty_like(kept).exponential_(generator=generator).clamp_min_(torch.finfo(kept.dtype).tiny)
        return (kept - waiting.log_()).argmax(-1)

    tokens, log_prob = _decode_rows(network, memory, memory_lengths, limits, rules, num_hypotheses, draw)
    return _collect(tokens, log_prob, rules, length_penalty, length_penalty_kind)


def check_sampling(temperature: float, top_k: int, top_p: float) -> None:
    """Raises ValueError, naming the argument, if one of the sampling arguments is out of its range."""
    if not LEAST_TEMPERATURE <= temperature < float("inf"):
        raise ValueError(
            f"temperature is {temperature}; it must be above 0, at least {LEAST_TEMPERATURE:g} and finite (greedy "
            "search is the limit at 0)"
        )
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}; it must be 0 (all tokens) or a positive number of tokens")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1 (all tokens)")


def filter_log_probs(log_probs: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Sets tokens that may not be drawn to -inf: first all but the ``top_k``, then all outside the ``top_p`` nucleus.

    The nucleus is the smallest set of most probable tokens whose probabilities reach ``top_p``; it has at least one.

    Args:
        log_probs: ``(rows, vocab)``, up to an additive constant for each row.
        top_k: Tokens to keep; 0 for all.
        top_p: Probability to keep, in (0, 1].

    Returns:
        Tensor of the same shape.
    """
    if 0 < top_k < log_probs.shape[-1]:
        kept, tokens = log_probs.topk(top_k, dim=-1)
        log_probs = torch.full_like(log_probs, -torch.inf).scatter_(-1, tokens, kept)
    if top_p < 1.0:
        ordered, tokens = log_probs.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        reached_before = probabilities.cumsum(-1) - probabilities >= top_p
        reached_before[..., 0] = False
        outside = torch.zeros_like(reached_before).scatter_(-1, tokens, reached_before)
        log_probs = log_probs.masked_fill(outside, -torch.inf)
    return log_probs


def _decode_rows(
    network: SearchNetwork,
    memory: Tensor,
    memory_lengths: Tensor,
    limits: Tensor,
    rules: TokenRules,
    rows_per_sentence: int,
    choose: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Extends all hypotheses token by token; a sentence may leave the batch when all its hypotheses have ended.

    Returns:
        Tokens ``(batch, rows_per_sentence, length)`` int64, EOS included, filled with padding, and their
        log-probabilities ``(batch, rows_per_sentence)`` float32.
    """
    batch, device = memory.shape[0], memory.device
    longest = int(limits.max()) if batch else 0
    tokens = torch.full((batch, rows_per_sentence, longest), rules.pad_id, device=device)
    log_prob = torch.zeros(batch, rows_per_sentence, device=device)
    sentences = torch.arange(batch, device=device)
    alive = torch.ones(batch, rows_per_sentence, dtype=torch.bool, device=device)
    latest = torch.full((batch * rows_per_sentence,), network.config.bos_id, device=device)
    if not batch:
        return tokens, log_prob
    state = network.start(memory, memory_lengths, beam_size=rows_per_sentence, max_length=longest)
    for position in range(longest):
        history = tokens[sentences, :, :position].flatten(0, 1)
        log_probs = rules.log_probs(network.step(latest, state), history)
        chosen = choose(log_probs)
        gained = log_probs.gather(1, chosen[:, None]).view_as(alive)
        chosen = torch.where(alive, chosen.view_as(alive), rules.pad_id)
        tokens[sentences, :, position] = chosen
        log_prob[sentences] += torch.where(alive, gained, 0.0)
        alive = alive & (chosen != rules.eos_id) & (position + 1 < limits)[:, None]
        kept = sentences_to_keep(~alive.any(1))
        if kept is not None:
            if not kept.numel():
                return tokens[..., : position + 1], log_prob
            sentences, alive, limits, chosen = sentences[kept], alive[kept], limits[kept], chosen[kept]
            rules.select(kept)
            state.select(kept)
        latest = chosen.flatten()
    return tokens, log_prob


def _collect(
    tokens: Tensor, log_prob: Tensor, rules: TokenRules, alpha: float, kind: LengthPenaltyKind
) -> list[list[Hypothesis]]:
    """Makes sorted hypotheses of tokens ``(batch, rows, length)`` and their log-probabilities ``(batch, rows)``."""
    check_numbers(log_prob)
    lengths = (tokens != rules.pad_id).sum(-1)
    finished = (tokens == rules.eos_id).any(-1)
    scores = log_prob / length_divisor(lengths, alpha, kind)
    columns = (tokens, lengths - finished.long(), scores, log_prob, finished)
    found = [
        [
            Hypothesis(row[:length], score, total, ended)
            for row, length, score, total, ended in zip(*sentence, strict=True)
        ]
        for sentence in zip(*(column.tolist() for column in columns), strict=True)
    ]
    return [sorted(hypotheses, key=lambda hypothesis: -hypothesis.score) for hypotheses in found]
