"""Where tokens lie and the positions they get, against masks resized and summed as the official code does."""

import math

import pytest
import torch
from torch.nn import functional

from lit_models.detection.positions import LearnedPositions2d, SinePositions2d, TokenLayout, valid_cells


def official_mask(sizes, padded, grid):
    """Return True where a feature belongs to the image, by nearest neighbour as the official code has it."""
    mask = torch.ones(len(sizes), *padded)
    for one, (height, width) in zip(mask, sizes, strict=True):
        one[:height, :width] = 0
    return ~functional.interpolate(mask[None], size=grid).bool()[0]


def official_sines(valid, dim):
    """Return the positions of every cell by the paper's formula, number by number."""
    positions = torch.zeros(*valid.shape, dim)
    rows, columns = valid.long().cumsum(1), valid.long().cumsum(2)
    shares = (rows / (rows[:, -1:] + 1e-6), columns / (columns[:, :, -1:] + 1e-6))
    for half, share in enumerate(shares):  # the row first, then the column
        for i in range(dim // 2):
            angle = 2 * math.pi * share / 10_000 ** (2 * (i // 2) / (dim // 2))
            positions[..., half * dim // 2 + i] = angle.cos() if i % 2 else angle.sin()
    return positions


def layout_of(grid, sizes, padded):
    return TokenLayout.of(torch.zeros(len(sizes), 1, *grid), sizes, padded)


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_valid_cells_are_those_of_the_resized_mask(stride):
    for padded in [*range(1, 70), 224, 375, 480, 511, 640, 801, 1066, 1333]:
        cells = -(-padded // stride)
        for size in {*range(1, padded + 1, max(1, padded // 40)), padded - 1 or 1, padded}:
            mask = (torch.arange(padded) < size).float()[None, None]
            expected = int(functional.interpolate(mask, size=cells).sum())
            assert valid_cells(size, padded, cells) == expected, (size, padded, cells)


CASES = {
    "padded": ((3, 5), ((96, 160), (60, 160), (96, 97), (33, 33)), (96, 160)),
    "odd": ((4, 3), ((100, 70), (99, 91)), (101, 91)),
    "unpadded": ((3, 4), ((96, 128), (96, 128)), (96, 128)),
    "padded by less than a cell": ((3, 4), ((90, 128), (96, 120)), (96, 128)),
}


# Row 6: positions over the valid area, row before column, without a shift, of an un-inverted mask.
@pytest.mark.parametrize("case", CASES)
def test_sines_of_the_valid_cells(case):
    grid, sizes, padded = CASES[case]
    valid = official_mask(sizes, padded, grid)
    layout = layout_of(grid, sizes, padded)
    positions = SinePositions2d(24)(layout)
    expected = official_sines(valid, 24)
    if valid.all():
        assert layout.self_packing() is None and positions.shape == (1, grid[0] * grid[1], 24)
        expected = expected[:1]
        valid = valid[:1]
    torch.testing.assert_close(positions[0], expected[valid], atol=2e-6, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_the_valid_cells_image_after_image(case):
    grid, sizes, padded = CASES[case]
    valid = official_mask(sizes, padded, grid)
    features = torch.randn(len(sizes), 6, *grid, requires_grad=True)
    layout = layout_of(grid, sizes, padded)
    tokens = layout.tokens(features)
    torch.testing.assert_close(tokens.flatten(0, 1), features.permute(0, 2, 3, 1)[valid])
    tokens.sum().backward()
    assert torch.equal(features.grad[:, 0], valid.float())
    packing = layout.self_packing()
    if packing is None:
        assert tokens.shape == (len(sizes), grid[0] * grid[1], 6)
    else:
        counts = valid.flatten(1).sum(1)
        assert packing.offsets_key.tolist() == [0, *counts.cumsum(0).tolist()]
        assert packing.max_length_key == counts.max()
        assert layout.cross_packing(7).offsets_query.tolist() == [7 * i for i in range(len(sizes) + 1)]


def test_learned_positions_have_columns_first_and_an_end():
    positions = LearnedPositions2d(8, 5)
    found = positions(layout_of((3, 5), ((96, 160), (60, 160)), (96, 160)))
    assert found.shape == (1, 15 + 10, 8)
    torch.testing.assert_close(
        found[0, 7], torch.cat([positions.column_embedding.weight[2], positions.row_embedding.weight[1]])
    )
    with pytest.raises(ValueError, match="6 rows or columns of features, the learned positions 5"):
        positions(layout_of((3, 6), ((96, 192),), (96, 192)))


def test_dims():
    with pytest.raises(ValueError, match="multiple of 4"):
        SinePositions2d(6)
    with pytest.raises(ValueError, match="even"):
        LearnedPositions2d(5)
