"""The encoder-decoder Transformer of Vaswani et al. 2017 ("Attention Is All You Need")."""

from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels import dropout
from lit_models.checks import check_at_least, check_probability
from lit_models.layers import (
    Activation,
    FeedForward,
    KeyValueCache,
    LayerNorm,
    LearnedPositions,
    MultiHeadAttention,
    NormOrder,
    ResidualLayerNorm,
    SinusoidalPositions,
)
from lit_models.translation.decoder_state import DecoderState, PastAttention


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that fixes a Transformer but its vocabulary.

    Attributes:
        dim: Width of the residual stream; ``num_heads`` divides it.
        feed_forward_dim: Width inside the feed-forward networks.
        num_heads: Attention heads.
        encoder_layers: Layers of the encoder.
        decoder_layers: Layers of the decoder.
        norm_order: ``"post"`` as in the paper, or ``"pre"`` (each stack then ends with a norm of its own).
        activation: Of the feed-forward networks.
        positions: Sinusoidal positions need no training and know every length; learned ones end at ``max_positions``.
        sinusoid_layout: See :func:`lit_models.layers.sinusoid_table`.
        sinusoid_exponent: See :func:`lit_models.layers.sinusoid_table`.
        sinusoid_first_row: See :func:`lit_models.layers.sinusoid_table`.
        max_positions: Longest sequence of learned positions.
        tie_output: The output projection is the target embedding. With one shared vocabulary the source embedding is
            the same matrix too: the three-way tying of the paper's section 3.4.
        output_bias: Add a trained bias to the logits (Marian does).
        dropout: On the embedded input and on every sublayer's output.
        attention_dropout: On the attention weights.
        activation_dropout: Inside the feed-forward networks.
        norm_eps: Added to the variance in layer norms.
        pad_id: Token that fills rows.
        bos_id: Token that starts the decoder's input.
        eos_id: Token that ends a sentence.
    """

    dim: int = 512
    feed_forward_dim: int = 2048
    num_heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    norm_order: NormOrder = "post"
    activation: Activation = "relu"
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    sinusoid_layout: Literal["interleaved", "concatenated"] = "interleaved"
    sinusoid_exponent: Literal["paper", "tensor2tensor"] = "paper"
    sinusoid_first_row: int = 0
    max_positions: int = 1024
    tie_output: bool = True
    output_bias: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    norm_eps: float = 1e-5
    pad_id: int = 0
    bos_id: int = 2
    eos_id: int = 3

    def __post_init__(self) -> None:
        for name in ("dim", "feed_forward_dim", "num_heads", "encoder_layers", "decoder_layers", "max_positions"):
            check_at_least(name, getattr(self, name), 1)
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            check_probability(name, getattr(self, name))
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide dim {self.dim}")
        sinusoid = ("sinusoid_layout", "sinusoid_exponent", "sinusoid_first_row")
        without_effect = sinusoid if self.positions == "learned" else ("max_positions",)
        for field in fields(self):
            if field.name in without_effect and getattr(self, field.name) != field.default:
                raise ValueError(f"{field.name} has no effect with {self.positions} positions; leave it out")
        if self.positions == "sinusoidal" and self.dim % 2:
            raise ValueError(f"dim must be even for sinusoidal positions, got {self.dim}")

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> "TransformerConfig":
        """Build a config from plain values, as a checkpoint holds them.

        Raises:
            ValueError: If a key is unknown.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown keys of a Transformer config: {', '.join(unknown)}")
        return cls(**values)  # type: ignore[arg-type]


