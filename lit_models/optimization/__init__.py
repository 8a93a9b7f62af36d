"""Learning-rate schedules, and gradients that are means over all micro-batches and ranks."""

from lit_models.optimization.schedules import Constant, InverseSquareRoot, Schedule, WarmupCosine
from lit_models.optimization.totals import StepTotals

__all__ = ["Constant", "InverseSquareRoot", "Schedule", "StepTotals", "WarmupCosine"]
