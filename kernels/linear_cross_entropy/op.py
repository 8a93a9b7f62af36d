"""The public linear + cross-entropy function and its checks."""

from torch import Tensor

from kernels.linear_cross_entropy import reference


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

    Args:
        hidden: (..., width), floating point.
        weight: (vocabulary, width), the output projection.
        target: (...) int64 in [0, vocabulary), or ``ignore_index``.
        bias: (vocabulary,) or None.
        label_smoothing: In [0, 1).
        ignore_index: Targets of this value add nothing to the loss, the count or a gradient.

    Returns:
        ``(loss, count)``: the sum over the counted targets, a scalar in float32 (float64 for float64 input), and their
        number, a scalar int64. Both are tensors on the device of ``hidden``.

    Raises:
        ValueError: If shapes, devices or ``label_smoothing`` do not fit; the message names the argument.
    """
    if weight.dim() != 2 or hidden.dim() == 0 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} must end in the width of weight {tuple(weight.shape)}, (vocabulary, width)"
        )
    if target.shape != hidden.shape[:-1]:
        raise ValueError(
            f"target {tuple(target.shape)} must be shaped {tuple(hidden.shape[:-1])}, as hidden but its width"
        )
    if target.is_floating_point():
        raise ValueError(f"target must hold integer class ids, got {target.dtype}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({weight.shape[0]},), got {tuple(bias.shape)}")
    for name, tensor in (("weight", weight), ("target", target), ("bias", bias)):
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}, hidden on {hidden.device}")
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    return reference.linear_cross_entropy(hidden, weight, target, bias, label_smoothing, ignore_index)