class AttentionMaps(NamedTuple):
    """Attention weights, one tensor (batch, heads, queries, keys) per layer."""

    encoder: list[Tensor]
    decoder: list[Tensor]
    cross: list[Tensor]


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each followed by residual addition and layer norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(config.dim, config.num_heads, dropout=config.attention_dropout)
        self.self_attention_norm = _residual_norm(config)
        self.feed_forward = _feed_forward(config)
        self.feed_forward_norm = _residual_norm(config)

    def forward(self, input: Tensor, residual: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(normed, residual)`` for the next layer; all are (batch, length, dim), ``lengths`` is (batch,)."""
        attended = self.self_attention(input, key_lengths=lengths)
        input, residual = self.self_attention_norm(attended, residual)
        return self.feed_forward_norm(self.feed_forward(input), residual)


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention and feed-forward, each followed by residual addition and layer norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(config.dim, config.num_heads, dropout=config.attention_dropout)
        self.self_attention_norm = _residual_norm(config)
        self.cross_attention = MultiHeadAttention(config.dim, config.num_heads, dropout=config.attention_dropout)
        self.cross_attention_norm = _residual_norm(config)
        self.feed_forward = _feed_forward(config)
        self.feed_forward_norm = _residual_norm(config)

    def forward(self, input: Tensor, residual: Tensor, memory: Tensor, memory_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(normed, residual)``. Right-padded targets need no mask: no position sees the padding after it."""
        input, residual = self.self_attention_norm(self.self_attention(input, causal=True), residual)
        attended = self.cross_attention(input, memory, key_lengths=memory_lengths)
        input, residual = self.cross_attention_norm(attended, residual)
        return self.feed_forward_norm(self.feed_forward(input), residual)

    def step(
        self,
        input: Tensor,
        residual: Tensor,
        past: PastAttention,
        position: int,
        memory: KeyValueCache,
        lengths: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Advance one position per row, (sentences·beam, 1, dim), writing this position's key and value into ``past``.

        ``memory`` holds the cross-attention's keys and values once per sentence; the beam lies along its queries.
        """
        query, key, value = self.self_attention.project(input)
        seen = past.append(key, value, position)
        input, residual = self.self_attention_norm(self.self_attention.attend(query, seen), residual)
        by_sentence = input.view(memory.key.shape[0], -1, input.shape[-1])
        query = self.cross_attention.project_query(by_sentence)
        attended = self.cross_attention.attend(query, memory, key_lengths=lengths).view(input.shape)
        input, residual = self.cross_attention_norm(attended, residual)
        return self.feed_forward_norm(self.feed_forward(input), residual)


class Transformer(nn.Module):
    """Encoder-decoder Transformer.

    Args:
        config: Sizes and variants.
        source_vocab_size: Rows of the source embedding.
        target_vocab_size: Rows of the target embedding; None if source and target share one vocabulary and embedding.
    """

    def __init__(self, config: TransformerConfig, source_vocab_size: int, target_vocab_size: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.source_vocab_size = source_vocab_size
        self.target_vocab_size = source_vocab_size if target_vocab_size is None else target_vocab_size
        self.source_embedding = _embedding(config, source_vocab_size)
        # Assigning one module twice shares its weight: the state dict then names it twice, and loading keeps it one.
        self.target_embedding = (
            self.source_embedding if target_vocab_size is None else _embedding(config, target_vocab_size)
        )
        self.source_positions = _positions(config)
        self.target_positions = _positions(config)
        self.encoder_layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.decoder_layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        pre = config.norm_order == "pre"
        self.encoder_input_norm = LayerNorm(config.dim, config.norm_eps) if pre else nn.Identity()
        self.decoder_input_norm = LayerNorm(config.dim, config.norm_eps) if pre else nn.Identity()
        self.output_projection = (
            None if config.tie_output else nn.Linear(config.dim, self.target_vocab_size, bias=False)
        )
        if self.output_projection is not None:
            nn.init.normal_(self.output_projection.weight, std=config.dim**-0.5)
        self.output_bias = nn.Parameter(torch.zeros(self.target_vocab_size)) if config.output_bias else None

    @property
    def output_weight(self) -> Tensor:
        """The output projection, (target_vocab_size, dim)."""
        return self.target_embedding.weight if self.output_projection is None else self.output_projection.weight

    def forward(self, source: Tensor, source_lengths: Tensor, target_input: Tensor) -> Tensor:
        """Return the logits of every target position given the true ones before it.

        Args:
            source: (batch, source_length) int64, right-padded.
            source_lengths: (batch,) integers.
            target_input: (batch, target_length) int64, starting with ``bos_id``.

        Returns:
            (batch, target_length, target_vocab_size) float32.
        """
        return self.project(self.decode(target_input, self.encode(source, source_lengths), source_lengths))

    def encode(self, source: Tensor, source_lengths: Tensor) -> Tensor:
        """Return the encoder's output, (batch, source_length, dim); rows behind an example's length mean nothing."""
        residual = self._embed(self.source_embedding, self.source_positions, source)
        input = self.encoder_input_norm(residual)
        for layer in self.encoder_layers:
            input, residual = layer(input, residual, source_lengths)
        return input

    def decode(self, target_input: Tensor, memory: Tensor, memory_lengths: Tensor) -> Tensor:
        """Return the decoder's output before the projection, (batch, target_length, dim)."""
        residual = self._embed(self.target_embedding, self.target_positions, target_input)
        input = self.decoder_input_norm(residual)
        for layer in self.decoder_layers:
            input, residual = layer(input, residual, memory, memory_lengths)
        return input

    def project(self, hidden: Tensor) -> Tensor:
        """Return the logits of (..., dim) as (..., target_vocab_size) float32."""
        return functional.linear(hidden, self.output_weight, self.output_bias).float()

    @torch.no_grad()
    def start(self, memory: Tensor, memory_lengths: Tensor, beam_size: int = 1, max_length: int = 64) -> DecoderState:
        """Prepare step-by-step decoding, which passes no gradient.

        Args:
            memory: (sentences, source_length, dim), of :meth:`encode`.
            memory_lengths: (sentences,) integers.
            beam_size: Rows that each sentence will be decoded in.
            max_length: Positions to make room for at first; the caches grow beyond it by themselves.
        """
        projected = [layer.cross_attention.project_key_value(memory) for layer in self._decoder()]
        empty = projected[0].key.new_empty(max_length, memory.shape[0] * beam_size, self.config.dim)
        past = [PastAttention(torch.empty_like(empty), torch.empty_like(empty)) for _ in projected]
        return DecoderState(past, projected, memory_lengths, beam_size)

    @torch.no_grad()
    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Decode one position of every row.

        Args:
            tokens: (sentences·beam,) int64, the tokens at this position; ``bos_id`` at the first.
            state: Of :meth:`start`; advances by one position.

        Returns:
            Logits of the next token, (sentences·beam, target_vocab_size) float32.
        """
        residual = self._embed(self.target_embedding, self.target_positions, tokens[:, None], state.position)
        input = self.decoder_input_norm(residual)
        for layer, past, memory in zip(self._decoder(), state.past, state.memory, strict=True):
            input, residual = layer.step(input, residual, past, state.position, memory, state.memory_lengths)
        state.position += 1
        return self.project(input[:, 0])

    @torch.no_grad()
    def attention_maps(self, source: Tensor, source_lengths: Tensor, target_input: Tensor) -> AttentionMaps:
        """Return the weights of every attention layer, in evaluation mode and float32.

        The fused kernels hold no weights, so each layer's are computed once more beside it.
        """
        maps = AttentionMaps([], [], [])
        was_training = self.training
        self.eval()
        residual = self._embed(self.source_embedding, self.source_positions, source)
        input = self.encoder_input_norm(residual)
        for layer in self._encoder():
            maps.encoder.append(layer.self_attention.weights(input, key_lengths=source_lengths).float())
            input, residual = layer(input, residual, source_lengths)
        memory = input
        residual = self._embed(self.target_embedding, self.target_positions, target_input)
        input = self.decoder_input_norm(residual)
        for block in self._decoder():
            maps.decoder.append(block.self_attention.weights(input, causal=True).float())
            normed, _ = block.self_attention_norm(block.self_attention(input, causal=True), residual)
            maps.cross.append(block.cross_attention.weights(normed, memory, key_lengths=source_lengths).float())
            input, residual = block(input, residual, memory, source_lengths)
        self.train(was_training)
        return maps

    def _encoder(self) -> list[EncoderLayer]:
        return list(self.encoder_layers)  # type: ignore[arg-type]

    def _decoder(self) -> list[DecoderLayer]:
        return list(self.decoder_layers)  # type: ignore[arg-type]

    def _embed(self, embedding: nn.Module, positions: nn.Module, tokens: Tensor, start: int = 0) -> Tensor:
        """Scale the embedding by √dim, add the positions, drop out: (batch, length) -> (batch, length, dim)."""
        embedded = embedding(tokens) * self.config.dim**0.5
        embedded = embedded + positions(start, tokens.shape[1], embedded)
        return dropout(embedded, self.config.dropout if self.training else 0.0)


def _embedding(config: TransformerConfig, vocab_size: int) -> nn.Embedding:
    """Draw from N(0, 1/dim): times √dim it has unit variance, and as output weight it gives logits of O(1)."""
    embedding = nn.Embedding(vocab_size, config.dim)
    nn.init.normal_(embedding.weight, std=config.dim**-0.5)
    return embedding


def _positions(config: TransformerConfig) -> nn.Module:
    if config.positions == "learned":
        return LearnedPositions(config.dim, config.max_positions)
    return SinusoidalPositions(
        config.dim,
        layout=config.sinusoid_layout,
        exponent=config.sinusoid_exponent,
        first_row=config.sinusoid_first_row,
    )


def _residual_norm(config: TransformerConfig) -> ResidualLayerNorm:
    return ResidualLayerNorm(config.dim, config.norm_eps, order=config.norm_order, dropout=config.dropout)


def _feed_forward(config: TransformerConfig) -> FeedForward:
    return FeedForward(
        config.dim, config.feed_forward_dim, activation=config.activation, dropout=config.activation_dropout
    )
