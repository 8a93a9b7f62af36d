"""How the kernels of window attention are launched, by GPU, dtype, window, head_dim and what is asked for.

How the entries were chosen: every one compiles without a spilled register for the GPUs that it is for, with the most
that it may be asked for (tests/kernels/resources.csv has what each uses). Where no launch of the backward that is one
kernel does, there is no entry, and the backward is three kernels. **No entry was timed on a GPU yet.**
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["forward", "backward_window", "backward_query", "backward_key_value", "backward_bias"]
# What an entry is for: sm_90 stands for Hopper and data-centre Blackwell, sm_80 for the others; its entries stay under
# 99 KB of shared memory, which is what sm_86, sm_89 and sm_120 have.
Architecture = Literal["sm_80", "sm_90"]

# Tokens of the largest window that is one tile.
LARGEST_TILE = 64
LARGEST_HEAD_DIM = 64
# Elements per program of the kernel that expands the table, and of the one that sums its gradient.
EXPANDED = 1024
SUMMED = 1024


@dataclass(frozen=True)
class Entry:
    """How a kernel is launched.

    Args:
        block_queries: Queries of a tile, at most those of a window.
        block_keys: Keys of a tile, likewise.
        num_warps: Warps of a program.
        num_stages: Depth of the software pipeline over the inner loop.
        programs: Programs per multiprocessor; windows beyond them are taken in turn.
    """

    block_queries: int
    block_keys: int
    num_warps: int
    num_stages: int
    programs: int


@dataclass(frozen=True)
class Shape:
    """What the choice of an entry depends on.

    Args:
        architecture: The GPU's.
        itemsize: Bytes per element.
        tile: Tokens of a window, rounded up by :func:`tile`.
        block_head_dim: head_dim rounded up to a power of two.
        features: What takes registers: PLAIN, COSINE, PADDED or DROPPED, the last that applies.
    """

    architecture: Architecture
    itemsize: int
    tile: int
    block_head_dim: int
    features: int


PLAIN, COSINE, PADDED, DROPPED = range(4)
# Tokens of a window: any number.
ANY = 1 << 30

# architecture -> kind -> (bytes per element, largest tile, largest block of head_dim, last of the features).
TABLE: dict[Architecture, dict[Kind, dict[tuple[int, int, int, int], Entry]]] = {
    "sm_90": {
        "forward": {
            (2, 16, 64, DROPPED): Entry(16, 16, 2, 2, 8),
            (2, 32, 64, DROPPED): Entry(32, 32, 4, 2, 4),
            (2, 64, 32, DROPPED): Entry(64, 64, 4, 2, 4),
            (2, 64, 64, DROPPED): Entry(64, 64, 4, 2, 2),
            (2, ANY, 32, DROPPED): Entry(64, 64, 4, 2, 2),
            (2, ANY, 64, DROPPED): Entry(64, 64, 8, 1, 2),
            (4, 16, 64, DROPPED): Entry(16, 16, 2, 2, 4),
            (4, ANY, 64, DROPPED): Entry(32, 32, 4, 1, 4),
        },
        "backward_window": {
            (2, 16, 64, DROPPED): Entry(16, 16, 2, 1, 4),
            (2, 32, 64, DROPPED): Entry(32, 32, 4, 1, 2),
            (2, 64, 32, PLAIN): Entry(64, 64, 4, 1, 2),
            (2, 64, 32, PADDED): Entry(64, 64, 8, 1, 1),
            (4, 64, 32, COSINE): Entry(64, 64, 8, 1, 1),
            (4, 16, 64, DROPPED): Entry(16, 16, 4, 1, 4),
            (4, 32, 64, DROPPED): Entry(32, 32, 8, 1, 2),
        },
        "backward_query": {
            (2, ANY, 32, DROPPED): Entry(64, 64, 4, 1, 2),
            (2, ANY, 64, DROPPED): Entry(64, 64, 8, 1, 1),
            (4, ANY, 64, DROPPED): Entry(32, 32, 8, 1, 1),
        },
        "backward_key_value": {
            (2, ANY, 32, DROPPED): Entry(64, 64, 8, 1, 1),
            (2, ANY, 64, DROPPED): Entry(32, 64, 8, 1, 1),
            (4, ANY, 64, DROPPED): Entry(16, 32, 4, 1, 2),
        },
        "backward_bias": {
            (2, ANY, 32, DROPPED): Entry(64, 64, 8, 1, 1),
            (2, ANY, 64, DROPPED): Entry(64, 64, 8, 1, 1),
            (4, ANY, 64, DROPPED): Entry(16, 32, 4, 1, 2),
        },
    },
    "sm_80": {
        "forward": {
            (2, 16, 64, DROPPED): Entry(16, 16, 2, 2, 8),
            (2, 32, 64, DROPPED): Entry(32, 32, 4, 2, 4),
            (2, 64, 32, DROPPED): Entry(64, 64, 4, 2, 2),
            (2, ANY, 32, DROPPED): Entry(64, 64, 8, 1, 1),
            (2, ANY, 64, DROPPED): Entry(64, 32, 8, 1, 1),
            (4, 16, 64, DROPPED): Entry(16, 16, 2, 2, 4),
            (4, ANY, 64, DROPPED): Entry(32, 32, 4, 1, 4),
        },
        "backward_window": {
            (2, 16, 32, DROPPED): Entry(16, 16, 2, 1, 4),
            (2, 32, 32, DROPPED): Entry(32, 32, 4, 1, 2),
            (2, 64, 32, COSINE): Entry(64, 64, 8, 1, 1),
            (4, 16, 64, DROPPED): Entry(16, 16, 4, 1, 4),
            (4, 32, 32, DROPPED): Entry(32, 32, 8, 1, 2),
        },
        "backward_query": {
            (2, ANY, 32, DROPPED): Entry(64, 32, 8, 1, 1),
            (2, ANY, 64, DROPPED): Entry(32, 32, 8, 1, 1),
            (4, ANY, 64, DROPPED): Entry(32, 32, 8, 1, 1),
        },
        "backward_key_value": {
            (2, ANY, 32, DROPPED): Entry(32, 64, 8, 1, 1),
            (2, ANY, 64, DROPPED): Entry(32, 32, 8, 1, 1),
            (4, ANY, 64, DROPPED): Entry(32, 32, 8, 1, 1),
        },
        "backward_bias": {
            (2, 16, 64, DROPPED): Entry(16, 16, 4, 1, 2),
            (2, ANY, 32, DROPPED): Entry(64, 32, 8, 1, 1),
            (2, ANY, 64, DROPPED): Entry(32, 32, 8, 1, 1),
            (4, ANY, 64, DROPPED): Entry(16, 32, 4, 1, 2),
        },
    },
}

_forced: dict[Kind, Entry] = {}


def tile(tokens: int) -> int:
    """Return the tokens of a window rounded up to what its blocks divide: a power of two, or many of the largest."""
    if tokens > LARGEST_TILE:
        return -(-tokens // LARGEST_TILE) * LARGEST_TILE
    return max(16, 1 << (tokens - 1).bit_length())


def block_head_dim(head_dim: int) -> int:
    """Return the power of two, at least 16, that holds a head_dim: tensor cores take no smaller one."""
    return max(16, 1 << (head_dim - 1).bit_length())


def features(cosine: bool, padded: bool, dropped: bool) -> int:
    """Return the last of the features that applies."""
    return DROPPED if dropped else PADDED if padded else COSINE if cosine else PLAIN


def is_fused(shape: Shape) -> bool:
    """Return whether the backward is one kernel, which needs nothing of the forward's results."""
    return shape.tile <= LARGEST_TILE and bool(_fitting("backward_window", shape))


