"""Schedules against the published formulas, step by step."""

import math

import pytest

from lit_models.optimization import Constant, InverseSquareRoot, WarmupCosine


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


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: InverseSquareRoot(0), "warmup_steps must be at least 1, got 0"),
        (lambda: WarmupCosine(10, 10), "total_steps must be at least 11, got 10"),
        (lambda: Constant(-1), "warmup_steps must be at least 0, got -1"),
    ],
)
def test_impossible_values_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
