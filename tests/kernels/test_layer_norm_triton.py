"""Layer norm in Triton against the formula in float64: interpreted on a CPU, compiled on a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_testing import DEVICE, DTYPES, poison_empty
from layer_norm_testing import (
    check,
    fixed_mask,
    normal,
    run,
    torch_add_layer_norm,
    torch_layer_norm,
    torch_rms_norm,
    upstream_of,
)
from torch.nn import functional

from kernels import add_layer_norm, layer_norm, use_backend
from kernels.layer_norm import op, tuning
from kernels.layer_norm.op import rms_norm

ROOT = Path(__file__).resolve().parents[2]
SHAPES = [
    (1, 16),  # one row in the narrowest block
    (3, 1),  # one element a row
    (130, 16),  # more rows than one tile holds
    (37, 24),  # no power of two, one vector more than 16
    (17, 96),  # DeiT's and Swin's width, three quarters of a block
    (5, 100),  # rows that start at odd multiples of 8 bytes
    (7, 197),  # rows that no vector load fits
    (33, 768),  # ViT-B: every program strides over several tiles
    (2, 1000),  # fewer rows than programs
    (9, 2049),  # the block is twice as wide
]
WIDE = [
    (6, 4096),  # the widest whose sums fit
    (6, 4100),  # the sums take a pass of their own, over columns that are no multiple of a block
    (2, 16384),  # the widest
]


@pytest.fixture(autouse=True)
def triton_backend():
    torch.manual_seed(0)
    with use_backend("triton"):
        yield


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_layer_norm(rows, width, dtype, monkeypatch):
    poison_empty(monkeypatch)
    inputs = (normal(rows, width, dtype=dtype), normal(width, dtype=dtype), normal(width, dtype=dtype))
    check(layer_norm, torch_layer_norm, inputs, upstream_of(inputs[0]), 1e-5)


@pytest.mark.parametrize(("rows", "width"), WIDE)
def test_wide_rows(rows, width, monkeypatch):
    poison_empty(monkeypatch)
    inputs = (normal(rows, width), normal(rows, width), normal(width), normal(width))
    check(add_layer_norm, torch_add_layer_norm, inputs, upstream_of(inputs[0], 2), 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "parts",
    [
        (True, True),  # a pre-norm block
        (True, False),  # a post-norm block: nobody uses the sum itself
        (False, True),  # nobody uses the norm
    ],
)
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_add_layer_norm(dropout_p, parts, dtype, monkeypatch):
    poison_empty(monkeypatch)
    keep = fixed_mask(monkeypatch, 21, 96, dropout_p) if dropout_p else None
    input, residual = normal(3, 7, 96, dtype=dtype), normal(3, 7, 96, dtype=dtype)
    upstream = [grad if part else None for grad, part in zip(upstream_of(input, 2), parts, strict=True)]
    inputs = (input, residual, normal(96, dtype=dtype), normal(96, dtype=dtype))
    keep = None if keep is None else keep.view(3, 7, 96)
    if parts[0]:
        check(add_layer_norm, torch_add_layer_norm, inputs, upstream, 1e-5, dropout_p=dropout_p, keep=keep)
        return
    _, _, grad_input, grad_residual, *parameters = run(add_layer_norm, inputs, upstream, 1e-5, dropout_p=dropout_p)
    assert torch.equal(grad_residual, upstream[1])
    expected = upstream[1] if keep is None else torch.where(keep, upstream[1].float() / (1 - dropout_p), 0.0).to(dtype)
    torch.testing.assert_close(grad_input, expected)
    assert not any(grad is not None and grad.any() for grad in parameters)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_normalised_is_the_sum_that_is_returned(dtype):
    weight, bias = normal(197, dtype=dtype), normal(197, dtype=dtype)
    normed, summed = add_layer_norm(normal(9, 197, dtype=dtype), normal(9, 197, dtype=dtype), weight, bias)
    assert torch.equal(normed, layer_norm(summed, weight, bias))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 16), (37, 24), (7, 197), (33, 768)])  # as above
def test_rms_norm(rows, width, dtype, monkeypatch):
    poison_empty(monkeypatch)
    inputs = (normal(rows, width, dtype=dtype), normal(width, dtype=dtype))
    check(rms_norm, torch_rms_norm, inputs, upstream_of(inputs[0]), 1e-6)


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")  # masked rows, which nobody stores
@pytest.mark.parametrize("eps", [0.0, 1e-12, 0.1])  # none, one below float16's smallest number, one that shows
@pytest.mark.parametrize(("weighted", "biased"), [(False, False), (True, False), (False, True)])
def test_eps_and_missing_parameters(weighted, biased, eps):
    inputs = (normal(5, 48), normal(48) if weighted else None, normal(48) if biased else None)
    check(layer_norm, torch_layer_norm, inputs, upstream_of(inputs[0]), eps)


def test_large_mean_costs_no_digits():
    # E[x²] - E[x]² would lose 1e6 · 2⁻²⁴ of a variance of 1, and dividing by it as much of the result.
    input = (torch.randn(16, 512) + 1000.0).to(DEVICE)
    check(layer_norm, torch_layer_norm, (input.requires_grad_(), None, None), upstream_of(input), 1e-5)
    _, _, (rstd, mean) = torch.ops.heddle.layer_norm_forward(
        input, None, None, None, None, 0.0, 0.0, False, input.dtype
    )
    exact = input.detach().double()
    torch.testing.assert_close(mean.double(), exact.mean(-1), rtol=1e-7, atol=0)
    # The mean is off by up to 2⁻¹⁵, half a unit in its last place, and the squares of that are all that it adds.
    torch.testing.assert_close(rstd.double(), exact.var(-1, unbiased=False).rsqrt(), rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_are_float32(dtype):
    input = (normal(4, 256, grad=False) * 3 + 7).to(dtype)
    normed, summed, (rstd, mean) = torch.ops.heddle.layer_norm_forward(
        input, None, None, None, None, 1e-5, 0.0, False, dtype
    )
    assert normed.dtype == dtype
    assert summed.numel() == 0
    assert rstd.dtype == mean.dtype == torch.float32
    exact = input.double()
    torch.testing.assert_close(mean.double(), exact.mean(-1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rstd.double(), (exact.var(-1, unbiased=False) + 1e-5).rsqrt(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("input_dtype", "residual_dtype", "parameter_dtype"),
    [
        (torch.float16, torch.float32, torch.float32),  # a residual stream kept in float32
        (torch.float32, torch.float16, torch.float32),
        (torch.float16, torch.float16, torch.float32),  # master weights
        (torch.float32, torch.float32, torch.float16),
    ],
)
def test_mixed_dtypes(input_dtype, residual_dtype, parameter_dtype):
    inputs = (
        normal(11, 96, dtype=input_dtype),
        normal(11, 96, dtype=residual_dtype),
        normal(96, dtype=parameter_dtype),
        normal(96, dtype=parameter_dtype),
    )
    summed_dtype = torch.promote_types(input_dtype, residual_dtype)
    upstream = [normal(11, 96, dtype=summed_dtype, grad=False) for _ in range(2)]
    normed, summed, *grads = check(add_layer_norm, op.reference.add_layer_norm, inputs, upstream, 1e-5, dropout_p=0.0)
    assert normed.dtype == summed.dtype == summed_dtype
    assert [grad.dtype for grad in grads] == [tensor.dtype for tensor in inputs]


def test_float32_result_of_a_lower_input(monkeypatch):
    """What autocast does on CUDA, through the same kernel: nothing is rounded to the input's dtype."""
    monkeypatch.setattr(op.reference, "normed_dtype", lambda device, dtype: torch.float32)
    input, weight, bias = normal(9, 96, dtype=torch.float16), normal(96), normal(96)
    upstream = upstream_of(input.float())
    normed, grad_input, grad_weight, grad_bias = run(layer_norm, (input, weight, bias), upstream, 1e-5)
    assert (normed.dtype, grad_input.dtype, grad_weight.dtype) == (torch.float32, torch.float16, torch.float32)
    expected = run(torch_layer_norm, (input.float(), weight, bias), upstream, 1e-5)
    torch.testing.assert_close(normed, expected[0])
    torch.testing.assert_close((grad_weight, grad_bias), expected[2:])


