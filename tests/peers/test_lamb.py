"""LAMB against timm's, several steps on random weights."""

import pytest
import torch
from timm.optim import Lamb as TimmLamb

from lit_models.optimization import Lamb


def weights(dtype):
    torch.manual_seed(1)
    shapes = [(4, 6), (3,), (2, 3, 2, 2), (5, 5), (1,)]
    made = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    with torch.no_grad():
        made[3].zero_()  # a norm of 0 has a trust ratio of 1
    return made


def groups(made):
    decayed = [p for p in made if p.ndim > 1]
    return [{"params": decayed}, {"params": [p for p in made if p.ndim <= 1], "weight_decay": 0.0, "lr": 0.07}]


@pytest.mark.parametrize("max_grad_norm", [1.0, None])
@pytest.mark.parametrize("size", [0.01, 3.0])  # gradients below and above the norm to which they are cut
def test_equals_timm(max_grad_norm, size):
    ours, theirs = weights(torch.float64), weights(torch.float64)
    settings = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.3, "max_grad_norm": max_grad_norm}
    pair = (Lamb(groups(ours), **settings), TimmLamb(groups(theirs), **settings))
    generator = torch.Generator().manual_seed(2)
    for step in range(6):
        for one, two in zip(ours, theirs, strict=True):
            gradient = torch.randn(one.shape, generator=generator, dtype=one.dtype) * size
            one.grad, two.grad = gradient.clone(), gradient.clone()
        if step == 3:
            for optimizer in pair:
                optimizer.param_groups[0]["lr"] = 0.005
        for optimizer in pair:
            optimizer.step()
        for one, two in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-13)


def test_equals_timm_in_float32():
    ours, theirs = weights(torch.float32), weights(torch.float32)
    pair = (Lamb(groups(ours)), TimmLamb(groups(theirs)))
    for _ in range(4):
        for one, two in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            two.grad = one.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
