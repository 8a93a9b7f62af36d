"""DeiT's and Swin's schedules against timm's, driven as the two training scripts drive it."""

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from lit_models.optimization import DeiTCosine, SwinCosine


def optimizer(rate):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


@pytest.mark.parametrize("peak", [1e-3, 2.5e-4, 5e-6])
@pytest.mark.parametrize(("epochs", "warmup"), [(300, 5), (30, 5), (12, 0)])
def test_deit_by_epoch(peak, epochs, warmup):
    theirs = optimizer(peak)
    scheduler = CosineLRScheduler(theirs, t_initial=epochs, lr_min=1e-5, warmup_t=warmup, warmup_lr_init=1e-6)
    ours, steps = DeiTCosine(epochs, 3, warmup).for_peak(peak), 0
    for epoch in range(epochs):
        for _ in range(3):
            assert peak * ours(steps) == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12), (epoch, steps)
            steps += 1
        scheduler.step(epoch)  # facebookresearch/deit, main.py: the epoch that just ended


@pytest.mark.parametrize("warmup", [7, 0])
def test_swin_by_step(warmup):
    peak, total = 1e-3, 50
    theirs = optimizer(peak)
    scheduler = CosineLRScheduler(
        theirs,
        t_initial=total - warmup,
        lr_min=peak * 1e-2,
        warmup_t=warmup,
        warmup_lr_init=peak * 1e-3,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    ours = SwinCosine(total, warmup)
    for step in range(total + 5):
        assert peak * ours(step) == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12), step
        scheduler.step_update(step)  # microsoft/Swin-Transformer, main.py: the step that was just made
