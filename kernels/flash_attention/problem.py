"""The arguments that the forward and the backward kernels of attention share."""

import math

import torch
from torch import Tensor

from kernels import random
from kernels.flash_attention import tuning

BIAS_STRIDES = ("bias_stride_batch", "bias_stride_head", "bias_stride_query", "bias_stride_key")


class Problem:
    """What both directions pass to their kernels: arguments that shapes and settings fix, by parameter name.

    Args:
        query: (batch, heads, query_rows, head_dim), or (1, heads, tokens, head_dim) with offsets.
        key: (batch, key_heads, key_rows, head_dim).
        value: (batch, key_heads, key_rows, value_head_dim).
        bias: Expanded to (batch, heads, query_rows, key_rows), or None.
        key_lengths: (batch,) integers, or None.
        offsets_query: (sequences + 1,) integers, or None.
        offsets_key: (sequences + 1,) integers, or None.
        seed: (1,) int64 on the device, or None without dropout.
        max_query: The longest sequence of queries.
        max_key: The longest sequence of keys.
        causal: Whether a query sees no key after its own position.
        dropout_p: Probability of dropping a weight.
        scale: Factor of the scores.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        key_lengths: Tensor | None,
        offsets_query: Tensor | None,
        offsets_key: Tensor | None,
        seed: Tensor | None,
        max_query: int,
        max_key: int,
        causal: bool,
        dropout_p: float,
        scale: float,
    ) -> None:
        self.packed = offsets_query is not None
        self.sequences = query.shape[0] if offsets_query is None else offsets_query.shape[0] - 1
        self.heads = query.shape[1]
        self.key_heads = key.shape[1]
        self.max_query, self.max_key = max_query, max_key
        block_d, block_dv = block_of(query.shape[3]), block_of(value.shape[3])
        self.shape = tuning.Shape(
            architecture=tuning.architecture(query.device),
            query_length=max_query,
            key_length=max_key,
            block_head_dim=max(block_d, block_dv),
            itemsize=query.element_size(),
            extras=bias is not None or seed is not None,
        )
        bias_strides = (0, 0, 0, 0) if bias is None else bias.stride()
        self.arguments = {
            "query_pointer": query,
            "key_pointer": key,
            "value_pointer": value,
            "bias_pointer": bias,
            "key_lengths_pointer": key_lengths,
            "offsets_query_pointer": offsets_query,
            "offsets_key_pointer": offsets_key,
            "seed_pointer": seed,
            **self.strides("query", query),
            **self.strides("key", key),
            **self.strides("value", value),
            **dict(zip(BIAS_STRIDES, bias_strides, strict=True)),
            "heads": self.heads,
            "query_rows": query.shape[2],
            "key_rows": key.shape[2],
            "max_query": max_query,
            "max_key": max_key,
            "scale": scale,
            "scale_log2": scale / math.log(2),
            "keep_scale": 1.0 / (1.0 - dropout_p),
            "dropout_threshold": random.threshold(dropout_p),
            "GROUP": self.heads // self.key_heads,
            "HEAD_DIM": query.shape[3],
            "VALUE_DIM": value.shape[3],
            "BLOCK_D": block_d,
            "BLOCK_DV": block_dv,
            "CAUSAL": causal,
            "PRECISION": "tf32" if query.dtype == torch.float32 and allows_tf32() else "ieee",
        }

    def strides(self, name: str, tensor: Tensor) -> dict[str, int]:
        """Return the strides of a tensor's batch, heads and rows as arguments; packed sequences share one batch."""
        batch, head, row, _ = tensor.stride()
        return {f"{name}_stride_batch": 0 if self.packed else batch, f"{name}_stride_head": head, f"{name}_stride": row}


def block_of(size: int) -> int:
    """Return the power of two, at least 16, that holds a head_dim: tensor cores take no smaller one."""
    return max(16, 1 << (size - 1).bit_length())


def allows_tf32() -> bool:
    """Return whether torch's setting lets float32 matrix products run in TensorFloat-32."""
    return torch.get_float32_matmul_precision() != "highest"