@pytest.mark.gpu
def test_autocast_computes_in_float32():
    inputs = (normal(9, 96, dtype=torch.bfloat16), normal(9, 96, dtype=torch.bfloat16), normal(96), normal(96))
    with torch.autocast("cuda", torch.bfloat16):
        normed, summed = add_layer_norm(*inputs)
        expected = functional.layer_norm(inputs[0] + inputs[1], (96,), *inputs[2:])
    assert (normed.dtype, summed.dtype) == (expected.dtype, torch.bfloat16) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(normed, expected)
    grads = torch.autograd.grad(normed.sum() + summed.sum(), inputs)
    assert [grad.dtype for grad in grads] == [tensor.dtype for tensor in inputs]


# Launches


def test_every_width_has_entries():
    for width in range(1, tuning.WIDEST_BLOCK + 1):
        block = tuning.block_width(width)
        assert max(width, tuning.NARROWEST_BLOCK) <= block < 2 * max(width, tuning.NARROWEST_BLOCK)
        for itemsize in (2, 4):
            assert tuning.forward_entry(width, itemsize)
            assert tuning.backward_entry(width, itemsize)
    assert len(list(tuning.entries())) == 2 * 2 * 11


def test_number_of_rows_compiles_nothing_again():
    """Four batch sizes, one of which is 1 and two no multiples of 16, compile each kernel once."""
    code = """
import torch
from compile_gate import TARGETS, compiled_kernels
from kernels.layer_norm import backward, forward

def step(rows):
    x, parameter = torch.empty(rows, 96, device="meta"), torch.empty(96, device="meta")
    seed = torch.empty(1, dtype=torch.int64, device="meta")
    normed, summed, statistics = forward.forward(x, x, parameter, parameter, seed, 1e-5, 0.1, False, x.dtype)
    backward.backward(normed, summed, summed, parameter, statistics, seed, 0.1, False, *[x.dtype] * 4)

print(len(compiled_kernels(lambda: [step(rows) for rows in (1, 17, 4096, 70001)], TARGETS["sm_90"])))
"""
    # A process of its own: this one may have chosen the interpreter.
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/kernels'}", "PATH": "", "HOME": str(Path.home())}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "3", done.stderr  # forward, backward, the sum of partial sums


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("block", sorted({block for _, block, _, _ in tuning.entries()}))
@pytest.mark.parametrize("fill", [1.0, 0.75])  # a whole block, and one with a masked tail
def test_every_entry(block, dtype, fill, monkeypatch):
    rows, width = 3001, int(block * fill)
    keep = fixed_mask(monkeypatch, rows, width, 0.1)
    inputs = (
        normal(rows, width, dtype=dtype),
        normal(rows, width, dtype=dtype),
        normal(width, dtype=dtype),
        normal(width, dtype=dtype),
    )
    check(add_layer_norm, torch_add_layer_norm, inputs, upstream_of(inputs[0], 2), 1e-5, dropout_p=0.1, keep=keep)


@pytest.mark.gpu
def test_offsets_beyond_32_bits():
    rows = 2**31 // 1024 + 5
    input = torch.empty(rows, 1024, dtype=torch.bfloat16, device=DEVICE)
    input[:-5], input[-5:] = 1.0, normal(5, 1024, dtype=torch.bfloat16, grad=False)
    input.requires_grad_()
    normed = layer_norm(input)
    (grad,) = torch.autograd.grad(normed, input, normed.detach())
    tail = input[-5:].detach().requires_grad_()
    expected = layer_norm(tail)
    assert torch.equal(normed[-5:], expected)
    assert torch.equal(grad[-5:], torch.autograd.grad(expected, tail, expected.detach())[0])
