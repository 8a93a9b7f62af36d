"""What the operators of layer norm return, for the launchers and for the fake implementations."""

import torch
from torch import Tensor


def forward_outputs(
    input: Tensor, residual: Tensor | None, rms: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return unwritten ``(normed, summed, statistics)``; see :func:`kernels.layer_norm.forward.forward`."""
    summed_dtype = input.dtype if residual is None else torch.promote_types(input.dtype, residual.dtype)
    return (
        torch.empty(input.shape, dtype=dtype, device=input.device),
        torch.empty((0,) if residual is None else input.shape, dtype=summed_dtype, device=input.device),
        torch.empty((1 if rms else 2, input.numel() // input.shape[-1]), dtype=torch.float32, device=input.device),
    )


def backward_outputs(
    summed: Tensor,
    input_dtype: torch.dtype | None,
    residual_dtype: torch.dtype | None,
    weight_dtype: torch.dtype | None,
    bias_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return unwritten gradients, (0,) where nobody asks for one; those of parameters that no row uses are 0."""

    def rows(dtype: torch.dtype | None) -> Tensor:
        return torch.empty((0,) if dtype is None else summed.shape, dtype=dtype, device=summed.device)

    def parameter(dtype: torch.dtype | None) -> Tensor:
        make = torch.empty if summed.numel() else torch.zeros
        return make((0,) if dtype is None else summed.shape[-1:], dtype=dtype, device=summed.device)

    return rows(input_dtype), rows(residual_dtype), parameter(weight_dtype), parameter(bias_dtype)
