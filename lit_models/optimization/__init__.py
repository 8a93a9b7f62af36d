"""Learning-rate schedules, averages of weights, and gradients that are means over all micro-batches and ranks."""

from lit_models.optimization.averaging import average_state_dicts
from lit_models.optimization.schedules import Constant, InverseSquareRoot, Schedule, WarmupCosine
from lit_models.optimization.totals import StepTotals

__all__ = ["Constant", "InverseSquareRoot", "Schedule", "StepTotals", "WarmupCosine", "average_state_dicts"]
