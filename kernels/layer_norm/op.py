"""The public norms, their checks, and their operators ``heddle::layer_norm_forward`` and ``_backward``."""

from typing import Any

import torch
from torch import Tensor

from kernels.backend import TRITON_DTYPES, runs_triton
from kernels.dropout import new_seed
from kernels.layer_norm import reference, tuning
from kernels.layer_norm.allocation import backward_outputs, forward_outputs
from kernels.library import LIBRARY, first_order, implement


def layer_norm(input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Normalise over the last dimension (Ba et al. 2016): ``(x - mean) / sqrt(var + eps) · weight + bias``.

    On CUDA tensors this is a Triton kernel for widths up to 16384, which computes in float32 whatever it reads.
    Gradients are deterministic.

    Args:
        input: (..., width), floating point; rows a fixed stride apart are read in place.
        weight: (width,) or None, floating point, in any dtype.
        bias: (width,) or None, likewise.
        eps: Added to the (biased) variance.

    Returns:
        A tensor shaped like ``input`` and in its dtype, or in float32 under autocast on CUDA, as torch's layer norm.

    Raises:
        ValueError: If a shape, a dtype, a device or ``eps`` does not fit; the message names the argument.
    """
    _check(input, weight, bias, eps)
    if not runs_triton(input, "layer_norm"):
        return reference.layer_norm(input, weight, bias, eps)
    _check_triton(input, "layer_norm", weight=weight, bias=bias)
    return _LayerNorm.apply(input, None, weight, bias, None, eps, 0.0, False)


def add_layer_norm(
    input: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Add a sublayer's output to the residual stream and normalise the sum.

    A pre-norm block goes on with both results; a post-norm block (Vaswani et al. 2017) with the first alone. On CUDA
    tensors dropout, addition and norm are one Triton kernel, and no dropout mask is kept.

    Args:
        input: (..., width), floating point: the sublayer's output.
        residual: Shaped like ``input``, floating point; another dtype is promoted as by torch's ``+``.
        weight: (width,) or None, floating point, in any dtype.
        bias: (width,) or None, likewise.
        eps: Added to the (biased) variance.
        dropout_p: Probability of dropping an element of ``input`` before the addition, in [0, 1).

    Returns:
        ``(layer_norm(summed), summed)`` with ``summed = dropout(input) + residual``.

    Raises:
        ValueError: If a shape, a dtype, a device, ``eps`` or ``dropout_p`` does not fit; the message names it.
    """
    _check(input, weight, bias, eps)
    if residual.shape != input.shape or residual.device != input.device or not residual.is_floating_point():
        raise ValueError(
            f"residual must be floating point {tuple(input.shape)} on {input.device} like input, "
            f"got {residual.dtype} {tuple(residual.shape)} on {residual.device}"
        )
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p}")
    if not runs_triton(input, "add_layer_norm"):
        return reference.add_layer_norm(input, residual, weight, bias, eps, dropout_p)
    _check_triton(input, "add_layer_norm", residual=residual, weight=weight, bias=bias)
    seed = new_seed(input.device) if dropout_p > 0.0 else None
    return _LayerNorm.apply(input, residual, weight, bias, seed, eps, dropout_p, False)


