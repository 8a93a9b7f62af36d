"""Layer normalisation in plain PyTorch: the oracle of the tests and the path on a CPU."""

from torch import Tensor
from torch.nn import functional

from kernels.dropout import dropout


def layer_norm(input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Compute what :func:`kernels.layer_norm` computes."""
    return functional.layer_norm(input, input.shape[-1:], weight, bias, eps)


def add_layer_norm(
    input: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dropout_p: float
) -> tuple[Tensor, Tensor]:
    """Compute what :func:`kernels.add_layer_norm` computes."""
    summed = dropout(input, dropout_p) + residual
    return layer_norm(summed, weight, bias, eps), summed
