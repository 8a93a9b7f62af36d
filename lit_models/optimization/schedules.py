"""Learning-rate schedules as functions of the optimiser step alone.

The optimiser's ``lr`` is the peak; a schedule gives the factor. None of them asks the trainer how long training will
be: what needs a total takes it as an argument, so that resuming in the middle of an epoch changes nothing.
"""

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Self

from lit_models.checks import check_at_least


class Schedule:
    """A factor of the peak learning rate for every optimiser step."""

    def __call__(self, step: int) -> float:
        """Return the factor for ``step``, counted from 0."""
        raise NotImplementedError

    def for_peak(self, peak: float) -> Self:
        """Return this schedule for an optimiser whose peak learning rate is ``peak``.

        Only schedules with rates that do not follow the peak need to know it; the others return themselves.
        """
        return self


class Constant(Schedule):
    """The peak at every step, after an optional linear warm-up.

    Args:
        warmup_steps: Steps of linear warm-up; step ``warmup_steps - 1`` is the first at the peak.
    """

    def __init__(self, warmup_steps: int = 0) -> None:
        check_at_least("warmup_steps", warmup_steps, 0)
        self.warmup_steps = warmup_steps

    def __call__(self, step: int) -> float:
        """Return ``min(1, (step + 1) / warmup_steps)``."""
        return min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0


class StepDecay(Schedule):
    """The peak, multiplied by a factor from each milestone on, after an optional linear warm-up.

    DETR drops to a tenth once, after 200 of 300 or 400 of 500 epochs (Carion et al. 2020, appendix A.4).

    Args:
        milestones: Ascending; steps, or epochs where ``steps_per_epoch`` is given. Step or epoch ``milestones[0]``,
            counted from 0, is the first at the lower rate.
        factor: Of the rate at each milestone, in (0, 1).
        steps_per_epoch: Optimiser steps in an epoch; null if milestones are steps.
        warmup_steps: Steps of linear warm-up.

    Raises:
        ValueError: If a number is impossible.
    """

    def __init__(
        self,
        milestones: Sequence[int],
        factor: float = 0.1,
        steps_per_epoch: int | None = None,
        warmup_steps: int = 0,
    ) -> None:
        check_at_least("warmup_steps", warmup_steps, 0)
        if steps_per_epoch is not None:
            check_at_least("steps_per_epoch", steps_per_epoch, 1)
        if not 0.0 < factor < 1.0:
            raise ValueError(f"factor must be above 0 and below 1, got {factor}")
        self.milestones = [int(milestone) for milestone in milestones]
        if any(first >= second for first, second in pairwise([0, *self.milestones])):
            raise ValueError(f"milestones must be ascending and at least 1, got {self.milestones}")
        self.factor, self.steps_per_epoch, self.warmup_steps = factor, steps_per_epoch, warmup_steps

    def __call__(self, step: int) -> float:
        """Return the factor of a step."""
        rising = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        time = step // (self.steps_per_epoch or 1)
        return rising * self.factor ** sum(time >= milestone for milestone in self.milestones)


class InverseSquareRoot(Schedule):
    """Linear warm-up, then decay with the square root of the step (Vaswani et al. 2017, section 5.3).

    The paper's ``dim^-0.5 · min(s^-0.5, s · warmup^-1.5)`` is this schedule with a peak of ``(dim · warmup)^-0.5``:
    6.99e-4 for the base and 4.94e-4 for the big network with 4,000 steps of warm-up.

    Args:
        warmup_steps: Steps of linear warm-up.
    """

    def __init__(self, warmup_steps: int = 4000) -> None:
        check_at_least("warmup_steps", warmup_steps, 1)
        self.warmup_steps = warmup_steps

    def __call__(self, step: int) -> float:
        """Return ``min(s / warmup, (warmup / s)^0.5)`` with ``s = step + 1``."""
        return min((step + 1) / self.warmup_steps, (self.warmup_steps / (step + 1)) ** 0.5)


