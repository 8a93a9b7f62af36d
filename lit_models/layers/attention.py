"""Multi-head attention on the project's kernels: self, cross and cached."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels import attention_weights, flash_attention, flash_attention_varlen
from lit_models.layers.normalization import LayerNorm


class KeyValueCache(NamedTuple):
    """Keys and values of one attention layer, (batch, heads, length, head_dim) each."""

    key: Tensor
    value: Tensor


class Packing(NamedTuple):
    """Where sequences lie that follow one another in a batch of one: see :func:`kernels.flash_attention_varlen`.

    Attributes:
        offsets_query: (sequences + 1,) integers, where each sequence of queries begins and the one before it ends.
        offsets_key: The same of the keys.
        max_length_query: Queries of the longest sequence.
        max_length_key: Keys of the longest sequence.
    """

    offsets_query: Tensor
    offsets_key: Tensor
    max_length_query: int
    max_length_key: int


class HeadNorm(LayerNorm):
    """Layer norm over each head's width that keeps the dtype, so that queries and keys stay like the values."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (batch, heads, length, head_dim)."""
        return super().forward(input).to(input.dtype)


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2) with one stacked query-key-value projection.

    Args:
        dim: Width of input and output.
        num_heads: Number of heads; divides ``dim``.
        dropout: Probability of dropping an attention weight in training.
        qkv_bias: Add a bias to queries, keys and values.
        qk_norm: Normalise each head's queries and keys (Dehghani et al. 2023, "Scaling Vision Transformers to 22
            Billion Parameters", section 2).
        norm_eps: Added to the variance in those norms.

    Raises:
        ValueError: If ``num_heads`` does not divide ``dim``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        dropout: float = 0.0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads {num_heads} must divide dim {dim}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.query_norm = HeadNorm(dim // num_heads, norm_eps) if qk_norm else nn.Identity()
        self.key_norm = HeadNorm(dim // num_heads, norm_eps) if qk_norm else nn.Identity()
        self.output = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw Xavier-uniform weights; the stacked shape gives q, k and v fairseq's gain of 1/√2."""
        for linear in (self.query_key_value, self.output):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(
        self,
        input: Tensor,
        memory: Tensor | None = None,
        *,
        causal: bool = False,
        key_lengths: Tensor | None = None,
    ) -> Tensor:
        """Attend from ``input`` to itself or to ``memory``.

        Args:
            input: (batch, length, dim).
            memory: (batch, memory_length, dim), or None for self-attention.
            causal: No position sees a later one.
            key_lengths: (batch,) integers, the valid positions of ``memory`` (or of ``input`` itself).

        Returns:
            (batch, length, dim).
        """
        query, key, value = self.project(input, memory)
        return self.attend(query, KeyValueCache(key, value), causal=causal, key_lengths=key_lengths)

    def attend(
        self,
        query: Tensor,
        cache: KeyValueCache,
        *,
        causal: bool = False,
        key_lengths: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Attend from projected queries, (batch, heads, length, head_dim), to keys and values already projected.

        With ``packing`` the batch is one, and its queries see the keys of their own sequence alone.
        """
        dropout_p = self.dropout if self.training else 0.0
        if packing is not None:
            return self.output(attend_packed(query, *cache, packing, dropout_p).flatten(2))
        attended = flash_attention(
            query, cache.key, cache.value, causal=causal, key_lengths=key_lengths, dropout_p=dropout_p
        )
        return self.output(attended.transpose(1, 2).flatten(2))

    def project_query(self, input: Tensor) -> Tensor:
        """Return the queries of (batch, length, dim) as (batch, heads, length, head_dim)."""
        return self.query_norm(self._split_heads(self._project_rows(input, slice(None, input.shape[-1])), 1)[0])

    def project_key_value(self, memory: Tensor) -> KeyValueCache:
        """Return the keys and values of (batch, length, dim)."""
        key, value = self._split_heads(self._project_rows(memory, slice(memory.shape[-1], None)), 2)
        return KeyValueCache(self.key_norm(key), value)

    def weights(
        self,
        input: Tensor,
        memory: Tensor | None = None,
        *,
        causal: bool = False,
        key_lengths: Tensor | None = None,
    ) -> Tensor:
        """Return the attention weights, (batch, heads, length, memory_length): the slow path, for looking at them."""
        query, key, _ = self.project(input, memory)
        return attention_weights(query, key, causal=causal, key_lengths=key_lengths)

    def project(self, input: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries of ``input``, and keys and values of ``memory`` (or of ``input`` itself), split into heads."""
        if memory is None:
            query, key, value = self._split_heads(self.query_key_value(input), 3)
            return self.query_norm(query), self.key_norm(key), value
        return self.project_query(input), *self.project_key_value(memory)

    def project_apart(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of three inputs, as where positions are added to queries and keys alone.

        Queries and keys of one tensor are one product.
        """
        dim = query.shape[-1]
        projected_value = self._split_heads(self._project_rows(value, slice(2 * dim, None)), 1)[0]
        if query is key:
            projected = self._split_heads(self._project_rows(query, slice(2 * dim)), 2)
        else:
            projected = self._split_heads(self._project_rows(query, slice(dim)), 1)
            projected += self._split_heads(self._project_rows(key, slice(dim, 2 * dim)), 1)
        return self.query_norm(projected[0]), self.key_norm(projected[1]), projected_value

    def _project_rows(self, input: Tensor, rows: slice) -> Tensor:
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        return functional.linear(input, weight[rows], None if bias is None else bias[rows])

    def _split_heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """View (batch, length, parts·dim) as ``parts`` tensors (batch, heads, length, head_dim), without a copy."""
        batch, length, width = projected.shape
        heads = projected.view(batch, length, parts, self.num_heads, width // (parts * self.num_heads))
        return torch.unbind(heads.permute(2, 0, 3, 1, 4))


def attend_packed(query: Tensor, key: Tensor, value: Tensor, packing: Packing, dropout_p: float) -> Tensor:
    """Attend within packed sequences.

    Args:
        query: (1, heads, query_tokens, head_dim).
        key: (1, heads, key_tokens, head_dim).
        value: (1, heads, key_tokens, value_head_dim).
        packing: Where the sequences lie.
        dropout_p: Probability of dropping an attention weight.

    Returns:
        (1, query_tokens, heads, value_head_dim): the heads are side by side, ready to be merged.
    """
    tokens = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return flash_attention_varlen(*tokens, **packing._asdict(), dropout_p=dropout_p)[None]
