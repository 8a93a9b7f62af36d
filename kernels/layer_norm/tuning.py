"""Launch tables of layer norm: how many rows a program takes at once, with how many warps.

An entry is chosen by the block (the width rounded up to a power of two) and the bytes of an element. What was looked
at, by compiling for sm_80, sm_90 and sm_100 with everything asked for (residual, dropout, all gradients): at three
quarters of a block nothing spills, under the ptxas of Triton 3.8 and under its newer one; at whole blocks only the
widest float32 backward does, on sm_100 (24 bytes); rows of a multiple of 16 bytes move 128 bits at a time. No speed of
these entries has been measured yet.
"""

from collections.abc import Iterator
from dataclasses import dataclass

NARROWEST_BLOCK, WIDEST_BLOCK = 16, 16384


@dataclass(frozen=True)
class Entry:
    """How a kernel is launched: rows of a tile, warps of a program."""

    rows: int
    num_warps: int


# A thread needs 16 bytes of a row for 128-bit loads, and the programs of a multiprocessor together some tens of
# kilobytes in flight: tiles of 2048 elements with four warps, of which many fit, as long as rows are that short.
FORWARD = {
    2: {
        16: Entry(128, 4),
        32: Entry(64, 4),
        64: Entry(32, 4),
        128: Entry(16, 4),
        256: Entry(8, 4),
        512: Entry(4, 4),
        1024: Entry(2, 4),
        2048: Entry(1, 4),
        4096: Entry(1, 8),
        8192: Entry(1, 16),
        16384: Entry(1, 16),
    },
    4: {
        16: Entry(64, 4),
        32: Entry(32, 4),
        64: Entry(16, 4),
        128: Entry(8, 4),
        256: Entry(4, 4),
        512: Entry(2, 4),
        1024: Entry(1, 4),
        2048: Entry(1, 4),
        4096: Entry(1, 8),
        8192: Entry(1, 16),
        16384: Entry(1, 16),
    },
}


@dataclass(frozen=True)
class BackwardEntry(Entry):
    """How the backward is launched: also tiles in flight, the one at work included."""

    num_stages: int

    @property
    def registers(self) -> int:
        """Registers that the compiler may give a thread: of 65536 in a multiprocessor, 128 for each of 512 threads."""
        return min(128, 2048 // self.num_warps)

    @property
    def programs(self) -> int:
        """Programs per multiprocessor. The grid is fixed, so all of them must fit at once."""
        return max(1, 16 // self.num_warps)


# A program also keeps the sums for the gradients of weight and bias in registers, two tiles in float32, so tiles are
# 1024 elements while rows are short; the next ones are fetched into shared memory meanwhile.
_BACKWARD = {
    16: BackwardEntry(64, 4, 3),
    32: BackwardEntry(32, 4, 3),
    64: BackwardEntry(16, 4, 3),
    128: BackwardEntry(8, 4, 3),
    256: BackwardEntry(4, 4, 3),
    512: BackwardEntry(2, 4, 3),
    1024: BackwardEntry(1, 4, 3),
    2048: BackwardEntry(1, 8, 3),
    4096: BackwardEntry(1, 16, 2),
    8192: BackwardEntry(1, 16, 1),
    16384: BackwardEntry(1, 16, 1),
}
BACKWARD = {2: _BACKWARD, 4: _BACKWARD | {16384: BackwardEntry(1, 32, 1)}}
# Wider rows leave no room for those sums: another pass over the rows makes them, in blocks of columns.
WIDEST_WITH_SUMS = 4096
COLUMNS_OF_SPLIT = 2048


@dataclass(frozen=True)
class SumEntry:
    """How partial sums are added: rows and columns of a tile, warps of a program."""

    rows: int
    columns: int
    num_warps: int


# 32 columns of float32 are a whole 128-byte line, and narrow enough that short rows still fill many programs.
SUM = SumEntry(64, 32, 4)


def block_width(width: int) -> int:
    """Return the width of the tile that holds rows of ``width`` elements."""
    return max(NARROWEST_BLOCK, 1 << (width - 1).bit_length())


def forward_entry(width: int, itemsize: int) -> Entry:
    """Return how to launch the forward for rows of ``width`` elements, of which the largest has ``itemsize`` bytes."""
    return FORWARD[itemsize][block_width(width)]


def backward_entry(width: int, itemsize: int) -> BackwardEntry:
    """Return how to launch the backward, likewise."""
    return BACKWARD[itemsize][block_width(width)]


def entries() -> Iterator[tuple[str, int, int, Entry]]:
    """Yield every entry as (``"forward"`` or ``"backward"``, block width, itemsize, entry)."""
    for itemsize, table in FORWARD.items():
        for block, entry in table.items():
            yield "forward", block, itemsize, entry
            yield "backward", block, itemsize, BACKWARD[itemsize][block]
