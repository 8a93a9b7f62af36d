"""Layer normalisation on the project's kernels."""

from typing import Literal

import torch
from torch import Tensor, nn

from kernels import add_layer_norm, layer_norm

NormOrder = Literal["pre", "post"]


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension (Ba et al. 2016).

    Args:
        dim: Width of the last dimension.
        eps: Added to the variance.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (..., dim)."""
        return layer_norm(input, self.weight, self.bias, self.eps)


class ResidualLayerNorm(LayerNorm):
    """Dropout, residual addition and layer norm after a sublayer in one step, for both orders of normalisation.

    In a pre-norm network (``order="pre"``) the norm that *follows* a sublayer is the one that opens the next sublayer,
    or the final norm of the stack, so that one kernel serves both the addition and the norm. The stack then starts with
    a plain :class:`LayerNorm`. In a post-norm network the normed sum is itself the new residual.

    Args:
        dim: Width of the last dimension.
        eps: Added to the variance.
        order: ``"pre"`` or ``"post"``.
        dropout: Probability of dropping an element of the sublayer's output in training.
    """

    def __init__(self, dim: int, eps: float = 1e-5, *, order: NormOrder = "post", dropout: float = 0.0) -> None:
        super().__init__(dim, eps)
        self.order = order
        self.dropout = dropout

    def forward(self, input: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return ``(normed, residual)`` for the next sublayer.

        Args:
            input: (..., dim), the sublayer's output, or None before the first sublayer: only the norm is left then.
            residual: (..., dim), the residual stream.
        """
        if input is None:
            return super().forward(residual), residual
        dropout_p = self.dropout if self.training else 0.0
        normed, summed = add_layer_norm(input, residual, self.weight, self.bias, self.eps, dropout_p=dropout_p)
        return normed, summed if self.order == "pre" else normed