class WarmupCosine(Schedule):
    """Linear warm-up, then half a cosine down to a floor (Loshchilov & Hutter 2017).

    Args:
        total_steps: Step at which the floor is reached; it stays there.
        warmup_steps: Steps of linear warm-up.
        floor: Final factor.
    """

    def __init__(self, total_steps: int, warmup_steps: int = 0, floor: float = 0.0) -> None:
        check_at_least("warmup_steps", warmup_steps, 0)
        check_at_least("total_steps", total_steps, warmup_steps + 1)
        self.total_steps, self.warmup_steps, self.floor = total_steps, warmup_steps, floor

    def __call__(self, step: int) -> float:
        """Return the factor: rising to 1 at the end of the warm-up, falling to ``floor`` at ``total_steps``."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


class DeiTCosine(Schedule):
    """DeiT's schedule: a cosine by epochs, warm-up within it, one epoch late (Touvron et al. 2021).

    The released code (facebookresearch/deit, timm's ``CosineLRScheduler``) sets the rate of epoch t when epoch t ends,
    so that epoch e runs at the rate of t = max(0, e - 1): with 300 epochs, 5 of them warm-up, and a peak of 1e-3 the
    epochs run at 1e-6, 1e-6, 2.008e-4, ... 9.993e-4, ... 1.011e-5. The first and the last rate are absolute: scaling
    the peak with the batch leaves them as they are.

    Args:
        epochs: Length of the cosine.
        steps_per_epoch: Optimiser steps in an epoch: 1,251 for ImageNet in batches of 1,024.
        warmup_epochs: Epochs of linear warm-up, counted within ``epochs``.
        warmup_rate: Learning rate at which the warm-up starts.
        final_rate: Learning rate at the end.

    Raises:
        ValueError: If a number is impossible.
    """

    def __init__(
        self,
        epochs: int,
        steps_per_epoch: int,
        warmup_epochs: int = 5,
        warmup_rate: float = 1e-6,
        final_rate: float = 1e-5,
    ) -> None:
        check_at_least("warmup_epochs", warmup_epochs, 0)
        check_at_least("epochs", epochs, warmup_epochs + 1)
        check_at_least("steps_per_epoch", steps_per_epoch, 1)
        check_at_least("warmup_rate", warmup_rate, 0.0)
        check_at_least("final_rate", final_rate, 0.0)
        self.epochs, self.steps_per_epoch, self.warmup_epochs = epochs, steps_per_epoch, warmup_epochs
        self.warmup_rate, self.final_rate = warmup_rate, final_rate
        self.peak: float | None = None

    def for_peak(self, peak: float) -> Self:
        """Return the schedule whose factors give the absolute rates at this peak."""
        known = copy.copy(self)
        known.peak = peak
        return known

    def __call__(self, step: int) -> float:
        """Return the factor of the step's epoch.

        Raises:
            RuntimeError: If the peak is not known, see :meth:`for_peak`.
        """
        if self.peak is None:
            raise RuntimeError("DeiTCosine has absolute rates: call for_peak(peak) first")
        time = max(0, step // self.steps_per_epoch - 1)
        if time < self.warmup_epochs:
            return (self.warmup_rate + time * (self.peak - self.warmup_rate) / self.warmup_epochs) / self.peak
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, time / self.epochs)))
        return (self.final_rate + (self.peak - self.final_rate) * cosine) / self.peak


class SwinCosine(Schedule):
    """Swin's schedule: by steps, the cosine after the warm-up, one step late (Liu et al. 2021).

    The released code (microsoft/Swin-Transformer with ``WARMUP_PREFIX``) sets rate t after step t, so that step s runs
    at the rate of t = max(0, s - 1). All three rates are scaled with the batch: first and last are factors of the peak.

    Args:
        total_steps: Optimiser steps of warm-up and cosine together.
        warmup_steps: Steps of linear warm-up.
        warmup_factor: Factor at which the warm-up starts; Swin's 5e-7 of 5e-4.
        floor: Factor at the end; Swin's 5e-6 of 5e-4.

    Raises:
        ValueError: If a number is impossible.
    """

    def __init__(
        self, total_steps: int, warmup_steps: int = 0, warmup_factor: float = 1e-3, floor: float = 1e-2
    ) -> None:
        check_at_least("warmup_steps", warmup_steps, 0)
        check_at_least("total_steps", total_steps, warmup_steps + 1)
        self.total_steps, self.warmup_steps = total_steps, warmup_steps
        self.warmup_factor, self.floor = warmup_factor, floor

    def __call__(self, step: int) -> float:
        """Return the factor of a step."""
        time = max(0, step - 1)
        if time < self.warmup_steps:
            return self.warmup_factor + time * (1.0 - self.warmup_factor) / self.warmup_steps
        progress = min(1.0, (time - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