def kinds(shape: Shape) -> tuple[Kind, ...]:
    """Return the kernels that a shape runs."""
    if is_fused(shape):
        return "forward", "backward_window"
    return "forward", "backward_query", "backward_key_value", "backward_bias"


def entry(kind: Kind, shape: Shape) -> Entry:
    """Return how a kernel is launched."""
    if kind in _forced:
        return _forced[kind]
    return TABLE[shape.architecture][kind][min(_fitting(kind, shape))]


def _fitting(kind: Kind, shape: Shape) -> list[tuple[int, int, int, int]]:
    """Return the keys of the table that are for a shape; the least of them is the closest."""
    itemsize, *sizes = shape.itemsize, shape.tile, shape.block_head_dim, shape.features
    return [
        key
        for key in TABLE[shape.architecture][kind]
        if key[0] == itemsize and all(largest >= size for largest, size in zip(key[1:], sizes, strict=True))
    ]


def entries() -> Iterator[tuple[Kind, Shape, Entry]]:
    """Return every entry of the table with the largest shape that it is for, and with three tiles if it takes any."""
    for architecture, table in TABLE.items():
        for kind, keys in table.items():
            for (itemsize, largest, head_dim, features), found in keys.items():
                yield kind, Shape(architecture, itemsize, min(largest, 3 * LARGEST_TILE), head_dim, features), found


@functools.cache
def architecture(device: torch.device) -> Architecture:
    """Return which part of the table is for a device; the interpreter on a CPU takes Hopper's."""
    if device.type == "cpu" or torch.cuda.get_device_capability(device)[0] in (9, 10):
        return "sm_90"
    return "sm_80"


@functools.cache
def programs(device: torch.device, entry: Entry) -> int:
    """Return how many programs a device shall run at once, counting any but a CUDA device as one multiprocessor."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return processors * entry.programs


@contextmanager
def forced(kind: Kind, entry: Entry) -> Iterator[None]:
    """Launch one kind of kernel with a given entry inside a ``with`` block: for tests and benchmarks of every entry."""
    before = dict(_forced)
    _forced[kind] = entry
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)
