"""Counter-based random bits for dropout inside kernels: the same mask in forward and backward, whatever the tiles.

An element's bits depend on the seed, its stream (a scalar, such as batch · heads + head), its row and its column.
Each row and each column gets a well mixed 32-bit key once per tile; an element then costs two multiplications, where
one round of Philox costs four and ten rounds are customary. The mixing function is lowbias32 of Chris Wellons'
hash-prospector.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_MULTIPLIER_1 = 0x7FEB352D
_MULTIPLIER_2 = 0x846CA68B
_UINT32 = 0xFFFFFFFF


@triton.jit
def _mix(bits):
    """Mix uint32 bits so that each depends on all."""
    bits ^= bits >> 16
    bits *= 0x7FEB352D
    bits ^= bits >> 15
    bits *= 0x846CA68B
    return bits ^ (bits >> 16)


@triton.jit
def stream_key(seed_pointer, stream):
    """Return the uint32 key of one stream from the int64 seed that the pointer shows."""
    seed = tl.load(seed_pointer)
    return _mix(_mix(stream.to(tl.uint32) + seed.to(tl.uint32)) ^ (seed >> 32).to(tl.uint32))


@triton.jit
def row_keys(key, rows):
    """Return the uint32 keys of rows of one stream."""
    return _mix(rows.to(tl.uint32) + key)


@triton.jit
def column_keys(columns):
    """Return the uint32 keys of columns."""
    return _mix(columns.to(tl.uint32) + 1)


@triton.jit
def kept(row_keys, column_keys, threshold):
    """Return which elements stay, for keys that broadcast against each other: ``threshold`` is :func:`threshold`'s."""
    bits = row_keys ^ column_keys
    bits *= 0x7FEB352D
    bits ^= bits >> 15
    bits *= 0x846CA68B
    return bits >= threshold


def threshold(p: float) -> int:
    """Return the uint32 value below which an element is dropped: ``p`` rounded to a multiple of 2⁻³²."""
    return min(round(p * 2**32), _UINT32)


def kept_reference(seed: int, streams: int, rows: int, columns: int, p: float) -> Tensor:
    """Return, in plain PyTorch, which elements the kernels keep: boolean (streams, rows, columns)."""
    first = _mix_reference((torch.arange(streams) + seed) & _UINT32) ^ (seed >> 32 & _UINT32)
    row = _mix_reference((_mix_reference(first)[:, None] + torch.arange(rows)) & _UINT32)
    column = _mix_reference(torch.arange(1, columns + 1))
    bits = (row[..., None] ^ column) * _MULTIPLIER_1 & _UINT32
    bits = (bits ^ bits >> 15) * _MULTIPLIER_2 & _UINT32
    return bits >= threshold(p)


def _mix_reference(bits: Tensor) -> Tensor:
    bits = (bits ^ bits >> 16) * _MULTIPLIER_1 & _UINT32
    bits = (bits ^ bits >> 15) * _MULTIPLIER_2 & _UINT32
    return bits ^ bits >> 16
