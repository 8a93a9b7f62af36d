"""Which tile each attention kernel runs with, by GPU, dtype, head_dim and length.

How the entries were chosen: every one compiles without a spilled register with everything on (causal, lengths, and, for
``extras``, a bias and dropout), for the GPUs that it is for; of the tiles that do, the largest was taken that published
measurements of Triton attention on Hopper favour. **No entry was timed on a GPU yet**;
``python -m experiments bench attention --all-configs`` times them all.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["forward", "backward_query", "backward_key_value", "backward_bias"]
# What an entry is for: sm_90 stands for Hopper and data-centre Blackwell, sm_80 for the others; its entries stay under
# 99 KB of shared memory, which is what sm_86, sm_89 and sm_120 have.
Architecture = Literal["sm_80", "sm_90"]


@dataclass(frozen=True)
class Tile:
    """How a kernel is launched.

    Args:
        block_queries: Query rows of a tile.
        block_keys: Key rows of a tile.
        num_warps: Warps of a program.
        num_stages: Depth of the software pipeline over the inner loop.
    """

    block_queries: int
    block_keys: int
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, int]:
        """Return the tile as arguments of a kernel."""
        return {
            "BLOCK_M": self.block_queries,
            "BLOCK_N": self.block_keys,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


@dataclass(frozen=True)
class Shape:
    """What the choice of a tile depends on.

    Args:
        architecture: The GPU's.
        query_length: Queries of the longest sequence.
        key_length: Keys of the longest sequence.
        block_head_dim: The larger of head_dim and value_head_dim, rounded up to a power of two.
        itemsize: Bytes per element.
        extras: Whether there is a bias or dropout, which need registers.
    """

    architecture: Architecture
    query_length: int
    key_length: int
    block_head_dim: int
    itemsize: int
    extras: bool


# From this many queries and keys on, larger tiles: there are enough of them to fill a GPU.
LONG = 1024

# architecture -> kind -> (bytes per element, largest block of head_dim): tiles without and with extras; a second pair
# is for long sequences.
TABLE: dict[Architecture, dict[Kind, dict[tuple[int, int], tuple[Tile, ...]]]] = {
    "sm_90": {
        "forward": {
            (2, 64): (Tile(64, 64, 4, 3), Tile(64, 64, 4, 3), Tile(128, 128, 8, 3), Tile(128, 64, 8, 3)),
            (2, 128): (Tile(64, 64, 8, 2), Tile(128, 32, 8, 2), Tile(128, 64, 8, 3), Tile(128, 32, 8, 2)),
            (2, 256): (Tile(64, 64, 8, 2), Tile(64, 32, 8, 2)),
            (4, 64): (Tile(32, 32, 4, 2), Tile(32, 32, 4, 2)),
            (4, 128): (Tile(16, 32, 8, 2), Tile(16, 32, 8, 2)),
            (4, 256): (Tile(16, 16, 4, 2), Tile(16, 16, 4, 2)),
        },
        "backward_query": {
            (2, 64): (Tile(64, 64, 4, 2), Tile(64, 64, 4, 2), Tile(128, 64, 8, 2), Tile(128, 64, 8, 2)),
            (2, 128): (Tile(64, 64, 8, 2), Tile(64, 32, 8, 2)),
            (2, 256): (Tile(64, 16, 8, 2), Tile(32, 32, 8, 2)),
            (4, 64): (Tile(32, 32, 4, 2), Tile(32, 32, 4, 2)),
            (4, 128): (Tile(16, 32, 8, 2), Tile(16, 32, 8, 2)),
            (4, 256): (Tile(16, 16, 4, 2), Tile(16, 16, 4, 2)),
        },
        "backward_key_value": {
            (2, 64): (Tile(64, 64, 4, 2), Tile(32, 64, 4, 2), Tile(64, 128, 8, 2), Tile(32, 128, 8, 2)),
            (2, 128): (Tile(64, 64, 8, 2), Tile(16, 64, 8, 2)),
            (2, 256): (Tile(32, 32, 8, 2), Tile(32, 32, 8, 2)),
            (4, 64): (Tile(32, 32, 8, 2), Tile(32, 32, 8, 2)),
            (4, 128): (Tile(16, 32, 8, 2), Tile(16, 32, 8, 2)),
            (4, 256): (Tile(16, 32, 8, 2), Tile(16, 32, 8, 2)),
        },
        "backward_bias": {
            (2, 64): (Tile(64, 64, 8, 2),),
            (2, 128): (Tile(64, 32, 8, 2),),
            (2, 256): (Tile(64, 32, 8, 1),),
            (4, 128): (Tile(32, 32, 4, 2),),
            (4, 256): (Tile(16, 32, 8, 1),),
        },
    },
    "sm_80": {
        "forward": {
            (2, 64): (Tile(64, 64, 4, 3), Tile(128, 64, 8, 3), Tile(128, 64, 8, 3), Tile(128, 64, 8, 3)),
            (2, 128): (Tile(64, 64, 8, 2), Tile(64, 32, 8, 2)),
            (2, 256): (Tile(64, 32, 8, 2), Tile(64, 16, 8, 2)),
            (4, 64): (Tile(32, 32, 4, 2), Tile(32, 32, 4, 2)),
            (4, 256): (Tile(16, 16, 4, 2), Tile(16, 16, 4, 2)),
        },
        "backward_query": {
            (2, 64): (Tile(64, 64, 8, 2), Tile(64, 32, 8, 2), Tile(128, 64, 8, 2), Tile(64, 32, 8, 2)),
            (2, 128): (Tile(64, 32, 8, 2), Tile(64, 32, 8, 2)),
            (2, 256): (Tile(32, 32, 8, 2), Tile(32, 32, 8, 2)),
            (4, 64): (Tile(32, 32, 4, 2), Tile(32, 32, 4, 2)),
            (4, 256): (Tile(16, 16, 4, 2), Tile(16, 16, 4, 2)),
        },
        "backward_key_value": {
            (2, 64): (Tile(64, 64, 8, 2), Tile(32, 64, 8, 2)),
            (2, 128): (Tile(64, 64, 8, 2), Tile(64, 64, 8, 2)),
            (2, 256): (Tile(32, 32, 8, 2), Tile(32, 32, 8, 2)),
            (4, 64): (Tile(32, 32, 8, 2), Tile(32, 32, 8, 2)),
            (4, 256): (Tile(16, 16, 4, 2), Tile(16, 16, 4, 2)),
        },
        "backward_bias": {
            (2, 64): (Tile(64, 32, 8, 2),),
            (2, 128): (Tile(32, 32, 8, 2),),
            (2, 256): (Tile(32, 32, 8, 2),),
            (4, 128): (Tile(32, 32, 8, 1),),
            (4, 256): (Tile(16, 32, 8, 1),),
        },
    },
}

_forced: dict[Kind, Tile] = {}


def tile(kind: Kind, shape: Shape) -> Tile:
    """Return the tile that a kernel is launched with."""
    if kind in _forced:
        return _forced[kind]
    table = TABLE[shape.architecture][kind]
    tiles = table[min(key for key in table if key[0] == shape.itemsize and key[1] >= shape.block_head_dim)]
    if len(tiles) == 4 and min(shape.query_length, shape.key_length) >= LONG:
        tiles = tiles[2:]
    return tiles[1 if shape.extras and len(tiles) > 1 else 0]


def entries() -> Iterator[tuple[Kind, Shape, Tile]]:
    """Return every entry of the table with a shape that it is for."""
    for architecture, kinds in TABLE.items():
        for kind, table in kinds.items():
            for (itemsize, head_dim), tiles in table.items():
                for place, entry in enumerate(tiles):
                    # Lengths that divide nothing: rows of a bias begin unaligned, which costs registers.
                    length = LONG + 1 if place > 1 else 197
                    extras = place % 2 == 1 or kind == "backward_bias"
                    yield kind, Shape(architecture, length, length, head_dim, itemsize, extras), entry


def candidates(kind: Kind) -> list[Tile]:
    """Return every tile that a kind of kernel has in the table, on any GPU."""
    return list(dict.fromkeys(entry for entry_kind, _, entry in entries() if entry_kind == kind))


@functools.cache
def architecture(device: torch.device) -> Architecture:
    """Return which part of the table is for a device; the interpreter on a CPU takes Hopper's."""
    if device.type == "cpu" or torch.cuda.get_device_capability(device)[0] in (9, 10):
        return "sm_90"
    return "sm_80"


@contextmanager
def forced(kind: Kind, tile: Tile) -> Iterator[None]:
    """Launch one kind of kernel with a given tile inside a ``with`` block: for tests and benchmarks of every entry."""
    before = dict(_forced)
    _forced[kind] = tile
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)
