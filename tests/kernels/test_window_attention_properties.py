"""What holds for window attention of any map, window and shift, on the PyTorch path."""

import pytest
import torch
from kernel_testing import DEVICE
from window_testing import PAD_MODES, roll_partition, window_formula

from kernels import use_backend, window_attention

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings, strategies  # noqa: E402


@strategies.composite
def problems(draw):
    """Return the tensors and the settings of a problem in float64."""
    whole = strategies.integers
    batch, heads, head_dim = draw(whole(1, 3)), draw(whole(1, 3)), draw(whole(1, 8))
    window = draw(whole(1, 6)), draw(whole(1, 6))
    generator = torch.Generator().manual_seed(draw(whole(0, 2**31)))

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE).requires_grad_()

    stacked = 3 * heads * head_dim
    tensors = {"qkv": normal(batch, draw(whole(1, 14)), draw(whole(1, 14)), stacked)}
    if draw(strategies.booleans()):
        tensors["bias"] = normal((2 * window[0] - 1) * (2 * window[1] - 1), heads)
    if draw(strategies.booleans()):
        tensors["qkv_padding"] = normal(stacked)
    if draw(strategies.booleans()):
        tensors["logit_scale"] = normal(heads).detach().exp().requires_grad_()
    return tensors, {
        "num_heads": heads,
        "window_size": window,
        "shift": (draw(whole(0, window[0] - 1)), draw(whole(0, window[1] - 1))),
        "pad_mode": draw(strategies.sampled_from(PAD_MODES)),
    }


def run(function, problem):
    tensors, options = problem
    with use_backend("torch"):
        return function(**tensors, **options)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problem=problems())
def test_any_map_equals_the_formula(problem):
    actual, expected = run(window_attention, problem), run(window_formula, problem)
    torch.testing.assert_close(actual, expected)
    upstream, inputs = torch.randn_like(actual), list(problem[0].values())
    for mine, reference in zip(
        *(torch.autograd.grad(output, inputs, upstream, materialize_grads=True) for output in (actual, expected)),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(problem=problems(), pick=strategies.integers(0, 10**6))
def test_a_token_changes_its_own_window_alone(problem, pick):
    (tensors, options), qkv = problem, problem[0]["qkv"].detach()
    _, height, width, stacked = qkv.shape
    row, column = pick % height, pick // height % width
    changed = qkv.clone()
    changed[:, row, column] += 1.0
    moved = run(window_attention, problem) != run(window_attention, ({**tensors, "qkv": changed}, options))

    def windows(image):
        return roll_partition(image, options["window_size"], options["shift"], options["pad_mode"])

    mark = torch.zeros_like(qkv[..., :1])
    mark[:, row, column] = 1.0
    elsewhere = windows(mark).sum((1, 2)) == 0
    assert moved[:, row, column].any()
    assert not windows(moved)[elsewhere].any()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(problem=problems())
def test_an_output_lies_between_the_values_of_the_map_and_its_padding(problem):
    tensors, options = problem
    output = run(window_attention, problem)
    heads, head_dim = options["num_heads"], output.shape[3] // options["num_heads"]
    held = [tensors["qkv"][..., -heads * head_dim :].flatten(1, 2)]
    held.append(torch.zeros_like(held[0][:, :1]))
    if "qkv_padding" in tensors:
        held.append(tensors["qkv_padding"][-heads * head_dim :].expand_as(held[1]))
    values = torch.cat(held, dim=1)
    lowest, highest = values.amin(1)[:, None, None], values.amax(1)[:, None, None]
    assert (output >= lowest - 1e-12).all() and (output <= highest + 1e-12).all()
