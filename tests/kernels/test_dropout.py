"""Dropout: rate, scale, gradient and reproducibility."""

import math

import pytest
import torch

from kernels import dropout


@pytest.mark.parametrize("p", [0.1, 0.3, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rate_and_scale(p, dtype):
    count = 400_001  # not a multiple of the four elements that one draw decides
    output = dropout(torch.ones(count, dtype=dtype), p)
    values = output.float().unique().tolist()
    assert values[0] == 0.0
    assert values[1:] == [pytest.approx(1 / (1 - p), rel=2**-8 if dtype == torch.bfloat16 else 1e-4)]
    assert abs(float((output == 0).float().mean()) - p) < 4 * math.sqrt(p * (1 - p) / count)


def test_elements_are_independent():
    kept = (dropout(torch.ones(100_000, 4), 0.5) != 0).float() - 0.5
    # The four elements of a draw: correlations within 4 standard errors of none.
    correlation = (kept.T @ kept) / len(kept) / 0.25 - torch.eye(4)
    assert float(correlation.abs().max()) < 4 / math.sqrt(len(kept))


def test_gradient_goes_through_the_same_mask():
    input = torch.randn(1000, requires_grad=True)
    output = dropout(input, 0.3)
    gradient = torch.autograd.grad(output.sum(), input)[0]
    torch.testing.assert_close(output, input * gradient)


def test_seed_fixes_the_mask():
    torch.manual_seed(7)
    first = dropout(torch.ones(100), 0.5)
    second = dropout(torch.ones(100), 0.5)
    torch.manual_seed(7)
    assert torch.equal(first, dropout(torch.ones(100), 0.5))
    assert not torch.equal(first, second)


def test_none_and_all():
    input = torch.ones(3)
    assert dropout(input, 0.0) is input
    for p in (1.0, -0.1):
        with pytest.raises(ValueError, match="p must be in"):
            dropout(input, p)
