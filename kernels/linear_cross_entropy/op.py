"""The public linear + cross-entropy function, its checks, its library operator and its gradient."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels.backend import runs_triton
from kernels.library import LIBRARY, first_order, implement, refuse_transforms
from kernels.linear_cross_entropy import reference

# The gradients come with the loss: a chunk of logits is at hand only once. Those not wanted are empty.
LIBRARY.define(
    "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, float label_smoothing, "
    "int ignore_index, ScalarType compute_dtype, bool[3] wanted, bool triton) -> "
    "(Tensor loss, Tensor count, Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)"
)


def _run(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    label_smoothing: float,
    ignore_index: int,
    compute_dtype: torch.dtype,
    wanted: list[bool],
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    path: Any = reference
    if triton:
        from kernels.linear_cross_entropy import forward as path
    return path.linear_cross_entropy(hidden, weight, bias, target, label_smoothing, ignore_index, compute_dtype, wanted)


implement("linear_cross_entropy", _run)


@torch.library.register_fake("heddle::linear_cross_entropy", lib=LIBRARY)
def _fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wanted = settings[3]
    return (
        hidden.new_empty((), dtype=torch.promote_types(hidden.dtype, torch.float32)),
        target.new_empty((), dtype=torch.int64),
        hidden.new_empty(hidden.shape if wanted[0] else 0),
        *reference.parameter_gradients(weight, bias, wanted),
    )


@register_flop_formula(torch.ops.heddle.linear_cross_entropy)
def _flops(
    hidden: torch.Size, weight: torch.Size, bias: torch.Size | None, target: torch.Size, *settings: Any, **_: Any
) -> int:
    """Count the product of the forward and those of the two gradients; padding counts, as the kernels multiply it."""
    wanted = settings[3]
    return 2 * math.prod(target) * math.prod(weight) * (1 + wanted[0] + wanted[1])


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
        loss, count, *gradients = torch.ops.heddle.linear_cross_entropy(hidden, weight, bias, *rest)
        context.mark_non_differentiable(count)
        context.save_for_backward(hidden, weight, bias, *gradients)
        return loss, count

    @staticmethod
    def backward(context: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scaled = first_order("linear_cross_entropy", _scaled, grad_loss, *context.saved_tensors)
        needed = context.needs_input_grad[:3]
        return *(gradient if need else None for gradient, need in zip(scaled, needed, strict=True)), *(None,) * 6


def _scaled(
    grad_loss: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, *gradients: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients, made for a gradient of 1, times the one that arrives, in the dtypes of the inputs."""
    # Kept in float32 until scaled. A scalar would take the gradient's dtype before the product, and a loss scale of
    # 65,536 is inf in float16; writing to the dtype of the input spares a float32 copy.
    return tuple(
        torch.mul(
            gradient,
            grad_loss.reshape(1),
            out=torch.empty_like(gradient, dtype=(hidden if like is None else like).dtype),
        )
        for gradient, like in zip(gradients, (hidden, weight, bias), strict=True)
    )


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor]:
    """Project to the vocabulary and sum the label-smoothed cross-entropy, without holding the logits.

    The smoothed label gives ``1 - label_smoothing`` to the target plus ``label_smoothing / vocabulary`` to every entry,
    the target included (Szegedy et al. 2016, and torch's ``cross_entropy``).

    The logits exist for a chunk of tokens at a time, and the gradients that will be needed are made with them, so that
    a backward only scales them. Products are taken in the dtype of the arguments, or in autocast's; sums, softmax and
    the gradients of ``weight`` and ``bias`` are kept in float32.

    Args:
        hidden: (..., width), floating point.
        weight: (vocabulary, width), the output projection.
        target: (...) int32 or int64 in [0, vocabulary), or ``ignore_index``. Any other value raises on the PyTorch
            path; the Triton path cannot raise without waiting for the device and makes the loss and its gradients NaN.
        bias: (vocabulary,) or None.
        label_smoothing: In [0, 1).
        ignore_index: Targets of this value add nothing to the loss, the count or a gradient.

    Returns:
        ``(loss, count)``: the sum over the counted targets, a scalar in float32 (float64 for float64 input), and their
        number, a scalar int64. Both are tensors on the device of ``hidden``.

    Raises:
        ValueError: If shapes, devices, dtypes, ``label_smoothing`` or, on the PyTorch path, a target do not fit; the
            message names the argument.
    """
    refuse_transforms("linear_cross_entropy")
    device = hidden.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    _check(hidden, weight, target, bias, label_smoothing, autocast)
    # What autocast would do to a linear layer: it leaves float64 alone.
    casts = autocast and hidden.dtype != torch.float64
    compute_dtype = torch.get_autocast_dtype(device) if casts else hidden.dtype
    triton = runs_triton(hidden.new_empty(0, dtype=compute_dtype), "linear_cross_entropy")
    trains = torch.is_grad_enabled()
    wanted = [trains and tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)]
    return _LinearCrossEntropy.apply(
        hidden, weight, bias, target, label_smoothing, ignore_index, compute_dtype, wanted, triton
    )


def _check(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, label_smoothing: float, autocast: bool
) -> None:
    """Raise a ValueError that names the argument at fault."""
    if weight.dim() != 2 or weight.shape[0] == 0:
        raise ValueError(f"weight must be (vocabulary, width) with at least one entry, got {tuple(weight.shape)}")
    if hidden.dim() == 0 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} must end in the width of weight {tuple(weight.shape)}, (vocabulary, width)"
        )
    if target.shape != hidden.shape[:-1]:
        raise ValueError(
            f"target {tuple(target.shape)} must be shaped {tuple(hidden.shape[:-1])}, as hidden but its width"
        )
    if target.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"target must hold integer class ids, torch.int32 or torch.int64, got {target.dtype}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({weight.shape[0]},), got {tuple(bias.shape)}")
    if not hidden.is_floating_point():
        raise ValueError(f"hidden must be floating point, got {hidden.dtype}")
    for name, tensor in (("weight", weight), ("target", target), ("bias", bias)):
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}, hidden on {hidden.device}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != hidden.dtype and not (autocast and tensor.is_floating_point()):
            raise ValueError(f"{name} is {tensor.dtype}, hidden {hidden.dtype}: they must be equal outside autocast")
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
