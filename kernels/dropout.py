"""Dropout that does not dominate a training step on a CPU.

torch draws one Bernoulli sample per element there, in sequence; here one 64-bit draw decides four elements with 16 bits
each. Other devices use torch's own dropout. Kernels that drop elements inside themselves take their seeds from here.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_LEVELS = 1 << 16
_INT16_MIN = -(1 << 15)


def dropout(input: Tensor, p: float) -> Tensor:
    """Zero elements with probability ``p`` and scale the others so that the expectation stays (Srivastava et al. 2014).

    On a CPU ``p`` is rounded to a multiple of 2⁻¹⁶, and the scale is that of the rounded value, so nothing is biased.

    Args:
        input: Any shape, floating point.
        p: Probability of dropping an element, in [0, 1).

    Returns:
        A tensor shaped like ``input``, or ``input`` itself if ``p`` is 0.

    Raises:
        ValueError: If ``p`` is outside [0, 1).
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"p must be in [0, 1), got {p}")
    if p == 0.0:
        return input
    if input.device.type != "cpu":
        return functional.dropout(input, p)
    dropped_levels = min(round(p * _LEVELS), _LEVELS - 1)
    return _Dropout.apply(input, dropped_levels)


def new_seed(device: torch.device) -> Tensor:
    """Return the seed of one mask of a kernel, (1,) int64 on ``device``, from torch's generator of that device.

    It never leaves the device, so nothing waits, a CUDA graph draws a new one at each replay, and whatever restores
    torch's generator (a checkpointed block, a resumed run) restores the mask.
    """
    return torch.randint(2**62, (1,), device=device)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, input: Tensor, dropped_levels: int) -> Tensor:
        words = torch.empty((input.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        levels = words.view(torch.int16)[: input.numel()].view(input.shape)
        kept = torch.empty(input.shape, dtype=input.dtype)
        torch.ge(levels, _INT16_MIN + dropped_levels, out=kept)
        context.save_for_backward(kept)
        context.scale = _LEVELS / (_LEVELS - dropped_levels)
        return (input * kept).mul_(context.scale)

    @staticmethod
    def backward(context: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (kept,) = context.saved_tensors
        return (grad_output * kept).mul_(context.scale), None
