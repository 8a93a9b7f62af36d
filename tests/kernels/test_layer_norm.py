"""Layer norm and its fusion with the residual addition, against the formula in float64."""

import pytest
import torch

from kernels import add_layer_norm, layer_norm


def normalize(input, weight, bias, eps):
    mean = input.mean(-1, keepdim=True)
    variance = ((input - mean) ** 2).mean(-1, keepdim=True)
    return (input - mean) / torch.sqrt(variance + eps) * weight + bias


@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_formula(eps):
    input = torch.randn(3, 5, 12, dtype=torch.float64) * 3 + 1
    weight, bias = torch.randn(2, 12, dtype=torch.float64)
    torch.testing.assert_close(layer_norm(input, weight, bias, eps), normalize(input, weight, bias, eps))


def test_add_returns_norm_and_sum():
    input, residual = torch.randn(2, 3, 5, 12, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(2, 12, dtype=torch.float64)
    normed, summed = add_layer_norm(input, residual, weight, bias, 1e-5)
    torch.testing.assert_close(summed, input + residual)
    torch.testing.assert_close(normed, normalize(input + residual, weight, bias, 1e-5))


def test_dropout_acts_on_the_input_alone():
    input, residual = torch.ones(50, 40), torch.full((50, 40), 10.0)
    _, summed = add_layer_norm(input, residual, dropout_p=0.5)
    assert set(summed.unique().tolist()) == {10.0, 12.0}


def test_wrong_arguments_are_named():
    input = torch.zeros(2, 8)
    with pytest.raises(ValueError, match=r"weight must be \(8,\)"):
        layer_norm(input, torch.zeros(4))
    with pytest.raises(ValueError, match="residual"):
        add_layer_norm(input, torch.zeros(2, 1))
    with pytest.raises(ValueError, match="dropout_p"):
        add_layer_norm(input, input, dropout_p=-0.1)
    with pytest.raises(ValueError, match="eps"):
        layer_norm(input, eps=-1.0)
    with pytest.raises(ValueError, match="floating point"):
        layer_norm(torch.zeros(2, 8, dtype=torch.int64))
