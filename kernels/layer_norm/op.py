"""The public layer-norm functions and their checks."""

from torch import Tensor

from kernels.layer_norm import reference


def layer_norm(input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Normalise over the last dimension (Ba et al. 2016): ``(x - mean) / sqrt(var + eps) · weight + bias``.

    Args:
        input: (..., width), floating point.
        weight: (width,) or None.
        bias: (width,) or None.
        eps: Added to the (biased) variance.

    Returns:
        A tensor shaped like ``input``.

    Raises:
        ValueError: If a shape, a device or ``eps`` does not fit; the message names the argument.
    """
    _check(input, weight, bias, eps)
    return reference.layer_norm(input, weight, bias, eps)


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

    A pre-norm block goes on with both results; a post-norm block (Vaswani et al. 2017) with the first alone.

    Args:
        input: (..., width), the sublayer's output.
        residual: Shaped like ``input``.
        weight: (width,) or None.
        bias: (width,) or None.
        eps: Added to the (biased) variance.
        dropout_p: Probability of dropping an element of ``input`` before the addition, in [0, 1).

    Returns:
        ``(layer_norm(summed), summed)`` with ``summed = dropout(input) + residual``.

    Raises:
        ValueError: If a shape, a device, ``eps`` or ``dropout_p`` does not fit; the message names the argument.
    """
    _check(input, weight, bias, eps)
    if residual.shape != input.shape or residual.device != input.device:
        raise ValueError(
            f"residual {tuple(residual.shape)} on {residual.device} must have the shape and device of input "
            f"{tuple(input.shape)} on {input.device}"
        )
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p}")
    return reference.add_layer_norm(input, residual, weight, bias, eps, dropout_p)


def _check(input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    """Raise a ValueError that names the argument at fault."""
    if input.dim() == 0 or not input.is_floating_point():
        raise ValueError(f"input must be (..., width) floating point, got {tuple(input.shape)} {input.dtype}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.shape != input.shape[-1:] or tensor.device != input.device):
            raise ValueError(
                f"{name} must be ({input.shape[-1]},) on {input.device}, got {tuple(tensor.shape)} on {tensor.device}"
            )
    if eps < 0:
        raise ValueError(f"eps must not be negative, got {eps}")
