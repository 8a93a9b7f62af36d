"""What may be given to the attention functions. Looks at shapes only: nothing waits for a device."""

import math

import torch
from torch import Tensor

HEAD_DIMS = (16, 256)


def check_dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_lengths: Tensor | None,
    bias: Tensor | None,
    dropout_p: float,
    scale: float | None,
) -> None:
    """Raise a ValueError that names the argument at fault."""
    _check_tensors(query, key, value, ("batch", "heads", "length", "head_dim"))
    for name, tensor in (("key", key), ("value", value)):
        if tensor.shape[0] != query.shape[0]:
            raise ValueError(f"{name} has batch {tensor.shape[0]}, query has batch {query.shape[0]}")
    _check_heads(query, key, value, heads=1, length=2)
    if key_lengths is not None:
        _check_integers("key_lengths", key_lengths, query.shape[:1], query.device)
    if bias is not None:
        scores = (*query.shape[:3], key.shape[2])
        missing = (1,) * (4 - bias.dim())
        if bias.dim() > 4 or any(b not in (1, s) for b, s in zip((*missing, *bias.shape), scores, strict=True)):
            raise ValueError(f"bias of shape {tuple(bias.shape)} does not broadcast to the scores {scores}")
        if not bias.is_floating_point():
            raise ValueError(f"bias must be floating point, added to the scores, got {bias.dtype}")
        if bias.device != query.device:
            raise ValueError(f"bias is on {bias.device}, query on {query.device}")
    _check_settings(dropout_p, scale)


def check_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets_query: Tensor,
    offsets_key: Tensor,
    max_length_query: int,
    max_length_key: int,
    dropout_p: float,
    scale: float | None,
) -> None:
    """Raise a ValueError that names the argument at fault."""
    _check_tensors(query, key, value, ("tokens", "heads", "head_dim"))
    _check_heads(query, key, value, heads=1, length=0)
    if offsets_query.dim() != 1 or offsets_query.shape[0] < 1:
        raise ValueError(f"offsets_query must be (sequences + 1,), got {tuple(offsets_query.shape)}")
    for name, offsets in (("offsets_query", offsets_query), ("offsets_key", offsets_key)):
        _check_integers(name, offsets, offsets_query.shape, query.device)
    for name, length, tokens in (
        ("max_length_query", max_length_query, query.shape[0]),
        ("max_length_key", max_length_key, key.shape[0]),
    ):
        if not 0 <= length <= tokens:
            raise ValueError(f"{name} must be from 0 to the {tokens} packed tokens, got {length}")
    _check_settings(dropout_p, scale)


def check_triton(query: Tensor, value: Tensor) -> None:
    """Raise a ValueError if the Triton kernels do not take a head_dim."""
    smallest, largest = HEAD_DIMS
    for name, head_dim in (("query", query.shape[-1]), ("value", value.shape[-1])):
        if head_dim % 8 or not smallest <= head_dim <= largest:
            raise ValueError(
                f"{name} has head_dim {head_dim}; the Triton kernels take multiples of 8 from {smallest} to {largest}. "
                'kernels.use_backend("torch") takes any'
            )


def _check_tensors(query: Tensor, key: Tensor, value: Tensor, axes: tuple[str, ...]) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != len(axes):
            raise ValueError(f"{name} must be ({', '.join(axes)}), got shape {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
        if tensor.dtype != query.dtype or tensor.device != query.device:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, query is {query.dtype} on {query.device}: "
                "both must be the same"
            )


def _check_heads(query: Tensor, key: Tensor, value: Tensor, *, heads: int, length: int) -> None:
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"key has head_dim {key.shape[-1]}, query has {query.shape[-1]}: they must be equal")
    if query.shape[-1] == 0:
        raise ValueError("query has head_dim 0")
    if key.shape[heads] != value.shape[heads] or key.shape[length] != value.shape[length]:
        raise ValueError(f"key {tuple(key.shape)} and value {tuple(value.shape)} must agree in heads and length")
    if key.shape[heads] == 0 or query.shape[heads] % key.shape[heads]:
        raise ValueError(f"the {key.shape[heads]} heads of key must divide the {query.shape[heads]} heads of query")


def _check_integers(name: str, tensor: Tensor, shape: torch.Size, device: torch.device) -> None:
    if tensor.shape != shape or tensor.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} must be {tuple(shape)} int32 or int64, got {tuple(tensor.shape)} {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, query on {device}")


def _check_settings(dropout_p: float, scale: float | None) -> None:
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p}")
    if scale is not None and not 0.0 < scale < math.inf:
        raise ValueError(f"scale must be a positive number, got {scale}")