def rms_norm(input: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """Divide by the root mean square of the last dimension: ``x / sqrt(mean(x²) + eps) · weight``.

    Zhang and Sennrich 2019; the same kernels as :func:`layer_norm`.

    Args:
        input: (..., width), floating point.
        weight: (width,) or None, floating point, in any dtype.
        eps: Added to the mean of the squares.

    Returns:
        As :func:`layer_norm`.

    Raises:
        ValueError: If a shape, a dtype, a device or ``eps`` does not fit; the message names the argument.
    """
    _check(input, weight, None, eps)
    if not runs_triton(input, "rms_norm"):
        return reference.rms_norm(input, weight, eps)
    _check_triton(input, "rms_norm", weight=weight)
    return _LayerNorm.apply(input, None, weight, None, None, eps, 0.0, True)


def _check(input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    """Raise a ValueError that names the argument at fault."""
    if input.dim() == 0 or input.shape[-1] == 0 or not input.is_floating_point():
        raise ValueError(
            f"input must be (..., width) floating point with a width of 1 or more, "
            f"got {tuple(input.shape)} {input.dtype}"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.shape != input.shape[-1:] or tensor.device != input.device or not tensor.is_floating_point():
            raise ValueError(
                f"{name} must be ({input.shape[-1]},) floating point on {input.device}, "
                f"got {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
            )
    if not 0.0 <= eps < float("inf"):
        raise ValueError(f"eps must be finite and not negative, got {eps}")


def _check_triton(input: Tensor, function: str, **others: Tensor | None) -> None:
    """Raise a ValueError if the kernels do not take what the PyTorch path takes."""
    if input.shape[-1] > tuning.WIDEST_BLOCK:
        raise ValueError(
            f"{function}: input {tuple(input.shape)} is too wide for the Triton kernels, which take widths of 1 to "
            f'{tuning.WIDEST_BLOCK}; use_backend("torch")'
        )
    for name, tensor in others.items():
        if tensor is not None and tensor.dtype not in TRITON_DTYPES:
            allowed = ", ".join(map(str, TRITON_DTYPES))
            raise ValueError(f'{function}: {name} must be in {allowed}, got {tensor.dtype}; use_backend("torch")')


LIBRARY.define(
    "layer_norm_forward(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? seed, float eps, "
    "float dropout_p, bool rms, ScalarType dtype) -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
LIBRARY.define(
    "layer_norm_backward(Tensor grad_normed, Tensor? grad_summed, Tensor summed, Tensor? weight, Tensor statistics, "
    "Tensor? seed, float dropout_p, bool rms, ScalarType? input_dtype, ScalarType? residual_dtype, "
    "ScalarType? weight_dtype, ScalarType? bias_dtype) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        input: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        seed: Tensor | None,
        eps: float,
        dropout_p: float,
        rms: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:
        summed_dtype = input.dtype if residual is None else torch.promote_types(input.dtype, residual.dtype)
        dtype = reference.normed_dtype(input.device, summed_dtype)
        normed, summed, statistics = torch.ops.heddle.layer_norm_forward(
            input, residual, weight, bias, seed, eps, dropout_p, rms, dtype
        )
        context.save_for_backward(input if residual is None else summed, weight, statistics, seed)
        context.settings = dropout_p, rms
        context.dtypes = [None if tensor is None else tensor.dtype for tensor in (input, residual, weight, bias)]
        context.set_materialize_grads(False)
        return normed if residual is None else (normed, summed)

    @staticmethod
    def backward(
        context: Any, grad_normed: Tensor | None, grad_summed: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        summed, *saved = context.saved_tensors
        needed = context.needs_input_grad[:4]
        if grad_normed is None:
            if grad_summed is None:
                return (None,) * 8
            grad_normed = torch.zeros_like(summed)
        dtypes = [dtype if is_needed else None for dtype, is_needed in zip(context.dtypes, needed, strict=True)]
        # Without dropout the gradients of input and residual are one tensor.
        shared = context.settings[0] == 0.0 and dtypes[0] == dtypes[1]
        if shared:
            dtypes[1] = None
        gradients = first_order(
            "layer_norm",
            torch.ops.heddle.layer_norm_backward,
            grad_normed,
            grad_summed,
            summed,
            *saved,
            *context.settings,
            *dtypes,
        )
        results = [None if dtype is None else grad for dtype, grad in zip(dtypes, gradients, strict=True)]
        if shared:
            results[1] = results[0]
        return *results, *(None,) * 4


def _forward(input: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Implement ``heddle::layer_norm_forward``."""
    from kernels.layer_norm import forward

    return forward.forward(input, *rest)


def _backward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Implement ``heddle::layer_norm_backward``."""
    from kernels.layer_norm import backward

    return backward.backward(*inputs)


@torch.library.register_fake("heddle::layer_norm_forward", lib=LIBRARY)
def _forward_fake(input: Tensor, residual: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    rms, dtype = rest[-2:]
    return forward_outputs(input, residual, rms, dtype)


@torch.library.register_fake("heddle::layer_norm_backward", lib=LIBRARY)
def _backward_fake(grad_normed: Tensor, grad_summed: Tensor | None, summed: Tensor, *rest: Any) -> Any:
    return backward_outputs(summed, *rest[-4:])


implement("layer_norm_forward", _forward)
implement("layer_norm_backward", _backward)
