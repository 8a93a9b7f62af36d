"""Random choices that come out the same everywhere."""

from random import Random
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """Random choices that are the same on every machine and every version of Python.

    Only `Random.random` is promised to give the same numbers for ever, so every choice is made from it.
    """

    def __init__(self, seed: int) -> None:
        self._random = Random(seed).random

    def below(self, count: int) -> int:
        """Draws a whole number from 0 to `count` - 1."""
        return int(self._random() * count)

    def chance(self, probability: float) -> bool:
        """Is true with a probability."""
        return self._random() < probability

    def pick(self, items: tuple[T, ...]) -> T:
        """Picks one item, all equally likely."""
        return items[self.below(len(items))]

    def weighted(self, items: tuple[tuple[int, T], ...]) -> T:
        """Picks one of (weight, item)."""
        position = self.below(sum(weight for weight, _ in items))
        for weight, item in items:
            position -= weight
            if position < 0:
                return item
        raise ValueError("there is nothing to pick from")
