"""How the kernels of window attention are launched, by GPU, dtype, size of the window and head_dim."""

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
    """

    architecture: Architecture
    itemsize: int
    tile: int
    block_head_dim: int


# architecture -> kind -> (bytes per element, largest tile, largest block of head_dim); 0 is for windows of many tiles.
_ALL = {
    "forward": {
        (2, 16, 64): Entry(16, 16, 1, 2, 16),
        (2, 32, 64): Entry(32, 32, 2, 2, 8),
        (2, 64, 32): Entry(64, 64, 4, 2, 4),
        (2, 64, 64): Entry(64, 64, 4, 2, 2),
        (2, 0, 32): Entry(64, 64, 4, 2, 2),
        (2, 0, 64): Entry(64, 64, 4, 2, 2),
        (4, 16, 64): Entry(16, 16, 2, 2, 4),
        (4, 32, 64): Entry(32, 32, 4, 2, 4),
        (4, 64, 64): Entry(32, 32, 4, 2, 4),
        (4, 0, 64): Entry(32, 32, 4, 2, 4),
    },
    "backward_window": {
        (2, 16, 64): Entry(16, 16, 1, 2, 16),
        (2, 32, 64): Entry(32, 32, 2, 2, 8),
        (2, 64, 32): Entry(64, 64, 4, 2, 2),
        (2, 64, 64): Entry(64, 64, 8, 2, 2),
        (4, 16, 64): Entry(16, 16, 2, 2, 4),
        (4, 32, 64): Entry(32, 32, 4, 2, 4),
        (4, 64, 64): Entry(64, 64, 16, 1, 1),
    },
    "backward_query": {
        (2, 0, 32): Entry(64, 64, 4, 2, 2),
        (2, 0, 64): Entry(64, 64, 8, 2, 2),
        (4, 0, 64): Entry(32, 32, 8, 1, 4),
    },
    "backward_key_value": {
        (2, 0, 32): Entry(64, 64, 4, 2, 2),
        (2, 0, 64): Entry(64, 64, 8, 2, 2),
        (4, 0, 64): Entry(32, 32, 8, 1, 4),
    },
    "backward_bias": {
        (2, 0, 32): Entry(64, 64, 4, 2, 2),
        (2, 0, 64): Entry(64, 64, 8, 2, 2),
        (4, 0, 64): Entry(32, 32, 8, 1, 4),
    },
}
TABLE: dict[Architecture, dict[Kind, dict[tuple[int, int, int], Entry]]] = {"sm_90": _ALL, "sm_80": _ALL}

_forced: dict[Kind, Entry] = {}


def tile(tokens: int) -> int:
    """Return the tokens of a window rounded up to what its blocks divide: a power of two, or many of the largest."""
    if tokens > LARGEST_TILE:
        return -(-tokens // LARGEST_TILE) * LARGEST_TILE
    return max(16, 1 << (tokens - 1).bit_length())


def block_head_dim(head_dim: int) -> int:
    """Return the power of two, at least 16, that holds a head_dim: tensor cores take no smaller one."""
    return max(16, 1 << (head_dim - 1).bit_length())


def entry(kind: Kind, shape: Shape) -> Entry:
    """Return how a kernel is launched."""
    if kind in _forced:
        return _forced[kind]
    table = TABLE[shape.architecture][kind]
    large = shape.tile > LARGEST_TILE
    return table[
        min(
            key
            for key in table
            if key[0] == shape.itemsize
            and (key[1] == 0 if large else key[1] >= shape.tile)
            and key[2] >= shape.block_head_dim
        )
    ]


def kinds(shape: Shape) -> tuple[Kind, ...]:
    """Return the kernels that a shape runs."""
    if shape.tile > LARGEST_TILE:
        return "forward", "backward_query", "backward_key_value", "backward_bias"
    return "forward", "backward_window"


def entries() -> Iterator[tuple[Kind, Shape, Entry]]:
    """Return every entry of the table with a shape that it is for."""
    for architecture, kinds in TABLE.items():
        for kind, table in kinds.items():
            for (itemsize, largest, head_dim), found in table.items():
                yield kind, Shape(architecture, itemsize, largest or 3 * LARGEST_TILE, head_dim), found


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
