"""Attention in plain PyTorch: the oracle of the tests and the path on a CPU."""

import torch
from torch import Tensor
from torch.nn import functional

from kernels.dropout import dropout


def attention_mask(
    query_length: int,
    key_length: int,
    *,
    causal: bool,
    key_lengths: Tensor | None,
    device: torch.device,
) -> Tensor | None:
    """Return which keys each query may see, or None if it may see all of them.

    Args:
        query_length: Number of queries.
        key_length: Number of keys.
        causal: Query ``i`` sees the keys up to ``i + key_length - query_length``: both sequences end together.
        key_lengths: (batch,) integers, the number of valid keys of each example.
        device: Where to build the mask.

    Returns:
        A boolean tensor that broadcasts to (batch, 1, query_length, key_length), True where the key is visible.
    """
    mask = None
    if causal and query_length > 1:
        last_visible = torch.arange(query_length, device=device) + (key_length - query_length)
        mask = torch.arange(key_length, device=device) <= last_visible[:, None]
    if key_lengths is not None:
        valid = torch.arange(key_length, device=device) < key_lengths.to(device)[:, None, None, None]
        mask = valid if mask is None else mask & valid
    return mask


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    key_lengths: Tensor | None = None,
    bias: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Compute what :func:`kernels.flash_attention` computes, through torch's scaled_dot_product_attention."""
    query_length, key_length = query.shape[2], key.shape[2]
    # On a CPU it costs next to nothing to look at the values, and an unneeded mask costs a slower kernel.
    if key_lengths is not None and key_lengths.device.type == "cpu" and bool((key_lengths >= key_length).all()):
        key_lengths = None
    grouped = query.shape[1] != key.shape[1]
    if key_length == 0:
        return query.new_zeros(*query.shape[:3], value.shape[3])
    explicit = query.device.type == "cpu" and (dropout_p > 0.0 or _slow_fused_backward(query, key, value))
    if not explicit and key_lengths is None and bias is None and (not causal or query_length == key_length):
        return functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout_p, is_causal=causal, scale=scale, enable_gqa=grouped
        )
    mask = attention_mask(query_length, key_length, causal=causal, key_lengths=key_lengths, device=query.device)
    # A query without any key must give 0 and pass no gradient, whatever the values behind the mask are.
    blind = None
    if mask is not None and _may_be_blind(query_length, key_length, causal, key_lengths):
        blind = ~mask.any(dim=-1, keepdim=True)
        mask = mask | blind
    if bias is not None:
        bias = bias.to(query.dtype)
        mask = bias if mask is None else torch.where(mask, bias, float("-inf"))
    if explicit:
        # torch has no fused attention with dropout on a CPU, and its fallback spends its time drawing the mask.
        weights = dropout(softmax_scores(query, key, mask=mask, scale=scale), dropout_p)
        output = weights @ repeat_heads(value, query.shape[1])
    else:
        output = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout_p, scale=scale, enable_gqa=grouped
        )
    return output if blind is None else output.masked_fill(blind, 0.0)


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets_query: Tensor,
    offsets_key: Tensor,
    max_length_query: int,
    max_length_key: int,
    *,
    causal: bool,
    dropout_p: float,
    scale: float | None,
) -> Tensor:
    """Compute what :func:`kernels.flash_attention_varlen` computes, sequences of equal lengths together.

    The offsets are read on the host; on a GPU that waits for them.
    """
    equal: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (first, end), (first_key, end_key) in zip(
        _segments(offsets_query, query.shape[0], max_length_query),
        _segments(offsets_key, key.shape[0], max_length_key),
        strict=True,
    ):
        equal.setdefault((end - first, end_key - first_key), []).append((first, first_key))
    parts, places = [], []
    for (length, key_length), starts in equal.items():
        firsts = torch.tensor(starts, device=query.device)
        rows, key_rows = _rows(firsts[:, 0], length), _rows(firsts[:, 1], key_length)
        sequences = (
            tensor.index_select(0, chosen.flatten()).unflatten(0, chosen.shape).transpose(1, 2)
            for tensor, chosen in ((query, rows), (key, key_rows), (value, key_rows))
        )
        parts.append(
            attention(*sequences, causal=causal, dropout_p=dropout_p, scale=scale).transpose(1, 2).flatten(0, 1)
        )
        places.append(rows.flatten())
    # What belongs to no sequence is zero: the row behind all others.
    parts.append(query.new_zeros(1, query.shape[1], value.shape[2]))
    found = torch.cat(places) if places else offsets_query.new_empty(0, dtype=torch.long)
    source = torch.full((query.shape[0],), len(found), device=query.device)
    source[found] = torch.arange(len(found), device=query.device)
    return torch.cat(parts).index_select(0, source)


def _rows(starts: Tensor, length: int) -> Tensor:
    """Return the numbers of the rows of sequences of one length, (sequences, length)."""
    return starts[:, None] + torch.arange(length, device=starts.device)


def _segments(offsets: Tensor, tokens: int, max_length: int) -> list[tuple[int, int]]:
    """Return where each sequence begins and ends, inside the tensor and at most ``max_length`` long."""
    bounds = [min(max(offset, 0), tokens) for offset in offsets.tolist()]
    return [(first, min(max(end, first), first + max_length)) for first, end in zip(bounds, bounds[1:], strict=False)]


def _may_be_blind(query_length: int, key_length: int, causal: bool, key_lengths: Tensor | None) -> bool:
    """Whether a query could be without any key: above the diagonal's start, or in an example without keys."""
    if causal and query_length > key_length:
        return True
    if key_lengths is None or key_lengths.device.type != "cpu":
        return key_lengths is not None  # to look at the values on a device would be to wait for it
    return bool((key_lengths < 1).any())


def _slow_fused_backward(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether torch's fused backward on a CPU is slower than plain matrix products.

    In bfloat16 it is at short lengths; at about 512 tokens the two meet, and the score matrix grows large.
    """
    trains = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    return trains and query.dtype != torch.float32 and query.shape[2] * key.shape[2] < 512 * 512


def repeat_heads(tensor: Tensor, heads: int) -> Tensor:
    """Repeat the (batch, key_heads, length, head_dim) heads of grouped-query attention up to ``heads``."""
    return tensor if tensor.shape[1] == heads else tensor.repeat_interleave(heads // tensor.shape[1], dim=1)


def softmax_scores(query: Tensor, key: Tensor, *, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Return the softmax of the scores, (batch, heads, query_length, key_length).

    Args:
        query: (batch, heads, query_length, head_dim).
        key: (batch, key_heads, key_length, head_dim).
        mask: Broadcasts to the scores: boolean, True where the key is visible, or floating point, added to the scores.
        scale: Factor of the scores; ``head_dim ** -0.5`` if None.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * scale) @ repeat_heads(key, query.shape[1]).transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1)
