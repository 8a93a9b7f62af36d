"""Learning-rate schedules as functions of the optimiser step alone.

The optimiser's ``lr`` is the peak; a schedule gives the factor. None of them asks the trainer how long training will
be: what needs a total takes it as an argument, so that resuming in the middle of an epoch changes nothing.
"""

import math

from lit_models.checks import check_at_least


class Schedule:
    """A factor of the peak learning rate for every optimiser step."""

    def __call__(self, step: int) -> float:
        """Return the factor for ``step``, counted from 0."""
        raise NotImplementedError


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
