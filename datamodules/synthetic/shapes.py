"""The figures of the built-in image corpus, as polygons in a frame of their own.

The frame has its origin in the figure's centre, and no point of a figure is further than 1 from it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

Point = tuple[float, float]
Polygon = list[Point]


@dataclass(frozen=True)
class Figure:
    """What an image shows.

    Attributes:
        outline: The area of the figure.
        hole: An area that is taken out of it, or None.
        pattern: Areas that have the figure's second colour as far as they are inside the outline.
    """

    outline: Polygon
    hole: Polygon | None = None
    pattern: tuple[Polygon, ...] = ()


def regular(corners: int, radius: float = 1.0, centre: Point = (0.0, 0.0)) -> Polygon:
    """Returns a regular polygon; one of many corners is a circle."""
    turns = [math.tau * corner / corners for corner in range(corners)]
    return [(centre[0] + radius * math.cos(turn), centre[1] + radius * math.sin(turn)) for turn in turns]


def star(points: int, inner: float) -> Polygon:
    """Returns a star whose inner corners are at a radius."""
    turns = [math.pi * corner / points for corner in range(2 * points)]
    radii = [inner if corner % 2 else 1.0 for corner in range(2 * points)]
    return [(radius * math.cos(turn), radius * math.sin(turn)) for radius, turn in zip(radii, turns, strict=True)]


def blob(random: Random) -> Polygon:
    """Returns a smooth outline without corners: a circle with a few random waves on it."""
    waves = [(count, uniform(random, 0.0, 0.07), uniform(random, 0.0, math.tau)) for count in (2, 3, 4)]
    outline = []
    for turn in [math.tau * corner / 64 for corner in range(64)]:
        radius = 0.79 + sum(height * math.cos(count * turn + phase) for count, height, phase in waves)
        outline.append((radius * math.cos(turn), radius * math.sin(turn)))
    return outline


def uniform(random: Random, low: float, high: float) -> float:
    """Draws a number between two; of ``Random``, only ``random`` is promised to give the same numbers for ever."""
    return low + (high - low) * random.random()


def _box(left: float, top: float, width: float, height: float) -> Polygon:
    return [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]


def _circle(random: Random) -> Figure:
    return Figure(regular(64, 0.9))


def _triangle(random: Random) -> Figure:
    return Figure(regular(3))


def _square(random: Random) -> Figure:
    return Figure(regular(4))


def _star(random: Random) -> Figure:
    return Figure(star(5, uniform(random, 0.36, 0.44)))


def _cross(random: Random) -> Figure:
    arm = uniform(random, 0.24, 0.32)
    quarter = [(0.94, -arm), (0.94, arm), (arm, arm)]
    turns: list[Callable[[Point], Point]] = [
        lambda point: point,
        lambda point: (-point[1], point[0]),
        lambda point: (-point[0], -point[1]),
        lambda point: (point[1], -point[0]),
    ]
    return Figure([turn(point) for turn in turns for point in quarter])


def _ring(random: Random) -> Figure:
    return Figure(regular(64, 0.95), hole=regular(64, uniform(random, 0.5, 0.62)))


def _crescent(random: Random) -> Figure:
    return Figure(regular(64, 0.95), hole=regular(64, 0.8, (uniform(random, 0.42, 0.52), 0.0)))


def _stripes(random: Random) -> Figure:
    period = uniform(random, 0.5, 0.66)
    start = -1.0 - uniform(random, 0.0, period)
    return Figure(blob(random), pattern=tuple(_box(start + n * period, -1, period / 2, 2) for n in range(6)))


def _checker(random: Random) -> Figure:
    side = uniform(random, 0.33, 0.42)
    left, top = -1.0 - uniform(random, 0.0, side), -1.0 - uniform(random, 0.0, side)
    cells = [(row, column) for row in range(8) for column in range(8) if (row + column) % 2]
    return Figure(
        blob(random), pattern=tuple(_box(left + column * side, top + row * side, side, side) for row, column in cells)
    )


def _dots(random: Random) -> Figure:
    period = uniform(random, 0.5, 0.62)
    left, top = -1.0 - uniform(random, 0.0, period), -1.0 - uniform(random, 0.0, period)
    centres = [(left + (column + row % 2 / 2) * period, top + row * period) for row in range(6) for column in range(6)]
    return Figure(blob(random), pattern=tuple(regular(16, 0.31 * period, centre) for centre in centres))


FIGURES: dict[str, Callable[[Random], Figure]] = {
    "checker": _checker,
    "circle": _circle,
    "crescent": _crescent,
    "cross": _cross,
    "dots": _dots,
    "ring": _ring,
    "square": _square,
    "star": _star,
    "stripes": _stripes,
    "triangle": _triangle,
}
"""What draws a figure of each class. Seven are told apart by shape; three are blobs told apart by texture."""
