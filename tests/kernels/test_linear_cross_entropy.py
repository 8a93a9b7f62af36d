"""The chunked projection and loss, against torch's cross_entropy over the whole matrix of logits."""

import pytest
import torch
from torch.nn import functional

from kernels import linear_cross_entropy
from kernels.linear_cross_entropy import reference, tuning


def draw(dtype=torch.float64, tokens=(3, 7), vocabulary=11, width=5):
    hidden = torch.randn(*tokens, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=dtype, requires_grad=True)
    bias = torch.randn(vocabulary, dtype=dtype, requires_grad=True)
    target = torch.randint(0, vocabulary, tokens)
    target[0, :2] = 0
    return hidden, weight, bias, target


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 1000])  # one row a chunk, a ragged last chunk, all in one
def test_loss_count_and_gradients(label_smoothing, with_bias, rows, monkeypatch):
    monkeypatch.setitem(tuning.CHUNK_BYTES, "cpu", rows * 11 * 8)
    hidden, weight, bias, target = draw()
    used = (hidden, weight, bias) if with_bias else (hidden, weight)
    logits = functional.linear(hidden, weight, bias if with_bias else None)
    expected = functional.cross_entropy(
        logits.flatten(0, 1), target.flatten(), ignore_index=0, label_smoothing=label_smoothing, reduction="sum"
    )
    loss, count = linear_cross_entropy(
        hidden, weight, target, bias=bias if with_bias else None, label_smoothing=label_smoothing, ignore_index=0
    )
    torch.testing.assert_close(loss, expected)
    assert int(count) == int((target != 0).sum())
    # An upstream factor other than 1: the gradients are made in the forward pass and must still take it.
    for gradient, wanted in zip(
        torch.autograd.grad(0.3 * loss, used), torch.autograd.grad(0.3 * expected, used), strict=True
    ):
        torch.testing.assert_close(gradient, wanted)


def test_nothing_but_padding():
    hidden, weight, _, target = draw()
    loss, count = linear_cross_entropy(hidden, weight, torch.zeros_like(target), ignore_index=0)
    assert (loss.item(), count.item()) == (0.0, 0)
    assert float(torch.autograd.grad(loss, weight)[0].abs().sum()) == 0.0


def test_no_gradient_is_made_where_none_is_wanted(monkeypatch):
    hidden, weight, _, target = draw()
    wanted = linear_cross_entropy(hidden, weight, target)[0].detach()
    monkeypatch.setattr(reference, "_grad_logits", None)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, weight, target)[0], wanted)


def test_gradcheck():
    hidden, weight, bias, target = draw()
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_cross_entropy(h, w, target, bias=b, label_smoothing=0.1, ignore_index=0)[0],
        (hidden, weight, bias),
    )


def test_autocast_multiplies_in_bfloat16_and_sums_in_float32():
    hidden, weight, _, target = draw(torch.float32, (8, 16), 64, 32)
    exact, _ = linear_cross_entropy(hidden.double(), weight.double(), target)
    with torch.autocast("cpu", torch.bfloat16):
        loss, count = linear_cross_entropy(hidden, weight, target)
        plain = functional.cross_entropy(
            functional.linear(hidden, weight).float().flatten(0, 1), target.flatten(), reduction="sum"
        )
    assert loss.dtype == torch.float32
    # Twice the error of the plain way in the same precision, plus an ulp of the sum.
    error, plain_error = (loss - exact).abs().item(), (plain - exact).abs().item()
    assert error <= 2 * plain_error + 2**-23 * exact.abs().item() * count.item()
    gradient = torch.autograd.grad(loss, weight)[0]
    assert gradient.dtype == torch.float32


def test_extreme_logits_stay_finite():
    hidden = torch.tensor([[100.0]], requires_grad=True)
    weight = torch.tensor([[100.0], [-100.0]], requires_grad=True)
    loss, _ = linear_cross_entropy(hidden, weight, torch.tensor([1]))
    assert loss.item() == 20_000.0
    assert torch.isfinite(torch.autograd.grad(loss, weight)[0]).all()


def test_wrong_arguments_are_named():
    hidden, weight, target = torch.zeros(2, 3, 5), torch.zeros(11, 5), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="hidden .* must end in the width of weight"):
        linear_cross_entropy(hidden[..., :4], weight, target)
    with pytest.raises(ValueError, match=r"target .* must be shaped \(2, 3\)"):
        linear_cross_entropy(hidden, weight, target[:1])
    with pytest.raises(ValueError, match="integer class ids"):
        linear_cross_entropy(hidden, weight, target.float())
    with pytest.raises(ValueError, match=r"bias must be \(11,\)"):
        linear_cross_entropy(hidden, weight, target, bias=torch.zeros(5))
    with pytest.raises(ValueError, match="label_smoothing"):
        linear_cross_entropy(hidden, weight, target, label_smoothing=1.0)
