"""Learning-rate schedules, optimisers, averages of weights, and gradients that are means over a whole step."""

from lit_models.optimization.averaging import average_state_dicts
from lit_models.optimization.lamb import Lamb
from lit_models.optimization.parameter_groups import parameter_groups, set_learning_rates
from lit_models.optimization.schedules import (
    Constant,
    DeiTCosine,
    InverseSquareRoot,
    Schedule,
    StepDecay,
    SwinCosine,
    WarmupCosine,
)
from lit_models.optimization.totals import StepTotals

__all__ = [
    "Constant",
    "DeiTCosine",
    "InverseSquareRoot",
    "Lamb",
    "Schedule",
    "StepDecay",
    "StepTotals",
    "SwinCosine",
    "WarmupCosine",
    "average_state_dicts",
    "parameter_groups",
    "set_learning_rates",
]
