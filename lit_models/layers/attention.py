"""Multi-head attention on the project's kernels: self, cross and cached."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels import attention_weights, flash_attention


class KeyValueCache(NamedTuple):
    """Keys and values of one attention layer, (batch, heads, length, head_dim) each."""

    key: Tensor
    value: Tensor


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2) with one stacked query-key-value projection.

    Args:
        dim: Width of input and output.
        num_heads: Number of heads; divides ``dim``.
        dropout: Probability of dropping an attention weight in training.

    Raises:
        ValueError: If ``num_heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads {num_heads} must divide dim {dim}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw Xavier-uniform weights; the stacked shape gives q, k and v fairseq's gain of 1/√2."""
        for linear in (self.query_key_value, self.output):
            nn.init.xavier_uniform_(linear.weight)
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
        self, query: Tensor, cache: KeyValueCache, *, causal: bool = False, key_lengths: Tensor | None = None
    ) -> Tensor:
        """Attend from projected queries, (batch, heads, length, head_dim), to keys and values already projected."""
        dropout_p = self.dropout if self.training else 0.0
        attended = flash_attention(
            query, cache.key, cache.value, causal=causal, key_lengths=key_lengths, dropout_p=dropout_p
        )
        return self.output(attended.transpose(1, 2).flatten(2))

    def project_query(self, input: Tensor) -> Tensor:
        """Return the queries of (batch, length, dim) as (batch, heads, length, head_dim)."""
        dim = input.shape[-1]
        projected = functional.linear(input, self.query_key_value.weight[:dim], self.query_key_value.bias[:dim])
        return self._split_heads(projected, 1)[0]

    def project_key_value(self, memory: Tensor) -> KeyValueCache:
        """Return the keys and values of (batch, length, dim)."""
        dim = memory.shape[-1]
        projected = functional.linear(memory, self.query_key_value.weight[dim:], self.query_key_value.bias[dim:])
        return KeyValueCache(*self._split_heads(projected, 2))

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
            return query, key, value
        return self.project_query(input), *self.project_key_value(memory)

    def _split_heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """View (batch, length, parts·dim) as ``parts`` tensors (batch, heads, length, head_dim), without a copy."""
        batch, length, width = projected.shape
        heads = projected.view(batch, length, parts, self.num_heads, width // (parts * self.num_heads))
        return torch.unbind(heads.permute(2, 0, 3, 1, 4))
