"""Means over everything: accumulated gradients equal those of one big batch, whatever the sizes of the parts."""

import pytest
import torch

from lit_models.optimization import StepTotals


def test_unequal_micro_batches_equal_one_big_batch():
    weight = torch.nn.Parameter(torch.randn(4))
    parts = [torch.randn(count, 4) for count in (1, 7, 2)]
    totals = StepTotals()
    for part in parts:
        loss_sum = (part @ weight).square().sum()
        totals.add(loss_sum, torch.tensor(len(part)))
        (loss_sum / len(parts)).backward()  # what Lightning does to the loss of a micro-batch
    loss = totals.scale_gradients([weight], accumulated=len(parts))
    big = (torch.cat(parts) @ weight).square().mean()
    torch.testing.assert_close(loss, big.detach())
    torch.testing.assert_close(weight.grad, torch.autograd.grad(big, weight)[0])


def test_starts_anew_and_says_when_nothing_was_added():
    totals = StepTotals()
    weight = torch.nn.Parameter(torch.ones(1))
    totals.add(torch.tensor(3.0), torch.tensor(2))
    assert totals.scale_gradients([weight], 1).item() == 1.5
    with pytest.raises(RuntimeError, match="no micro-batch"):
        totals.scale_gradients([weight], 1)


def test_a_step_of_only_padding_gives_zero():
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.zeros(1)
    totals = StepTotals()
    totals.add(torch.tensor(0.0), torch.tensor(0))
    assert totals.scale_gradients([weight], 1).item() == 0.0
    assert weight.grad.item() == 0.0
