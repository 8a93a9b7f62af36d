"""Schedules against the published formulas, step by step."""

import math

import pytest
import torch

from lit_models.optimization import Constant, DeiTCosine, InverseSquareRoot, StepDecay, SwinCosine, WarmupCosine


@pytest.mark.parametrize(("dim", "peak"), [(512, 6.99e-4), (1024, 4.94e-4)])
def test_inverse_square_root_is_the_papers(dim, peak):
    schedule = InverseSquareRoot(4000)
    lr = (dim * 4000) ** -0.5
    assert lr == pytest.approx(peak, rel=1e-3)
    for step in [*range(1, 20), 3999, 4000, 4001, 10_000, 100_000]:
        paper = dim**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert lr * schedule(step - 1) == pytest.approx(paper, rel=1e-12)


def test_warmup_cosine():
    schedule = WarmupCosine(110, warmup_steps=10, floor=0.1)
    assert [schedule(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert schedule(60) == pytest.approx(0.55)
    assert schedule(35) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert schedule(110) == schedule(10_000) == pytest.approx(0.1)


def test_constant():
    assert [Constant(4)(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert Constant()(0) == 1.0


def test_row_4_deit_lags_by_an_epoch():
    """The rates that the published recipe (300 epochs, 5 of warm-up, peak 1e-3) ran with."""
    schedule, steps = DeiTCosine(300, 1251).for_peak(1e-3), 1251
    rates = [1e-3 * schedule(epoch * steps) for epoch in range(300)]
    assert rates[:7] == pytest.approx([1e-6, 1e-6, 2.008e-4, 4.006e-4, 6.004e-4, 8.002e-4, 9.99e-4], rel=1e-3)
    assert rates[-1] == pytest.approx(1.01e-5, rel=2e-3)
    for epoch in (0, 1, 2, 6, 299):  # one rate throughout an epoch
        assert 1e-3 * schedule(epoch * steps + steps - 1) == rates[epoch]


def test_row_3_what_follows_the_batch():
    """Twice the batch: DeiT's ends stay where they are, Swin's move with the peak."""
    deit = [DeiTCosine(20, 4, 2).for_peak(peak) for peak in (1e-3, 2e-3)]
    for step, rate in ((0, 1e-6), (20 * 4 + 100, 1e-5)):
        assert [1e-3 * deit[0](step), 2e-3 * deit[1](step)] == pytest.approx([rate, rate])
    swin = SwinCosine(100, 10)
    assert [swin.for_peak(peak)(0) * peak for peak in (1e-3, 2e-3)] == pytest.approx([1e-6, 2e-6])
    assert [swin.for_peak(peak)(200) * peak for peak in (1e-3, 2e-3)] == pytest.approx([1e-5, 2e-5])


def test_row_4_swin_starts_its_cosine_after_the_warm_up():
    schedule = SwinCosine(110, 10, warmup_factor=0.0, floor=0.0)
    assert [schedule(step) for step in (0, 1, 2, 11)] == pytest.approx([0.0, 0.0, 0.1, 1.0])
    assert schedule(61) == pytest.approx(0.5), "half of the 100 steps after the warm-up, one step late"


def test_deit_needs_the_peak():
    with pytest.raises(RuntimeError, match="for_peak"):
        DeiTCosine(10, 3)(0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: InverseSquareRoot(0), "warmup_steps must be at least 1, got 0"),
        (lambda: WarmupCosine(10, 10), "total_steps must be at least 11, got 10"),
        (lambda: DeiTCosine(5, 10, 5), "epochs must be at least 6, got 5"),
        (lambda: DeiTCosine(5, 0, 1), "steps_per_epoch must be at least 1, got 0"),
        (lambda: SwinCosine(10, 10), "total_steps must be at least 11, got 10"),
        (lambda: Constant(-1), "warmup_steps must be at least 0, got -1"),
    ],
)
def test_impossible_values_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_step_decay_is_torchs_by_steps_and_by_epochs():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs, rates = torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 6], gamma=0.1), []
    for _ in range(9):
        rates.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    by_steps, by_epochs = StepDecay([4, 6]), StepDecay([2, 3], steps_per_epoch=2)
    assert [by_steps(step) for step in range(9)] == pytest.approx(rates)
    assert [by_epochs(step) for step in range(9)] == pytest.approx(rates)
    assert [StepDecay([3], 0.5, warmup_steps=4)(step) for step in range(5)] == [0.25, 0.5, 0.75, 0.5, 0.5]
    for wrong, message in (({"milestones": [2, 2]}, "ascending"), ({"milestones": [1], "factor": 1.0}, "below 1")):
        with pytest.raises(ValueError, match=message):
            StepDecay(**wrong)
