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
    for label_smoothing in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="label_smoothing"):
            linear_cross_entropy(hidden, weight, target, label_smoothing=label_smoothing)
    with pytest.raises(ValueError, match=r"weight must be \(vocabulary, width\)"):
        linear_cross_entropy(hidden, weight[0], target)
    with pytest.raises(ValueError, match=r"weight must be .* at least one entry, got \(0, 5\)"):
        linear_cross_entropy(hidden, weight[:0], target)
    with pytest.raises(ValueError, match="hidden must be floating point, got torch.int64"):
        linear_cross_entropy(hidden.long(), weight, target)
    with pytest.raises(ValueError, match=r"weight is torch\.float64, hidden torch\.float32"):
        linear_cross_entropy(hidden, weight.double(), target)
    with pytest.raises(ValueError, match=r"bias is torch\.float16, hidden torch\.float32"):
        linear_cross_entropy(hidden, weight, target, bias=torch.zeros(11, dtype=torch.float16))
    with pytest.raises(ValueError, match="target is on meta, hidden on cpu"):
        linear_cross_entropy(hidden, weight, target.to("meta"))


@pytest.mark.parametrize("wrong", [11, -1])  # one past the end; a negative one that indexing would take
def test_a_wrong_target_is_named(wrong):
    hidden, weight, _, target = draw()
    target[1, 1] = wrong
    with pytest.raises(ValueError, match=rf"target must be in \[0, 11\) or ignore_index -100, got {wrong}"):
        linear_cross_entropy(hidden, weight, target)
    linear_cross_entropy(hidden, weight, target, ignore_index=wrong)


def test_short_integers_and_no_tokens():
    hidden, weight, bias, target = draw()
    for part in (target, target[:, :0]):
        results = [
            linear_cross_entropy(hidden[:, : part.shape[1]], weight, ids, bias=bias) for ids in (part, part.int())
        ]
        torch.testing.assert_close(*results, rtol=0, atol=0)
    loss, count = results[0]
    assert (loss.item(), count.item(), loss.dtype, count.dtype) == (0.0, 0, torch.float64, torch.int64)
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, (hidden, weight, bias)))


def test_autocast_leaves_float64_alone():
    hidden, weight, _, target = draw()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = linear_cross_entropy(hidden, weight, target)
    assert torch.equal(loss, linear_cross_entropy(hidden, weight, target)[0])
