"""Position encodings of the variants that public translation checkpoints use."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

SinusoidLayout = Literal["interleaved", "concatenated"]
SinusoidExponent = Literal["paper", "tensor2tensor"]


def sinusoid_table(
    length: int,
    dim: int,
    *,
    layout: SinusoidLayout = "interleaved",
    exponent: SinusoidExponent = "paper",
    first_row: int = 0,
) -> Tensor:
    """Return sinusoidal position encodings, (length, dim) float32.

    ==================================  ============  =============  =========
    used by                             layout        exponent       first_row
    ==================================  ============  =============  =========
    Vaswani et al. 2017 (the paper)     interleaved   paper          0
    tensor2tensor                       concatenated  tensor2tensor  0
    fairseq                             concatenated  tensor2tensor  2
    Marian, Hugging Face MarianMTModel  concatenated  paper          0
    ==================================  ============  =============  =========

    Args:
        length: Number of rows.
        dim: Width, even.
        layout: ``sin`` and ``cos`` alternate along the width, or all ``sin`` come before all ``cos``.
        exponent: Frequency of pair ``i``: ``10000^(-2i/dim)``, or tensor2tensor's ``10000^(-i/(dim/2 - 1))``.
        first_row: Position number of the first token.

    Raises:
        ValueError: If ``dim`` is odd, or too small for the exponent.
    """
    if dim % 2 or (exponent == "tensor2tensor" and dim < 4):
        raise ValueError(f"dim must be even (and at least 4 for the tensor2tensor exponent), got {dim}")
    pairs = torch.arange(dim // 2, dtype=torch.float64)
    divisor = dim / 2 if exponent == "paper" else dim / 2 - 1
    frequencies = torch.exp(pairs * (-math.log(10_000.0) / divisor))
    angles = torch.arange(first_row, first_row + length, dtype=torch.float64)[:, None] * frequencies
    parts = (angles.sin(), angles.cos())
    table = torch.stack(parts, dim=-1).flatten(1) if layout == "interleaved" else torch.cat(parts, dim=-1)
    return table.float()


class SinusoidalPositions(nn.Module):
    """Sinusoidal encodings that grow to any length and are not part of the state dict.

    Args:
        dim: Width.
        layout: See :func:`sinusoid_table`.
        exponent: See :func:`sinusoid_table`.
        first_row: See :func:`sinusoid_table`.
    """

    def __init__(
        self,
        dim: int,
        *,
        layout: SinusoidLayout = "interleaved",
        exponent: SinusoidExponent = "paper",
        first_row: int = 0,
    ) -> None:
        super().__init__()
        self.dim, self.layout, self.exponent, self.first_row = dim, layout, exponent, first_row
        # Not a buffer: DistributedDataParallel would broadcast it, and its length differs between processes.
        self._table = self._rows(256)

    def forward(self, start: int, length: int, like: Tensor) -> Tensor:
        """Return the encodings of positions ``start`` to ``start + length - 1``, (length, dim), as ``like`` is.

        Args:
            start: First position.
            length: Number of positions.
            like: A tensor whose device and dtype the encodings get.
        """
        grows = start + length > self._table.shape[0]
        if grows or self._table.device != like.device or self._table.dtype != like.dtype:
            # Made during validation it must still serve training, where tensors of inference mode may not go.
            with torch.inference_mode(False):
                rows = self._rows(2 * (start + length) if grows else self._table.shape[0])
                self._table = rows.to(device=like.device, dtype=like.dtype)
        return self._table[start : start + length]

    def _rows(self, length: int) -> Tensor:
        return sinusoid_table(length, self.dim, layout=self.layout, exponent=self.exponent, first_row=self.first_row)


class LearnedPositions(nn.Module):
    """One trained vector per position (Gehring et al. 2017).

    Args:
        dim: Width.
        max_positions: Longest sequence.
    """

    def __init__(self, dim: int, max_positions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_positions, dim))
        nn.init.normal_(self.weight, std=dim**-0.5)

    def forward(self, start: int, length: int, like: Tensor) -> Tensor:
        """Return the vectors of positions ``start`` to ``start + length - 1``, (length, dim).

        Raises:
            ValueError: If the sequence is longer than ``max_positions``.
        """
        if start + length > self.weight.shape[0]:
            raise ValueError(
                f"a sequence of {start + length} tokens exceeds max_positions {self.weight.shape[0]} of the learned "
                "positions: shorten the input, or train with sinusoidal positions or a larger max_positions"
            )
        return self.weight[start : start + length]


def resize_positions(
    table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], *, prefix: int = 0, antialias: bool = False
) -> Tensor:
    """Resample the learned positions of a grid of patches for another grid.

    Public code agrees on bicubic interpolation without aligned corners, but not on ``antialias``: DeiT and Hugging Face
    have none, timm has, and the two differ even when the grid grows.

    Args:
        table: (1, prefix + rows·columns, dim).
        old_grid: (rows, columns) of the table.
        new_grid: (rows, columns) wanted.
        prefix: Leading entries that belong to no patch (class, distillation and register tokens); they are kept.
        antialias: See :func:`torch.nn.functional.interpolate`.

    Returns:
        (1, prefix + new rows·columns, dim) in the table's dtype; ``table`` itself if the grids are equal.

    Raises:
        ValueError: If the table does not hold ``prefix`` entries and the old grid.
    """
    rows, columns = old_grid
    if table.dim() != 3 or table.shape[1] != prefix + rows * columns:
        raise ValueError(
            f"a table of positions for {prefix} prefix tokens and {rows}x{columns} patches has the shape "
            f"(1, {prefix + rows * columns}, dim), got {tuple(table.shape)}"
        )
    if old_grid == new_grid:
        return table
    grid = table[:, prefix:].float().unflatten(1, old_grid).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, new_grid, mode="bicubic", align_corners=False, antialias=antialias)
    return torch.cat([table[:, :prefix], grid.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)
