"""The public shifted-window attention and its checks."""

from typing import Literal, get_args

import torch
from torch import Tensor

from kernels.backend import runs_triton
from kernels.window_attention import reference
from kernels.window_attention.geometry import Geometry

PadMode = Literal["pad_then_roll", "roll_then_pad"]


def window_attention(
    qkv: Tensor,
    bias: Tensor | None = None,
    *,
    window_size: int | tuple[int, int],
    shift: int | tuple[int, int] = 0,
    num_heads: int,
    scale: float | None = None,
    pad_mode: PadMode = "pad_then_roll",
    qkv_padding: Tensor | None = None,
    logit_scale: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attend within the windows of a shifted map, with relative positions (Liu et al. 2021, section 3.2).

    The map goes in as the projection of its queries, keys and values left it and comes out in place: padding, cyclic
    shift, partition and the mask between the parts that a shift brings together are index arithmetic.

    Args:
        qkv: (batch, height, width, 3 · channels), floating point: queries, keys and values, each head by head, as one
            linear layer makes them; contiguous in the last dimension.
        bias: ((2 · window height - 1) · (2 · window width - 1), num_heads): the table of what is added to the scores,
            by the offset of query and key: row ``(row offset + window height - 1) · (2 · window width - 1) + column offset
            + window width - 1``. None for none.
        window_size: Rows and columns of a window, or one number for both. A map that it does not divide is padded at
            the bottom and at the right.
        shift: Rows and columns that the map is rolled by, upwards and to the left, before it is cut, in [0, window).
        num_heads: Divides the channels.
        scale: Positive factor of the scores; ``head_dim ** -0.5`` if None. Not with ``logit_scale``.
        pad_mode: Whether the map is padded first (torchvision, Microsoft's detection) or rolled first (timm).
        qkv_padding: (3 · channels,), what padded tokens hold, which real ones attend to: the bias of the projection, as
            where the map is padded before it. None for 0.
        logit_scale: (num_heads,) positive; the scores are then cosines of queries and keys times it (Liu et al. 2022,
            Swin Transformer V2, section 3.3).
        dropout_p: Probability of dropping an attention weight, in [0, 1).

    Returns:
        (batch, height, width, channels) in the dtype of ``qkv``.

    Raises:
        ValueError: If a shape, a dtype, a device or a number does not fit; the message names the argument.
    """
    window, shift = _pair("window_size", window_size), _pair("shift", shift)
    _check_map(qkv, num_heads, window, shift, pad_mode)
    _check_scores(qkv, bias, qkv_padding, logit_scale, num_heads, window)
    _check_numbers(scale, logit_scale, dropout_p)
    geometry = Geometry(qkv.shape[1], qkv.shape[2], window, shift, pad_mode == "roll_then_pad")
    scale = (qkv.shape[3] // (3 * num_heads)) ** -0.5 if scale is None else float(scale)
    if not runs_triton(qkv, "window_attention"):
        return reference.window_attention(qkv, bias, geometry, num_heads, scale, qkv_padding, logit_scale, dropout_p)
    raise NotImplementedError("the Triton path")


def _pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """Return (rows, columns) of an argument that is one integer or two."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(size, int) for size in pair):
        raise ValueError(f"{name} must be an integer or two of them, (rows, columns), got {value!r}")
    return pair


def _check_map(qkv: Tensor, num_heads: int, window: tuple[int, int], shift: tuple[int, int], pad_mode: str) -> None:
    """Raise a ValueError that names the argument at fault among those that cut the map."""
    if qkv.dim() != 4 or not qkv.is_floating_point() or 0 in qkv.shape[1:]:
        raise ValueError(
            "qkv must be (batch, height, width, 3 · channels) floating point with height, width and channels of 1 or "
            f"more, got {tuple(qkv.shape)} {qkv.dtype}"
        )
    if qkv.stride(3) != 1 and qkv.shape[3] > 1:
        raise ValueError(f"qkv must be contiguous in its last dimension, got strides {qkv.stride()}: call contiguous()")
    if num_heads < 1 or qkv.shape[3] % (3 * num_heads):
        raise ValueError(
            f"qkv has {qkv.shape[3]} channels, which num_heads={num_heads} must divide into queries, keys and values "
            "of equal heads: 3 · num_heads · head_dim"
        )
    if min(window) < 1:
        raise ValueError(f"window_size must be 1 or more, got {window}")
    if not all(0 <= rolled < size for rolled, size in zip(shift, window, strict=True)):
        raise ValueError(f"shift must be in [0, window_size) = [0, {window[0]}) and [0, {window[1]}), got {shift}")
    if pad_mode not in get_args(PadMode):
        raise ValueError(f"pad_mode must be one of {', '.join(get_args(PadMode))}, got {pad_mode!r}")


def _check_scores(
    qkv: Tensor,
    bias: Tensor | None,
    qkv_padding: Tensor | None,
    logit_scale: Tensor | None,
    num_heads: int,
    window: tuple[int, int],
) -> None:
    """Raise a ValueError that names the tensor that does not fit ``qkv``, the heads or the window."""
    offsets = (2 * window[0] - 1) * (2 * window[1] - 1)
    for name, tensor, shape in (
        ("bias", bias, (offsets, num_heads)),
        ("qkv_padding", qkv_padding, (qkv.shape[3],)),
        ("logit_scale", logit_scale, (num_heads,)),
    ):
        if tensor is None:
            continue
        if (
            tuple(tensor.shape) != shape
            or tensor.device != qkv.device
            or tensor.dtype not in (qkv.dtype, torch.float32)
        ):
            dtypes = " or ".join(dict.fromkeys((str(qkv.dtype), "torch.float32")))
            raise ValueError(
                f"{name} must be {shape} {dtypes} on {qkv.device} for window_size {window} and num_heads {num_heads}, "
                f"got {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
            )


def _check_numbers(scale: float | None, logit_scale: Tensor | None, dropout_p: float) -> None:
    """Raise a ValueError that names the number that is out of its range."""
    if scale is not None and logit_scale is not None:
        raise ValueError("give scale or logit_scale, not both: cosine attention has no other factor")
    if scale is not None and not 0.0 < scale < float("inf"):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p}")
