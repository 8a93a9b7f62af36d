"""Dropout bits: the kernels' mask is the formula's whatever the tile, and it looks random.

The statistics are z-scores of a fixed seed: each is a sum over independent draws, minus its mean, over its standard
deviation. Their bounds are what a normal variable leaves once in 10^8 tries (5.8) for one of them, more for the largest
of many.
"""

import math

import pytest
import torch
from kernel_testing import DEVICE

pytest.importorskip("triton")

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from kernels import random  # noqa: E402
from kernels.dropout import new_seed  # noqa: E402

# Both halves count: the low one has its highest bit set, the high one is not 0.
SEED = 0x2545F491_9E3779B9
RATES = (0.1, 0.5)


@triton.jit
def mask_kernel(seed, out, threshold, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """out (streams, height, width) int8 = which elements stay; a program has one tile of one stream."""
    across = tl.cdiv(width, COLUMNS)
    down = tl.cdiv(height, ROWS)
    program = tl.program_id(0)
    stream = program // (across * down)
    rows = program // across % down * ROWS + tl.arange(0, ROWS)
    columns = program % across * COLUMNS + tl.arange(0, COLUMNS)
    row_keys = random.row_keys(random.stream_key(seed, stream), rows)
    kept = random.kept(row_keys[:, None], random.column_keys(columns)[None, :], threshold)
    offsets = (stream * height + rows[:, None]) * width + columns[None, :]
    tl.store(out + offsets, kept.to(tl.int8), mask=(rows[:, None] < height) & (columns[None, :] < width))


def mask_of_kernel(seed, streams, height, width, p, tile):
    out = torch.full((streams, height, width), -1, dtype=torch.int8, device=DEVICE)
    tiles = streams * math.ceil(height / tile[0]) * math.ceil(width / tile[1])
    seed = torch.tensor([seed], device=DEVICE)
    mask_kernel[(tiles,)](seed, out, random.threshold(p), height, width, ROWS=tile[0], COLUMNS=tile[1])
    assert (out >= 0).all()
    return out.bool().cpu()


# 0.5 and above do not fit a signed 32-bit argument; 0 keeps everything.
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, SEED, 2**62 - 1])
def test_kernel_draws_the_reference_whatever_the_tile(seed, p):
    expected = random.kept_reference(seed, 3, 37, 70, p)
    for tile in ((16, 32), (64, 16)):
        assert torch.equal(mask_of_kernel(seed, 3, 37, 70, p, tile), expected)


def test_threshold():
    assert random.threshold(0.0) == 0
    assert random.threshold(0.5) == 2**31
    assert random.threshold(1 - 2**-40) == 2**32 - 1


def test_new_seed_follows_the_generator_of_torch():
    torch.manual_seed(1)
    first, second = new_seed(torch.device(DEVICE)), new_seed(torch.device(DEVICE))
    assert first.shape == (1,) and first.dtype == torch.int64 and first.device.type == DEVICE
    assert first != second
    torch.manual_seed(1)
    assert new_seed(torch.device(DEVICE)) == first


@pytest.mark.parametrize("p", RATES)
def test_frequency(p):
    """The number of kept elements is a binomial variable: its z-scores over many seeds have variance 1."""
    seeds, (streams, height, width) = 100, (2, 64, 64)
    count = streams * height * width
    kept = torch.stack([random.kept_reference(SEED + 7919 * i, streams, height, width, p).sum() for i in range(seeds)])
    scores = (kept - count * (1 - p)) / math.sqrt(count * p * (1 - p))
    assert abs(scores.sum()) / math.sqrt(seeds) < 5.8
    # A sum of squares of normal variables: mean `seeds`, variance twice that.
    assert abs(scores.square().sum() - seeds) / math.sqrt(2 * seeds) < 5.8


def correlations(kept, p):
    """Return the z-score of the correlation of every two rows: (rows · (rows - 1) / 2,)."""
    centred = (kept.double() - (1 - p)) / math.sqrt(p * (1 - p))
    products = centred @ centred.T / math.sqrt(kept.shape[1])
    return products[tuple(torch.triu_indices(*products.shape, offset=1))]


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("pair", ["rows", "columns", "streams", "seeds"])
def test_no_two_are_correlated(pair, p):
    # Neighbours, because they are what counters make alike.
    if pair == "streams":
        kept = random.kept_reference(SEED, 256, 64, 64, p).flatten(1)
    elif pair == "seeds":
        kept = torch.stack([random.kept_reference(SEED + i, 1, 64, 64, p).flatten() for i in range(256)])
    else:
        kept = random.kept_reference(SEED, 1, 256, 2048, p)[0] if pair == "rows" else None
        kept = random.kept_reference(SEED, 1, 2048, 256, p)[0].T if kept is None else kept
    scores = correlations(kept, p)
    # 32640 of them, of which the largest leaves 7 once in 10^7 tries.
    assert scores.abs().max() < 7
    assert abs(scores.square().mean() - 1) < 5.8 * math.sqrt(2 / scores.numel())


@pytest.mark.parametrize("p", RATES)
def test_corners_of_rectangles_are_independent(p):
    """Row and column keys meet in an exclusive or, so the four corners of a rectangle have inputs that cancel."""
    kept = random.kept_reference(SEED, 1, 1024, 1024, p)[0]
    centred = (kept.double() - (1 - p)) / math.sqrt(p * (1 - p))
    corners = centred[0::2, 0::2] * centred[0::2, 1::2] * centred[1::2, 0::2] * centred[1::2, 1::2]
    assert abs(corners.sum()) / math.sqrt(corners.numel()) < 5.8
