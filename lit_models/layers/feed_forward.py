"""The position-wise feed-forward network."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from kernels import dropout

Activation = Literal["relu", "gelu", "silu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}


class FeedForward(nn.Module):
    """Two linear layers with an activation between (Vaswani et al. 2017, section 3.3).

    Args:
        dim: Width of input and output.
        hidden_dim: Width between the layers.
        activation: ``"relu"``, ``"gelu"`` (exact) or ``"silu"``.
        dropout: Probability of dropping an activation in training.

    Raises:
        ValueError: If the activation is not one of these.
    """

    def __init__(self, dim: int, hidden_dim: int, *, activation: Activation = "relu", dropout: float = 0.0) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.expand = nn.Linear(dim, hidden_dim)
        self.contract = nn.Linear(hidden_dim, dim)
        self.activation = ACTIVATIONS[activation]
        self.dropout = dropout
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw Xavier-uniform weights and zero biases."""
        for linear in (self.expand, self.contract):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., dim) to (..., dim)."""
        return self.contract(dropout(self.activation(self.expand(input)), self.dropout if self.training else 0.0))
