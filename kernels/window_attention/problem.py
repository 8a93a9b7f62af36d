"""The arguments that the forward and the backward kernels of window attention share."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels import random
from kernels.window_attention import tuning
from kernels.window_attention.geometry import Geometry


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Args:
        grid: Its programs: heads within blocks of tokens within shares of the windows.
        rows: Programs per head, each of which may write one row of partial sums.
        splits: Shares of the windows.
        options: Arguments that the entry of the launch table fixes.
    """

    grid: tuple[int]
    rows: int
    splits: int
    options: dict[str, int]


class Problem:
    """What both directions pass to their kernels: arguments that shapes and settings fix, by parameter name.

    Args:
        qkv: (batch, height, width, 3 · channels), last dimension contiguous.
        table: ((2 · window height - 1) · (2 · window width - 1), heads) float32, contiguous, or None.
        qkv_padding: (3 · channels,), contiguous, or None.
        logit_scale: (heads,) float32, contiguous, or None.
        seed: (1,) int64 on the device, or None without dropout.
        geometry: The windows.
        heads: Divides the channels.
        scale: Factor of the scores without ``logit_scale``.
        dropout_p: Probability of dropping a weight.
    """

    def __init__(
        self,
        qkv: Tensor,
        table: Tensor | None,
        qkv_padding: Tensor | None,
        logit_scale: Tensor | None,
        seed: Tensor | None,
        geometry: Geometry,
        heads: int,
        scale: float,
        dropout_p: float,
    ) -> None:
        batch, height, width, stacked = qkv.shape
        rows, columns = geometry.grid
        self.device, self.table, self.heads = qkv.device, table, heads
        self.channels, self.head_dim = stacked // 3, stacked // (3 * heads)
        self.windows, self.tile = batch * rows * columns, tuning.tile(geometry.tokens)
        self.shape = tuning.Shape(
            architecture=tuning.architecture(qkv.device),
            itemsize=qkv.element_size(),
            tile=self.tile,
            block_head_dim=tuning.block_head_dim(self.head_dim),
            features=tuning.features(logit_scale is not None, geometry.has_padding, seed is not None),
        )
        self.arguments: dict[str, Any] = {
            "qkv_pointer": qkv,
            "padding_pointer": qkv_padding if geometry.has_padding else None,
            "logit_scale_pointer": logit_scale,
            "seed_pointer": seed,
            "stride_batch": qkv.stride(0),
            "stride_row": qkv.stride(1),
            "stride_column": qkv.stride(2),
            "channels": self.channels,
            "height": height,
            "width": width,
            "grid_rows": rows,
            "grid_columns": columns,
            "heads": heads,
            "windows": self.windows,
            "scale": scale,
            "keep_scale": 1.0 / (1.0 - dropout_p),
            "dropout_threshold": random.threshold(dropout_p),
            "GEOMETRY": (*geometry.window, *geometry.shift, geometry.roll_first, geometry.has_padding),
            "HEAD_DIM": self.head_dim,
            "BLOCK_D": self.shape.block_head_dim,
            "TILE": self.tile,
            "PRECISION": "tf32" if qkv.dtype == torch.float32 and allows_tf32() else "ieee",
        }

    def launch(self, kind: tuning.Kind) -> Launch:
        """Return how one kernel is launched: its windows go to as many programs as the GPU runs at once."""
        entry = tuning.entry(kind, self.shape)
        largest = min(self.tile, tuning.LARGEST_TILE)
        block_queries, block_keys = min(entry.block_queries, largest), min(entry.block_keys, largest)
        blocks = {
            "forward": self.tile // block_queries,
            "backward_window": 1,
            "backward_query": self.tile // block_queries,
            "backward_key_value": self.tile // block_keys,
            "backward_bias": (self.tile // block_queries) * (self.tile // block_keys),
        }[kind]
        programs = tuning.programs(self.device, entry) // (self.heads * blocks)
        windows_each = -(-self.windows // min(self.windows, max(1, programs)))
        splits = -(-self.windows // windows_each)
        options = {
            "windows_each": windows_each,
            "num_warps": entry.num_warps,
            "num_stages": entry.num_stages,
        }
        if kind != "backward_window":
            options |= {"BLOCK_M": block_queries, "BLOCK_N": block_keys}
        return Launch((splits * blocks * self.heads,), splits * blocks, splits, options)

    def partial(self, *shape: int) -> Tensor:
        """Return unwritten partial sums."""
        return torch.empty(shape, dtype=torch.float32, device=self.device)


def allows_tf32() -> bool:
    """Return whether torch's setting lets float32 matrix products run in TensorFloat-32."""
    return torch.get_float32_matmul_precision() != "highest"
