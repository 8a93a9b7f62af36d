"""Layer normalisation in plain PyTorch: the oracle of the tests and the path on a CPU."""

import functools

import torch
from torch import Tensor
from torch.nn import functional

from kernels.dropout import dropout


def layer_norm(input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Compute what :func:`kernels.layer_norm` computes."""
    parameters = {parameter.dtype for parameter in (weight, bias) if parameter is not None}
    low = input.dtype in (torch.float16, torch.bfloat16)
    if parameters <= {input.dtype} or (input.device.type == "cpu" and low and parameters == {torch.float32}):
        return functional.layer_norm(input, input.shape[-1:], weight, bias, eps)
    # torch takes no other mixture of dtypes.
    dtype = functools.reduce(torch.promote_types, parameters, input.dtype)
    weight, bias = (None if parameter is None else parameter.to(dtype) for parameter in (weight, bias))
    normed = functional.layer_norm(input.to(dtype), input.shape[-1:], weight, bias, eps)
    return normed.to(normed_dtype(input.device, input.dtype))


def add_layer_norm(
    input: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dropout_p: float
) -> tuple[Tensor, Tensor]:
    """Compute what :func:`kernels.add_layer_norm` computes."""
    summed = dropout(input, dropout_p) + residual
    return layer_norm(summed, weight, bias, eps), summed


def rms_norm(input: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Compute what :func:`kernels.rms_norm` computes."""
    dtype = input.dtype if weight is None else torch.promote_types(input.dtype, weight.dtype)
    weight = None if weight is None else weight.to(dtype)
    normed = functional.rms_norm(input.to(dtype), input.shape[-1:], weight, eps)
    return normed.to(normed_dtype(input.device, input.dtype))


def normed_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a norm over a dtype: under autocast on CUDA torch computes norms in float32."""
    return torch.float32 if device.type == "cuda" and torch.is_autocast_enabled("cuda") else dtype
