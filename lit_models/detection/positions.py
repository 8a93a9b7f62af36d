"""Where the tokens of a padded batch lie, and what tells the networks so: 2-D sine and learned positions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_models.checks import check_at_least
from lit_models.layers import Packing

# Keeps the official code's division by the number of rows finite where there are none; part of its values.
_EPS = 1e-6


def valid_cells(size: int, padded: int, cells: int) -> int:
    """Return how many of a feature map's rows (or columns) belong to the image and not to its padding.

    The official code resizes the mask of the pixels by nearest neighbour: row ``i`` reads the pixel
    ``floor(i · padded / cells)``, which is in the image for ``i < size · cells / padded``. (It computes that in
    float32, which agrees wherever the stride is a power of two.)

    Args:
        size: Pixels of the image.
        padded: Pixels with the padding.
        cells: Rows of the feature map of the padded image.
    """
    return -(-size * cells // padded)


@dataclass(frozen=True)
class TokenLayout:
    """The valid tokens of a batch's feature maps, and where each one lies.

    Attention does not care about order, so that a padded batch becomes one row of valid tokens, image after image:
    nothing is computed for padding, and no mask is needed. A batch without padding stays as it is.

    Attributes:
        batch: Number of images.
        extents: Valid (rows, columns) of each image's map, plain integers.
        rows: (images,) valid rows, int64; one entry stands for all images of a batch without padding.
        columns: (images,) valid columns.
        image: (tokens,) entry of ``rows`` that a token belongs to.
        row: (tokens,) row of a token, from 0.
        column: (tokens,) column of a token, from 0.
        index: (tokens,) number of a token among all tokens of the padded maps; None in a batch without padding.
        offsets: (batch + 1,) where each image's tokens begin; None in a batch without padding.
    """

    batch: int
    extents: tuple[tuple[int, int], ...]
    rows: Tensor
    columns: Tensor
    image: Tensor
    row: Tensor
    column: Tensor
    index: Tensor | None = None
    offsets: Tensor | None = None

    @classmethod
    def of(cls, features: Tensor, sizes: Sequence[tuple[int, int]], padded: tuple[int, int]) -> "TokenLayout":
        """Lay out maps (batch, channels, rows, columns) of images of ``sizes`` in a canvas of ``padded`` pixels.

        Nothing waits for the device: the numbers come from the host.
        """
        height, width = features.shape[-2:]
        extents = tuple(
            (valid_cells(size[0], padded[0], height), valid_cells(size[1], padded[1], width)) for size in sizes
        )
        packed = any(extent != (height, width) for extent in extents)
        shown = extents if packed else extents[:1]
        lengths = [rows * columns for rows, columns in shown]
        offsets = [0]
        for length in lengths:
            offsets.append(offsets[-1] + length)
        table = _to_device([*(rows for rows, _ in shown), *(columns for _, columns in shown), *offsets], features)
        rows, columns, starts = table.split([len(shown), len(shown), len(offsets)])
        token = torch.arange(offsets[-1], device=features.device)
        # The last token's place is known, so that counting the tokens of each image waits for nothing.
        image = torch.repeat_interleave(starts.diff(), output_size=offsets[-1])
        place = token - starts[image]
        row, column = place // columns[image], place % columns[image]
        index = (image * height + row) * width + column if packed else None
        return cls(len(sizes), extents, rows, columns, image, row, column, index, starts if packed else None)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Valid tokens of each image."""
        return tuple(rows * columns for rows, columns in self.extents)

    def tokens(self, features: Tensor) -> Tensor:
        """Return the tokens of maps (batch, dim, rows, columns).

        Returns:
            (batch, rows·columns, dim), row by row; (1, valid tokens of all images, dim) of a padded batch.
        """
        tokens = features.flatten(2).transpose(1, 2)
        if self.index is None:
            return tokens.contiguous()
        return tokens.flatten(0, 1).index_select(0, self.index)[None]

    def self_packing(self) -> Packing | None:
        """Return how the tokens see one another; None without padding: each image is a row of the batch."""
        if self.offsets is None:
            return None
        return Packing(self.offsets, self.offsets, max(self.lengths), max(self.lengths))

    def cross_packing(self, queries: int) -> Packing | None:
        """Return how ``queries`` queries an image, laid one image after the other, see the tokens."""
        if self.offsets is None:
            return None
        starts = torch.arange(0, (self.batch + 1) * queries, queries, device=self.offsets.device)
        return Packing(starts, self.offsets, queries, max(self.lengths))


def _to_device(numbers: list[int], like: Tensor) -> Tensor:
    """Copy integers to a tensor's device; from pinned memory, so that the host does not wait for a GPU."""
    table = torch.tensor(numbers)
    return table.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else table.to(like.device)


def sine_encoding(angles: Tensor, features: int) -> Tensor:
    """Encode angles by sines and cosines in turn, of frequencies ``10000^(-2·floor(i/2)/features)``.

    Args:
        angles: (...), in [0, 2π], floating point.
        features: Width of the result, even.

    Returns:
        (..., features).
    """
    exponents = torch.arange(features, dtype=angles.dtype, device=angles.device).div(2, rounding_mode="floor")
    angles = angles[..., None] / 10_000.0 ** (2 * exponents / features)
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


class SinePositions2d(nn.Module):
    """Sines and cosines of a token's row, then of its column, as shares of the valid area (Carion et al. 2020).

    Args:
        dim: Width, a multiple of 4: one half for the row, one for the column.

    Raises:
        ValueError: If the width is no such number.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"dim must be a multiple of 4 for sine positions, got {dim}")
        self.dim = dim

    def forward(self, layout: TokenLayout) -> Tensor:
        """Return the positions of a layout's tokens, (1, tokens, dim) float32."""
        halves = []
        for place, counts, axis in ((layout.row, layout.rows, 0), (layout.column, layout.columns, 1)):
            longest = max(extent[axis] for extent in layout.extents)
            steps = torch.arange(1, longest + 1, dtype=torch.float32, device=counts.device)
            shares = steps / (counts[:, None] + _EPS)
            # One line of sines for each image and row: far fewer than there are tokens.
            halves.append(sine_encoding(shares * (2 * math.pi), self.dim // 2)[layout.image, place])
        return torch.cat(halves, dim=-1)[None]


class LearnedPositions2d(nn.Module):
    """One trained vector for each column and row, as the official code's option: columns first, padding not minded.

    Args:
        dim: Width, even.
        length: Rows and columns of the largest feature map.

    Raises:
        ValueError: If a number does not fit.
    """

    def __init__(self, dim: int, length: int = 50) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"dim must be even for learned positions, got {dim}")
        check_at_least("position_length", length, 1)
        self.row_embedding = nn.Embedding(length, dim // 2)
        self.column_embedding = nn.Embedding(length, dim // 2)
        for embedding in (self.row_embedding, self.column_embedding):
            nn.init.uniform_(embedding.weight)

    def forward(self, layout: TokenLayout) -> Tensor:
        """Return the positions of a layout's tokens, (1, tokens, dim).

        Raises:
            ValueError: If a map has more rows or columns than there are vectors.
        """
        longest, length = max(map(max, layout.extents)), self.row_embedding.num_embeddings
        if longest > length:
            raise ValueError(
                f"an image has {longest} rows or columns of features, the learned positions {length}: "
                "use smaller images, a larger position_length or sine positions"
            )
        return torch.cat([self.column_embedding(layout.column), self.row_embedding(layout.row)], dim=-1)[None]
