"""The public attention function and its checks."""

import torch
from torch import Tensor

from kernels.flash_attention import reference


def flash_attention(
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
    """Compute ``softmax(query keyᵀ · scale + bias) value`` (Vaswani et al. 2017, section 3.2.1).

    Args:
        query: (batch, heads, query_length, head_dim), floating point, any strides.
        key: (batch, key_heads, key_length, head_dim); ``key_heads`` divides ``heads`` (grouped-query attention).
        value: (batch, key_heads, key_length, value_head_dim).
        causal: Query ``i`` sees keys up to ``i + key_length - query_length``, so that a block of queries that is
            shorter than the keys sees the whole past, as in cached decoding.
        key_lengths: (batch,) int32 or int64; keys at or after an example's length are not seen. Values above
            ``key_length`` mean all keys.
        bias: Added to the scores; broadcasts to (batch, heads, query_length, key_length).
        dropout_p: Probability of dropping an attention weight, in [0, 1).
        scale: Factor of the scores; ``head_dim ** -0.5`` if None.

    Returns:
        (batch, heads, query_length, value_head_dim) in the dtype of ``query``. A query that sees no key gives 0.

    Raises:
        ValueError: If ranks, shapes, dtypes, devices or ``dropout_p`` do not fit; the message names the argument.
    """
    _check(query, key, value, key_lengths, bias, dropout_p)
    return reference.attention(
        query, key, value, causal=causal, key_lengths=key_lengths, bias=bias, dropout_p=dropout_p, scale=scale
    )


def attention_weights(
    query: Tensor,
    key: Tensor,
    *,
    causal: bool = False,
    key_lengths: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Return the attention weights that :func:`flash_attention` never holds: an explicit slow path for looking at them.

    Args:
        query: As for :func:`flash_attention`.
        key: As for :func:`flash_attention`.
        causal: As for :func:`flash_attention`.
        key_lengths: As for :func:`flash_attention`.
        scale: As for :func:`flash_attention`.

    Returns:
        (batch, heads, query_length, key_length); each row sums to 1, or to 0 if its query sees no key.

    Raises:
        ValueError: As :func:`flash_attention` does.
    """
    _check(query, key, key, key_lengths, None, 0.0)
    mask = reference.attention_mask(
        query.shape[2], key.shape[2], causal=causal, key_lengths=key_lengths, device=query.device
    )
    weights = reference.softmax_scores(query, key, mask=mask, scale=scale)
    return weights if mask is None else weights.masked_fill(~mask, 0.0)


def _check(
    query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None, bias: Tensor | None, dropout_p: float
) -> None:
    """Raise a ValueError that names the argument at fault. Looks at shapes only: no device synchronisation."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 4:
            raise ValueError(f"{name} must be (batch, heads, length, head_dim), got shape {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
        if tensor.dtype != query.dtype or tensor.device != query.device:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, query is {query.dtype} on {query.device}: "
                "both must be the same"
            )
        if tensor.shape[0] != query.shape[0]:
            raise ValueError(f"{name} has batch {tensor.shape[0]}, query has batch {query.shape[0]}")
    if key.shape[3] != query.shape[3]:
        raise ValueError(f"key has head_dim {key.shape[3]}, query has {query.shape[3]}: they must be equal")
    if key.shape[1:3] != value.shape[1:3]:
        raise ValueError(f"key {tuple(key.shape)} and value {tuple(value.shape)} must agree in heads and length")
    if key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        raise ValueError(f"the {key.shape[1]} heads of key must divide the {query.shape[1]} heads of query")
    if key_lengths is not None:
        if key_lengths.shape != query.shape[:1] or key_lengths.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"key_lengths must be ({query.shape[0]},) int32 or int64, got {tuple(key_lengths.shape)} "
                f"{key_lengths.dtype}"
            )
        if key_lengths.device != query.device:
            raise ValueError(f"key_lengths is on {key_lengths.device}, query on {query.device}")
    if bias is not None:
        scores = (*query.shape[:3], key.shape[2])
        missing = (1,) * (4 - bias.dim())
        if bias.dim() > 4 or any(b not in (1, s) for b, s in zip((*missing, *bias.shape), scores, strict=True)):
            raise ValueError(f"bias of shape {tuple(bias.shape)} does not broadcast to the scores {scores}")
        if bias.device != query.device:
            raise ValueError(f"bias is on {bias.device}, query on {query.device}")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p}")
