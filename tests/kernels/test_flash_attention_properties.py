"""What holds for attention of any shape and mask, on both backends."""

import pytest
import torch
from kernel_testing import DEVICE, attention_formula

from kernels import flash_attention, use_backend

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings, strategies  # noqa: E402


@strategies.composite
def problems(draw, backend):
    """Return query, key, value and settings of a problem that the backend takes."""
    whole = strategies.integers
    key_heads = draw(whole(1, 2))
    heads = key_heads * draw(whole(1, 3))
    batch, queries, keys = draw(whole(1, 3)), draw(whole(1, 40)), draw(whole(1, 40))
    head_dims = strategies.sampled_from([16, 24, 32, 40]) if backend == "triton" else whole(1, 40)
    head_dim, value_dim = draw(head_dims), draw(head_dims)
    generator = torch.Generator().manual_seed(draw(whole(0, 2**31)))

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE).requires_grad_()

    axes = (batch, heads, queries, keys)
    lengths = draw(strategies.none() | strategies.lists(whole(0, keys + 3), min_size=batch, max_size=batch))
    return (
        normal(batch, heads, queries, head_dim),
        normal(batch, key_heads, keys, head_dim),
        normal(batch, key_heads, keys, value_dim),
        {
            "causal": draw(strategies.booleans()),
            "key_lengths": None if lengths is None else torch.tensor(lengths, device=DEVICE),
            "bias": normal(*(draw(strategies.sampled_from([1, size])) for size in axes))
            if draw(strategies.booleans())
            else None,
        },
    )


def gradients(output, tensors, upstream):
    return torch.autograd.grad(output, [tensor for tensor in tensors if tensor is not None], upstream.to(output.dtype))


@pytest.mark.parametrize("backend", ["torch", "triton"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=strategies.data())
def test_any_shape_equals_the_formula(backend, data):
    query, key, value, masks = data.draw(problems(backend))
    with use_backend(backend):
        output = flash_attention(query, key, value, **masks)
    inputs = (query, key, value, masks["bias"])
    exact_inputs = [None if tensor is None else tensor.detach().double().requires_grad_() for tensor in inputs]
    exact = attention_formula(*exact_inputs[:3], **{**masks, "bias": exact_inputs[3]})
    upstream = torch.randn_like(output)
    # Values of order 1 to 10, sums of some ten to a hundred terms in float32.
    torch.testing.assert_close(output.double(), exact, rtol=1e-5, atol=1e-5)
    for mine, reference in zip(
        gradients(output, inputs, upstream), gradients(exact, exact_inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine.double(), reference, rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=strategies.data())
def test_order_of_the_keys_does_not_matter_without_a_mask(data):
    query, key, value, _ = data.draw(problems("triton"))
    order = torch.randperm(key.shape[2], device=DEVICE)
    with use_backend("triton"):
        torch.testing.assert_close(
            flash_attention(query, key[:, :, order], value[:, :, order]), flash_attention(query, key, value)
        )


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=strategies.data())
def test_an_output_lies_between_the_values_it_averages(data):
    query, key, value, masks = data.draw(problems("triton"))
    with use_backend("triton"):
        output = flash_attention(query, key, value, **masks)
    lowest = value.amin().clamp(max=0.0)  # 0 where a query sees no key
    highest = value.amax().clamp(min=0.0)
    rounding = 1e-5 * value.abs().max()
    assert (output >= lowest - rounding).all() and (output <= highest + rounding).all()
