"""Uniform numbers for a whole batch at once, a function of each sample's seed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seeds: Sequence[int], stream: int, count: int) -> NDArray[np.float64]:
    """Draws from the uniform distribution between 0 and 1, keyed to (seed, stream, position).

    A ``random.Random`` for every sample would take more time than the erasing and mixing of a batch on a GPU. This is
    SplitMix64 (Steele et al. 2014, https://doi.org/10.1145/2660193.2660195) from a start for every seed.

    Args:
        seeds: A seed for each sample, at least 0 and below 2**64.
        stream: Tells apart what is drawn for.
        count: Numbers for each sample.

    Returns:
        Numbers in [0, 1) of shape (seeds, count).
    """
    with np.errstate(over="ignore"):
        starts = _mix(np.array(seeds, np.uint64) + _mix(np.array([stream], np.uint64) + _STEP))
        states = starts[:, None] + _STEP * np.arange(1, count + 1, dtype=np.uint64)
        return (_mix(states) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
