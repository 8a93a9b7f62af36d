"""Launch tables of layer norm: how many rows a program takes at once, with how many warps.

An entry is chosen by the block (the width rounded up to a power of two) and the bytes of an element. What was looked
at, by compiling for sm_80, sm_90 and sm_100 without a GPU: no entry spills registers, and rows whose width is a
multiple of 16 bytes are loaded and stored 128 bits at a time. No speed of these entries has been measured yet.
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
BACKWARD = FORWARD

# Programs of the backward per multiprocessor. Each keeps the sums of the weight's and the bias's gradients in
# registers, so more of them would not fit, and each writes a row of partial sums, so fewer are less to add.
PROGRAMS_PER_MULTIPROCESSOR = 4
# On what has no multiprocessors (the interpreter): several, so that the partial sums of several programs meet.
PROGRAMS_ELSEWHERE = 3


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


def backward_entry(width: int, itemsize: int) -> Entry:
    """Return how to launch the backward, likewise."""
    return BACKWARD[itemsize][block_width(width)]


def entries() -> Iterator[tuple[str, int, int, Entry]]:
    """Yield every entry as (``"forward"`` or ``"backward"``, block width, itemsize, entry)."""
    for kind, tables in (("forward", FORWARD), ("backward", BACKWARD)):
        for itemsize, table in tables.items():
            for block, entry in table.items():
                yield kind, block, itemsize, entry
