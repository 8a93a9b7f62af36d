"""Where the PyTorch path reads and writes: indices of whole rows of ``head_dim`` numbers, kept from call to call."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.window_attention.geometry import MASKED, Geometry

# Scores computed at a time: on a CPU they and their gradient then stay in the cache of a core.
_CPU_SCORES = 2**19
_DEVICE_SCORES = 2**27


class Masking(NamedTuple):
    """Windows ``first`` to ``end`` share a mask, (tokens, tokens), or have none."""

    first: int
    end: int
    mask: Tensor | None


class Layout(NamedTuple):
    """How a map is cut, for a group of examples that are worked on together.

    The windows are in an order of their own: those without a mask first. A row is what one head of one token holds.

    Attributes:
        examples: Examples of a group.
        windows: Windows worked on at a time; all of them if a group has more than one example.
        qkv_rows: (examples, windows, heads, tokens) int32: where the map of ``qkv`` has the query of each token. Its
            key is ``heads`` rows on, its value another ``heads``. Padding reads a token past the end of its example.
        output_rows: The same for a map of one row for each head.
        output_places: (examples, height · width, heads) int32: where the windows have each row of the output.
        qkv_places: (examples, height · width, 3, heads) int32: the same for three stacked arrays of windows.
        maskings: What the windows' masks are; at most four.
        padding: The window and the position in it of each padded token.
    """

    examples: int
    windows: int
    qkv_rows: Tensor
    output_rows: Tensor
    output_places: Tensor
    qkv_places: Tensor
    maskings: list[Masking]
    padding: tuple[Tensor, Tensor]


# Bounded, as image sizes may vary without end; an entry takes 24 bytes for each token and head of a group.
@functools.lru_cache(maxsize=32)
def layout(geometry: Geometry, heads: int, batch: int, device: torch.device) -> Layout:
    """Return the layout of a map; ``batch`` bounds the examples of a group."""
    # What is made in inference mode could not be used outside.
    with torch.inference_mode(False), torch.device("cpu"):
        return _layout(geometry, heads, batch, device)


@functools.lru_cache(maxsize=16)
def relative(window: tuple[int, int], device: torch.device) -> Tensor:
    """Return the row of the bias table for each query and key of a window."""
    with torch.inference_mode(False), torch.device("cpu"):
        return Geometry(*window, window, (0, 0), roll_first=False).relative().to(device)


def _layout(geometry: Geometry, heads: int, batch: int, device: torch.device) -> Layout:
    count, tokens = geometry.grid[0] * geometry.grid[1], geometry.tokens
    budget = (_CPU_SCORES if device.type == "cpu" else _DEVICE_SCORES) // (heads * tokens * tokens)
    examples = max(1, min(batch, budget // count))
    order, maskings = _maskings(geometry)
    sources = geometry.sources()[order]

    map_tokens = geometry.height * geometry.width
    example = torch.arange(examples)[:, None, None, None]
    token = example * (map_tokens + geometry.has_padding) + sources[:, None, :]
    head = torch.arange(heads)[:, None]

    places = torch.empty(map_tokens + 1, dtype=torch.int64)
    places[sources.flatten()] = torch.arange(count * tokens)
    window, position = places[:-1] // tokens, places[:-1] % tokens
    rows = torch.arange(examples * count * heads * tokens)
    output_places = rows.view(examples, count, heads, tokens).permute(1, 3, 0, 2)[window, position].transpose(0, 1)
    qkv_places = output_places[:, :, None] + torch.arange(3)[:, None] * rows.numel()

    def stored(index: Tensor) -> Tensor:
        return index.int().contiguous().to(device)

    padding = (sources == map_tokens).nonzero().to(device)
    return Layout(
        examples,
        max(1, min(count, budget)),
        stored(3 * heads * token + head),
        stored(heads * token + head),
        stored(output_places),
        stored(qkv_places),
        [Masking(first, end, None if mask is None else mask.to(device)) for first, end, mask in maskings],
        (padding[:, 0], padding[:, 1]),
    )


def _maskings(geometry: Geometry) -> tuple[Tensor, list[Masking]]:
    """Return the windows in an order in which those of one mask are neighbours, and the masks."""
    kind = torch.zeros(geometry.grid, dtype=torch.int64)
    kind[-1] += 2 * (geometry.shift[0] > 0)
    kind[:, -1] += geometry.shift[1] > 0
    kinds, order = kind.flatten().sort(stable=True)
    maskings: list[Masking] = []
    first = 0
    for value, number in zip(*(found.tolist() for found in kinds.unique(return_counts=True)), strict=True):
        regions = geometry.regions()[order[first]]
        mask = torch.where(regions[:, None] == regions, 0.0, MASKED) if value else None
        maskings.append(Masking(first, first + number, mask))
        first += number
    return order, maskings
