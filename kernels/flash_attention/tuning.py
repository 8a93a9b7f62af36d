"""Tile sizes of the attention kernels."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Kind = Literal["forward", "backward_query", "backward_key_value", "backward_bias"]


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
        query_length: Queries of the longest sequence.
        key_length: Keys of the longest sequence.
        block_head_dim: head_dim rounded up to a power of two.
        block_value_dim: The same of the values.
        itemsize: Bytes per element.
        extras: Whether there is a bias or dropout, which need registers.
    """

    query_length: int
    key_length: int
    block_head_dim: int
    block_value_dim: int
    itemsize: int
    extras: bool


_forced: dict[Kind, Tile] = {}


def tile(kind: Kind, shape: Shape) -> Tile:
    return _forced.get(kind) or Tile(64, 64, 4, 2)


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
