"""The norms' PyTorch path and their checks, against the formula in float64."""

import pytest
import torch

from kernels import add_layer_norm, layer_norm
from kernels.layer_norm.op import rms_norm


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


def test_rms_norm_formula():
    input, weight = torch.randn(3, 5, 12, dtype=torch.float64) + 1, torch.randn(12, dtype=torch.float64)
    expected = input / torch.sqrt((input**2).mean(-1, keepdim=True) + 0.1) * weight
    torch.testing.assert_close(rms_norm(input, weight, 0.1), expected)


def test_gradients():
    tensors = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 6), (3, 6), (6,), (6,))]
    assert torch.autograd.gradcheck(add_layer_norm, tensors)
    assert torch.autograd.gradcheck(rms_norm, (tensors[0], tensors[2]))


@pytest.mark.parametrize("input_dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("weight_dtype", "bias_dtype"),
    [
        (torch.float32, torch.float32),  # torch takes this one for itself on a CPU
        (torch.float32, None),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float16),
    ],
)
def test_parameters_of_other_dtypes(input_dtype, weight_dtype, bias_dtype):
    input, weight = torch.randn(4, 24).to(input_dtype), torch.randn(24).to(weight_dtype)
    bias = None if bias_dtype is None else torch.randn(24).to(bias_dtype)
    normed = layer_norm(input, weight, bias)
    assert normed.dtype == rms_norm(input, weight).dtype == input_dtype
    expected = normalize(input.double(), weight.double(), 0.0 if bias is None else bias.double(), 1e-5)
    # One rounding to the input's dtype of what was computed in float32 at least.
    allowed = torch.finfo(input_dtype).eps * expected.abs().max() + 1e-6
    assert (normed.double() - expected).abs().max() <= allowed


def test_wrong_arguments_are_named():
    input = torch.zeros(2, 8)
    with pytest.raises(ValueError, match=r"weight must be \(8,\)"):
        layer_norm(input, torch.zeros(4))
    with pytest.raises(ValueError, match="residual"):
        add_layer_norm(input, torch.zeros(2, 1))
    with pytest.raises(ValueError, match="residual must be floating point .* got torch.int64"):
        add_layer_norm(input, input.long())
    with pytest.raises(ValueError, match="bias must be .* got .*int64"):
        layer_norm(input, None, torch.zeros(8, dtype=torch.int64))
    with pytest.raises(ValueError, match="weight must be .* on cpu, got .* on meta"):
        rms_norm(input, torch.zeros(8, device="meta"))
    with pytest.raises(ValueError, match="dropout_p"):
        add_layer_norm(input, input, dropout_p=-0.1)
    with pytest.raises(ValueError, match="eps"):
        layer_norm(input, eps=-1.0)
    with pytest.raises(ValueError, match="eps"):
        layer_norm(input, eps=float("nan"))
    with pytest.raises(ValueError, match="width of 1 or more"):
        layer_norm(torch.zeros(2, 0))
    with pytest.raises(ValueError, match="floating point"):
        layer_norm(torch.zeros(2, 8, dtype=torch.int64))
