"""What the rendered photographs of both image corpora share: colours, placement, clutter, light and noise."""

import math
from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from datamodules.synthetic.shapes import Point, Polygon, blob, uniform

OVERSAMPLING = 4
"""How many times larger a canvas is than its image: Pillow draws hard edges, which become soft where it is reduced."""
Color = tuple[int, int, int]


def draw_colors(random: Random) -> tuple[Color, Color, Color]:
    """Draws colours of background, figure and pattern: any, but each brighter than the one before.

    Which is brighter says nothing about the class, and a network that need not learn both ways round learns the shapes
    from fewer images.
    """
    chosen: list[Color] = []
    for low, high in ((15, 85), (115, 165), (200, 240)):
        while True:
            red, green, blue = (int(256 * random.random()) for _ in range(3))
            if low <= 0.299 * red + 0.587 * green + 0.114 * blue <= high:
                chosen.append((red, green, blue))
                break
    return chosen[0], chosen[1], chosen[2]


def draw_placement(random: Random, centre: Point, radius: float) -> Callable[[Polygon], Polygon]:
    """Draws rotation and stretch, and returns what takes a figure's frame to pixels."""
    turn = uniform(random, -0.5, 0.5)
    cosine, sine = radius * math.cos(turn), radius * math.sin(turn)
    narrow = uniform(random, 0.88, 1.0)

    def place(polygon: Polygon) -> Polygon:
        return [
            (centre[0] + cosine * x - sine * narrow * y, centre[1] + sine * x + cosine * narrow * y) for x, y in polygon
        ]

    return place


def add_clutter(canvas: Image.Image, random: Random, background: Color) -> None:
    """Draws some small blobs and thin lines in colours not far from the background's."""
    draw = ImageDraw.Draw(canvas)
    side = canvas.width
    for _ in range(2 + int(4 * random.random())):
        color = tuple(max(0, min(255, value + int(uniform(random, -60, 60)))) for value in background)
        x, y = uniform(random, 0, side), uniform(random, 0, side)
        if random.random() < 0.5:
            end = (uniform(random, 0, side), uniform(random, 0, side))
            draw.line([(x, y), end], fill=color, width=int(uniform(random, 0.01, 0.03) * side))
        else:
            draw.polygon(draw_placement(random, (x, y), uniform(random, 0.03, 0.09) * side)(blob(random)), fill=color)


def photograph(image: Image.Image, random: Random) -> Image.Image:
    """Lights an image from one side and adds a sensor's noise."""
    size = image.width
    turn, strength = uniform(random, 0.0, math.tau), uniform(random, 0.0, 0.35)
    across = np.linspace(-1.0, 1.0, size)
    light = 1.0 + strength * (math.cos(turn) * across[None, :] + math.sin(turn) * across[:, None])
    # Four bytes added up are close to a normal variable, of a standard deviation of 147.8.
    bytes_ = np.frombuffer(random.randbytes(4 * 3 * size * size), np.uint8).reshape(4, size, size, 3)
    noise = (bytes_.sum(axis=0, dtype=np.float64) - 510) * (uniform(random, 2.0, 10.0) / 147.8)
    return Image.fromarray((np.asarray(image) * light[:, :, None] + noise).clip(0, 255).astype(np.uint8))
