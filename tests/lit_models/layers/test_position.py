"""Every variant of the sinusoid against the formula, one number at a time."""

import math

import pytest
import torch

from lit_models.layers import LearnedPositions, SinusoidalPositions, sinusoid_table


def one_value(position, column, dim, layout, exponent):
    """The encoding of one position in one column, from the formulas of the papers and code bases."""
    pair, is_cosine = (
        (column // 2, column % 2) if layout == "interleaved" else (column % (dim // 2), column >= dim // 2)
    )
    power = 2 * pair / dim if exponent == "paper" else pair / (dim // 2 - 1)
    angle = position / 10_000**power
    return math.cos(angle) if is_cosine else math.sin(angle)


@pytest.mark.parametrize("layout", ["interleaved", "concatenated"])
@pytest.mark.parametrize("exponent", ["paper", "tensor2tensor"])
@pytest.mark.parametrize("first_row", [0, 2])
def test_formula(layout, exponent, first_row):
    table = sinusoid_table(40, 12, layout=layout, exponent=exponent, first_row=first_row)
    expected = [[one_value(first_row + t, c, 12, layout, exponent) for c in range(12)] for t in range(40)]
    # Both sides are computed in float64 and rounded once.
    torch.testing.assert_close(table, torch.tensor(expected, dtype=torch.float64).float(), atol=1e-7, rtol=0)


def test_variants_differ():
    tables = [
        sinusoid_table(5, 8, layout=layout, exponent=exponent, first_row=row)
        for layout in ("interleaved", "concatenated")
        for exponent in ("paper", "tensor2tensor")
        for row in (0, 2)
    ]
    assert all(not torch.allclose(a, b) for i, a in enumerate(tables) for b in tables[:i])


def test_grows_and_stays_out_of_the_state_dict():
    positions = SinusoidalPositions(8)
    torch.testing.assert_close(positions(990, 10, torch.empty(0)), sinusoid_table(1000, 8)[990:])
    assert not positions.state_dict()


def test_table_that_grew_in_validation_serves_training():
    positions = SinusoidalPositions(8)
    with torch.inference_mode():
        positions(0, 300, torch.empty(0))
    weight = torch.ones(300, 8, requires_grad=True)
    (weight * positions(0, 300, weight)).sum().backward()
    torch.testing.assert_close(weight.grad, sinusoid_table(300, 8))
    assert not list(positions.buffers())  # nothing for DistributedDataParallel to broadcast


def test_device_and_dtype_follow_the_input():
    positions = SinusoidalPositions(8)
    assert positions(0, 3, torch.empty(0, dtype=torch.bfloat16)).dtype == torch.bfloat16
    # Back from bfloat16 without its rounding.
    torch.testing.assert_close(positions(0, 3, torch.empty(0)), sinusoid_table(3, 8), atol=0, rtol=0)


def test_learned_positions_name_their_limit():
    positions = LearnedPositions(8, 16)
    assert torch.equal(positions(14, 2, torch.empty(0)), positions.weight[14:])
    with pytest.raises(ValueError, match="17 tokens exceeds max_positions 16"):
        positions(10, 7, torch.empty(0))


@pytest.mark.parametrize(("dim", "exponent"), [(7, "paper"), (2, "tensor2tensor")])
def test_impossible_width(dim, exponent):
    with pytest.raises(ValueError, match="dim must be even"):
        sinusoid_table(4, dim, exponent=exponent)
