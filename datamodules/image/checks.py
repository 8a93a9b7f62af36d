"""Checks of what the augmentations are configured with, for callers from Python and the command line alike."""

import math


def check_between(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Refuses a number outside of a range; its ends are allowed.

    Raises:
        ValueError: If it is outside, naming the argument, the value and the range.
    """
    if not low <= value <= high:
        allowed = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise ValueError(f"{name}={value} must be {allowed}")
