"""The public shifted-window attention, its checks, and its operators ``heddle::window_attention_*``."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels.backend import runs_triton
from kernels.dropout import new_seed
from kernels.library import LIBRARY, first_order, implement
from kernels.window_attention import reference, tuning
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

    On CUDA tensors this is a Triton kernel that holds neither windows nor scores, forward or backward; it takes
    float16, bfloat16 and float32, the last in TensorFloat-32 if torch's ``set_float32_matmul_precision`` allows it, and
    head_dims that are multiples of 8 from 16 to 64. Under autocast ``qkv`` is cast on every device as torch's own
    attention casts its inputs: float64 stays. Gradients are deterministic, those of ``bias``, ``qkv_padding`` and
    ``logit_scale`` too.

    Args:
        qkv: (batch, height, width, 3 · channels), floating point: queries, keys and values, each head by head, as one
            linear layer makes them; contiguous in the last dimension.
        bias: ((2 · window height - 1) · (2 · window width - 1), num_heads): the table of what is added to the scores,
            by the offset of query and key: row ``(row offset + window height - 1) · (2 · window width - 1) + column
            offset + window width - 1``. None for none.
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
        (batch, height, width, channels) in the dtype of ``qkv``, or of autocast where it casts.

    Raises:
        ValueError: If a shape, a dtype, a device or a number does not fit; the message names the argument.
    """
    window, shift = _pair("window_size", window_size), _pair("shift", shift)
    _check_map(qkv, num_heads, window, shift, pad_mode)
    _check_scores(qkv, bias, qkv_padding, logit_scale, num_heads, window)
    _check_numbers(scale, logit_scale, dropout_p)
    scale = (qkv.shape[3] // (3 * num_heads)) ** -0.5 if scale is None else float(scale)
    triton, device = runs_triton(qkv, "window_attention"), qkv.device
    autocast = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    if autocast and qkv.dtype != torch.float64:
        qkv = qkv.to(torch.get_autocast_dtype(device.type))
    if not triton:
        geometry = Geometry(qkv.shape[1], qkv.shape[2], window, shift, pad_mode == "roll_then_pad")
        return reference.window_attention(qkv, bias, geometry, num_heads, scale, qkv_padding, logit_scale, dropout_p)
    _check_triton(qkv, num_heads)
    tensors = (
        qkv,
        None if bias is None else bias.float().contiguous(),
        None if qkv_padding is None else qkv_padding.to(qkv.dtype).contiguous(),
        None if logit_scale is None else logit_scale.float().contiguous(),
        new_seed(device) if dropout_p > 0.0 else None,
    )
    return _WindowAttention.apply(*tensors, window, shift, pad_mode == "roll_then_pad", num_heads, scale, dropout_p)


def _pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """Return (rows, columns) of an argument that is one integer or two."""
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
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
    if not isinstance(num_heads, int):
        raise ValueError(f"num_heads must be an integer, got {num_heads!r}")
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


def _check_triton(qkv: Tensor, num_heads: int) -> None:
    """Raise a ValueError if the Triton kernels do not take the head_dim."""
    head_dim = qkv.shape[3] // (3 * num_heads)
    if head_dim % 8 or not 16 <= head_dim <= tuning.LARGEST_HEAD_DIM:
        raise ValueError(
            f"qkv has head_dim {head_dim}, {qkv.shape[3]} channels of {num_heads} heads; the Triton kernels take "
            f'multiples of 8 from 16 to {tuning.LARGEST_HEAD_DIM}. kernels.use_backend("torch") takes any'
        )


INPUTS = (
    "Tensor qkv, Tensor? bias, Tensor? qkv_padding, Tensor? logit_scale, Tensor? seed, SymInt[2] window, "
    "SymInt[2] shift, bool roll_first, SymInt num_heads, float scale, float dropout_p"
)
LIBRARY.define(f"window_attention_forward({INPUTS}) -> (Tensor, Tensor)")
LIBRARY.define(
    f"window_attention_backward(Tensor grad_output, Tensor? output, Tensor? lse, bool[4] needed, {INPUTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, *inputs: Any) -> Tensor:
        output, lse = torch.ops.heddle.window_attention_forward(*inputs)
        kept = (output, lse) if lse.dim() == 3 else (None, None)
        context.save_for_backward(*inputs[:5], *kept)
        context.settings = inputs[5:]
        return output

    @staticmethod
    def backward(context: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        needed = context.needs_input_grad[:4]
        *inputs, output, lse = context.saved_tensors
        grads = first_order(
            "window_attention",
            torch.ops.heddle.window_attention_backward,
            grad_output,
            None if output is None else output.detach(),
            lse,
            needed,
            *inputs,
            *context.settings,
        )
        return *(grad if wanted else None for grad, wanted in zip(grads, needed, strict=True)), *(None,) * 7


def _is_fused(qkv: Tensor, *rest: Any) -> bool:
    """Return whether the backward makes the forward's results again and needs none of them."""
    _, _, logit_scale, seed, window, _, _, num_heads, *_ = rest

    def with_padding(padded: bool) -> bool:
        return tuning.is_fused(
            tuning.Shape(
                tuning.architecture(qkv.device),
                qkv.element_size(),
                tuning.tile(window[0] * window[1]),
                tuning.block_head_dim(qkv.shape[3] // (3 * num_heads)),
                tuning.features(logit_scale is not None, padded, seed is not None),
            )
        )

    # The size of the map is asked only where it decides: a compiled graph then holds for any.
    if with_padding(True) == with_padding(False):
        return with_padding(False)
    return with_padding(bool(qkv.shape[1] % window[0] or qkv.shape[2] % window[1]))


def _windows(qkv: Any, window: tuple[int, int]) -> int:
    """Return the number of windows of a batch of maps, from the shape of ``qkv``."""
    return qkv[0] * -(-qkv[1] // window[0]) * -(-qkv[2] // window[1])


def _problem(*inputs: Any) -> Any:
    from kernels.window_attention.problem import Problem

    qkv, bias, qkv_padding, logit_scale, seed, window, shift, roll_first, num_heads, scale, dropout_p = inputs
    geometry = Geometry(qkv.shape[1], qkv.shape[2], tuple(window), tuple(shift), roll_first)
    return Problem(qkv, bias, qkv_padding, logit_scale, seed, geometry, num_heads, scale, dropout_p)


def _forward(*inputs: Any) -> tuple[Tensor, Tensor]:
    """Implement ``heddle::window_attention_forward``; its second result is empty where the backward is one kernel."""
    output, lse = _forward_fake(*inputs)
    if output.numel():
        from kernels.window_attention import forward

        forward.forward(_problem(*inputs), output, lse if lse.dim() == 3 else None)
    return output, lse


@torch.library.register_fake("heddle::window_attention_forward", lib=LIBRARY)
def _forward_fake(qkv: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    window, num_heads = rest[4], rest[7]
    tokens = window[0] * window[1]
    return (
        torch.empty((*qkv.shape[:3], qkv.shape[3] // 3), dtype=qkv.dtype, device=qkv.device),
        torch.empty(
            (0,) if _is_fused(qkv, *rest) else (_windows(qkv.shape, window), num_heads, tokens),
            dtype=torch.float32,
            device=qkv.device,
        ),
    )


def _backward(
    grad_output: Tensor, output: Tensor | None, lse: Tensor | None, needed: list[bool], *inputs: Any
) -> tuple[Tensor, ...]:
    """Implement ``heddle::window_attention_backward``: gradients of the first four inputs, empty where not needed."""
    if not grad_output.numel():
        return tuple(grad.zero_() for grad in _backward_fake(grad_output, output, lse, needed, *inputs))
    from kernels.window_attention import backward

    grads = backward.backward(_problem(*inputs), output, lse, grad_output.contiguous(), needed)
    return tuple(grad_output.new_empty(0) if grad is None else grad for grad in grads)


@torch.library.register_fake("heddle::window_attention_backward", lib=LIBRARY)
def _backward_fake(
    grad_output: Tensor, output: Tensor | None, lse: Tensor | None, needed: list[bool], *inputs: Any
) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) if wanted else grad_output.new_empty(0)
        for tensor, wanted in zip(inputs[:4], needed, strict=True)
    )


implement("window_attention_forward", _forward)
implement("window_attention_backward", _backward)


def _product_flops(qkv: torch.Size, window: tuple[int, int]) -> int:
    """Return the operations of one product over all tokens and channels, queries with keys or weights with values."""
    return 2 * _windows(qkv, window) * (window[0] * window[1]) ** 2 * (qkv[3] // 3)


@register_flop_formula(torch.ops.heddle.window_attention_forward)
def _forward_flops(qkv: torch.Size, *rest: Any, **_: Any) -> int:
    """Count the two products over whole windows, as an implementation that pads and cuts the map has them."""
    return 2 * _product_flops(qkv, rest[4])


@register_flop_formula(torch.ops.heddle.window_attention_backward)
def _backward_flops(
    grad_output: torch.Size, output: torch.Size, lse: torch.Size, needed: list[bool], *inputs: Any, **_: Any
) -> int:
    """Count five products: the scores again, and two for each of the forward's."""
    return 5 * _product_flops(inputs[0], inputs[5])
