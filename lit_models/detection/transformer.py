"""The encoder and decoder layers of DETR: positions are added to queries and keys in every layer, never to values."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from kernels import dropout
from lit_models.checks import check_at_least, check_probability
from lit_models.layers import FeedForward, KeyValueCache, MultiHeadAttention, NormOrder, Packing, ResidualLayerNorm


@dataclass(frozen=True)
class LayerConfig:
    """What all layers of an encoder-decoder share.

    Attributes:
        dim: Width of the residual stream; ``num_heads`` divides it.
        num_heads: Attention heads.
        feed_forward_dim: Width inside the feed-forward networks.
        dropout: On attention weights, inside the feed-forward networks and on every sublayer's output.
        norm_order: ``"post"`` as published, or ``"pre"``.
    """

    dim: int
    num_heads: int
    feed_forward_dim: int
    dropout: float
    norm_order: NormOrder

    def __post_init__(self) -> None:
        for name in ("dim", "num_heads", "feed_forward_dim"):
            check_at_least(name, getattr(self, name), 1)
        check_probability("dropout", self.dropout)
        if self.norm_order not in ("pre", "post"):
            raise ValueError(f"norm_order must be pre or post, got {self.norm_order!r}")

    def residual_norm(self) -> ResidualLayerNorm:
        """Build the norm that follows a sublayer."""
        return ResidualLayerNorm(self.dim, order=self.norm_order, dropout=self.dropout)

    def feed_forward(self) -> FeedForward:
        """Build a feed-forward network, with torch's biases: the published code draws only matrices anew."""
        network = FeedForward(self.dim, self.feed_forward_dim, activation="relu", dropout=self.dropout)
        for linear in (network.expand, network.contract):
            nn.init.uniform_(linear.bias, -(linear.in_features**-0.5), linear.in_features**-0.5)
        return network


class Memory(NamedTuple):
    """What the decoder attends to.

    Attributes:
        content: (batch, tokens, dim), the encoder's output: the values.
        located: The content with its positions added, once for all layers: the keys.
        positions: (1, tokens, dim).
        packing: How queries see the tokens where all images' tokens are one row; None without padding.
    """

    content: Tensor
    located: Tensor
    positions: Tensor
    packing: Packing | None

    def rows(self, queries: Tensor) -> Tensor:
        """Lay queries (batch, queries, dim) out as the tokens are: one row after the other where they are packed."""
        return queries if self.packing is None else queries.flatten(0, 1)[None]


class SelfAttention(MultiHeadAttention):
    """Self-attention in which queries and keys carry positions and values do not."""

    def forward(  # type: ignore[override]
        self, input: Tensor, positions: Tensor, packing: Packing | None = None
    ) -> Tensor:
        """Map (batch, length, dim) to the same shape; the positions broadcast to it."""
        query, key, value = self.project_positioned(input, positions)
        return self.attend(query, KeyValueCache(key, value), packing=packing)

    def project_positioned(self, input: Tensor, positions: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, (batch, heads, length, head_dim) each."""
        located = input + positions
        return self.project_apart(located, located, input)


class CrossAttention(MultiHeadAttention):
    """Attention from queries with their positions to keys with theirs, and values without."""

    def forward(self, input: Tensor, positions: Tensor, memory: Memory) -> Tensor:  # type: ignore[override]
        """Map (batch, queries, dim) to the same shape."""
        query, key, value = self.project_positioned(input, positions, memory)
        return self.attend(query, KeyValueCache(key, value), packing=memory.packing).view(input.shape)

    def project_positioned(self, input: Tensor, positions: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, laid out as the memory is."""
        return self.project_apart(memory.rows(input + positions), memory.located, memory.content)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each followed by dropout, residual addition and layer norm."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config.dim, config.num_heads, dropout=config.dropout)
        self.self_attention_norm = config.residual_norm()
        self.feed_forward = config.feed_forward()
        self.feed_forward_norm = config.residual_norm()

    def forward(
        self, input: Tensor, residual: Tensor, positions: Tensor, packing: Packing | None
    ) -> tuple[Tensor, Tensor]:
        """Return ``(normed, residual)`` for the next layer, (batch, tokens, dim) each, as ``input`` and ``residual``.

        In a pre-norm stack the last layer's second norm is the one that ends the encoder.
        """
        attended = self.self_attention(input, positions, packing)
        input, residual = self.self_attention_norm(attended, residual)
        return self.feed_forward_norm(self.feed_forward(input), residual)


class DecoderLayer(nn.Module):
    """Self-attention among the queries, cross-attention to the image, feed-forward.

    Args:
        config: The sizes.
        self_attention: Maps (input, queries) to what is added to the stream.
        cross_attention: Maps (input, queries, memory) likewise.
        last: Whether no layer follows: a pre-norm layer then only adds, since the decoder's own norm comes next.
    """

    def __init__(
        self, config: LayerConfig, self_attention: nn.Module, cross_attention: nn.Module, *, last: bool
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.self_attention_norm = config.residual_norm()
        self.cross_attention = cross_attention
        self.cross_attention_norm = config.residual_norm()
        self.feed_forward = config.feed_forward()
        self.feed_forward_norm = None if last and config.norm_order == "pre" else config.residual_norm()
        self.dropout = config.dropout

    def forward(self, input: Tensor, residual: Tensor, queries: Any, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return ``(normed, residual)`` for the next layer.

        Args:
            input: (batch, queries, dim), what the layer reads.
            residual: (batch, queries, dim), the residual stream.
            queries: What the attentions know of the queries beside their content: positions (queries, dim), or more.
            memory: The image.
        """
        input, residual = self.self_attention_norm(self.self_attention(input, queries), residual)
        input, residual = self.cross_attention_norm(self.cross_attention(input, queries, memory), residual)
        branch = self.feed_forward(input)
        if self.feed_forward_norm is None:
            return input, dropout(branch, self.dropout if self.training else 0.0) + residual
        return self.feed_forward_norm(branch, residual)


class MLP(nn.Module):
    """Linear layers with ReLU between.

    Args:
        dim: Width of the input and of what lies between.
        out_dim: Width of the output.
        layers: Number of linear layers.
    """

    def __init__(self, dim: int, out_dim: int, layers: int) -> None:
        super().__init__()
        widths = [dim] * layers + [out_dim]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(widths, widths[1:], strict=False))

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., dim) to (..., out_dim)."""
        for layer in self.layers[:-1]:
            input = functional.relu(layer(input))
        return self.layers[-1](input)
