"""Where the tokens of shifted windows lie in a map: index arithmetic that the kernels do and the PyTorch path keeps.

A map (height, width) is padded at its bottom and right to whole windows, rolled by minus the shift and cut into windows
(Liu et al. 2021, section 3.2). Either order of padding and rolling is in use.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Added to the scores of tokens that the roll brought together, as in every public Swin: not -inf.
MASKED = -100.0


@dataclass(frozen=True)
class Geometry:
    """The windows of one map.

    Args:
        height: Rows of the map.
        width: Columns of the map.
        window: Rows and columns of a window.
        shift: Rows and columns that the map is rolled by; 0 for a plain window.
        roll_first: Roll the map and pad it then (timm), not the other way round (torchvision, Microsoft's detection).
    """

    height: int
    width: int
    window: tuple[int, int]
    shift: tuple[int, int]
    roll_first: bool

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        return math.ceil(self.height / self.window[0]), math.ceil(self.width / self.window[1])

    @property
    def padded(self) -> tuple[int, int]:
        """Rows and columns of the padded map."""
        return self.grid[0] * self.window[0], self.grid[1] * self.window[1]

    @property
    def tokens(self) -> int:
        """Tokens of a window."""
        return self.window[0] * self.window[1]

    @property
    def has_padding(self) -> bool:
        """Whether any window holds tokens that the map does not."""
        return self.padded != (self.height, self.width)

    def sources(self) -> Tensor:
        """Return where each token is read: (windows, tokens) int64, ``row · width + column``.

        Padding reads ``height · width``, one past the map.
        """
        rows, in_rows = self._axis_sources(0, self.height)
        columns, in_columns = self._axis_sources(1, self.width)
        sources = rows[:, None] * self.width + columns
        sources.masked_fill_(~(in_rows[:, None] & in_columns), self.height * self.width)
        return self._partition(sources)

    def regions(self) -> Tensor:
        """Return which part of the map each token comes from, (windows, tokens) int64; only equal ones see each other.

        Parts differ in the last row and column of windows alone, and only along an axis that is shifted.
        """
        return self._partition(3 * self._axis_regions(0)[:, None] + self._axis_regions(1))

    def relative(self) -> Tensor:
        """Return the row of the bias table for each query and key of a window, (tokens, tokens) int64."""
        height, width = self.window
        row, column = (
            axis.flatten() for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        )
        rows = row[:, None] - row + height - 1
        columns = column[:, None] - column + width - 1
        return rows * (2 * width - 1) + columns

    def _axis_sources(self, axis: int, size: int) -> tuple[Tensor, Tensor]:
        """Return the map's row or column of each one of the shifted map, and whether there is one."""
        position = torch.arange(self.padded[axis])
        if self.roll_first:
            return (position + self.shift[axis]) % size, position < size
        source = (position + self.shift[axis]) % self.padded[axis]
        return source, source < size

    def _axis_regions(self, axis: int) -> Tensor:
        position = torch.arange(self.padded[axis])
        last = (position >= self.padded[axis] - self.window[axis]).long()
        return last + (position >= self.padded[axis] - self.shift[axis])

    def _partition(self, tokens: Tensor) -> Tensor:
        """Cut (padded height, padded width) into (windows, tokens)."""
        (rows, columns), (height, width) = self.grid, self.window
        return tokens.view(rows, height, columns, width).transpose(1, 2).reshape(rows * columns, height * width)
