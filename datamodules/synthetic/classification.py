"""The built-in image corpus: photographs of shapes, for a first run without a download.

Ten classes are told apart by shape or texture. Colour, size, rotation, position, clutter, illumination and noise say
nothing about the class, so that a classifier of pixel values fails and one that has learnt shapes does not.

Run `python -m datamodules.synthetic.classification DIRECTORY` to write it.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from datamodules.synthetic.corpus import write_whole
from datamodules.synthetic.shapes import FIGURES, Figure, Point, Polygon, blob, uniform

CLASS_NAMES = tuple(sorted(FIGURES))
GENERATOR_VERSION = 1
"""Whoever changes what an image looks like raises this: older copies of the corpus are then written anew."""

_OVERSAMPLING = 4  # Pillow draws hard edges: they become soft where the image is reduced

Color = tuple[int, int, int]


def write_corpus(directory: Path, train: int = 5_000, validation: int = 1_000, seed: int = 0, size: int = 64) -> None:
    """Writes the corpus as `train/<class>/*.jpg` and `val/<class>/*.jpg`, unless it is there.

    Classes have the same number of images in a split, or differ by one. Image n of a split depends on the seed, the
    split, n and the size alone, and its bytes on the version of Pillow. `corpus.json` beside the splits says what wrote
    them: a corpus of other settings, or one that was not finished, is replaced as a whole.

    Args:
        directory: Where to write; made if it is missing.
        train: Number of training images, at least one for each of the ten classes.
        validation: Number of validation images, as many at least.
        seed: Seed of the drawings, at least 0.
        size: Side of an image in pixels, at least 16.

    Raises:
        ValueError: If a number is too small, `directory` is a file, or it holds a `train` or `val` of somebody else.
        OSError: If the files cannot be written.
    """
    settings = {"generator": GENERATOR_VERSION, "seed": seed, "train": train, "validation": validation, "size": size}
    splits = {"train": train, "val": validation}
    directory = Path(directory)

    def write(unfinished: Path) -> None:
        for split, count in splits.items():
            _write_split(unfinished / split, split, count, seed, size)

    write_whole(
        directory,
        settings,
        {"train": len(FIGURES), "validation": len(FIGURES), "seed": 0, "size": 16},
        tuple(splits),
        lambda: all(_is_whole(directory / split, count) for split, count in splits.items()),
        write,
    )


def _is_whole(directory: Path, count: int) -> bool:
    there = {path.relative_to(directory).as_posix() for path in directory.glob("*/*")}
    return there == {_file_name(index) for index in range(count)}


def _file_name(index: int) -> str:
    label = index % len(CLASS_NAMES)
    return f"{CLASS_NAMES[label]}/{index // len(CLASS_NAMES):05d}.jpg"


def _write_split(directory: Path, split: str, count: int, seed: int, size: int) -> None:
    for name in CLASS_NAMES:
        (directory / name).mkdir(parents=True)
    for index in range(count):
        random = Random(f"{seed}/{split}/{index}")
        image = render(CLASS_NAMES[index % len(CLASS_NAMES)], random, size)
        image.save(directory / _file_name(index), quality=90)


def render(name: str, random: Random, size: int = 64) -> Image.Image:
    """Draws one image.

    Args:
        name: One of `CLASS_NAMES`.
        random: What everything is drawn from.
        size: Side of the image in pixels.

    Returns:
        An RGB image.
    """
    side = size * _OVERSAMPLING
    background, first, second = _colors(random)
    canvas = Image.new("RGB", (side, side), background)
    _add_clutter(canvas, random, background)
    radius = uniform(random, 0.26, 0.38) * side
    centre = (uniform(random, radius, side - radius), uniform(random, radius, side - radius))
    _add_figure(canvas, FIGURES[name](random), _placement(random, centre, radius), first, second)
    return _photograph(canvas.reduce(_OVERSAMPLING), random)


def _colors(random: Random) -> tuple[Color, Color, Color]:
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


def _placement(random: Random, centre: Point, radius: float) -> Callable[[Polygon], Polygon]:
    """Draws rotation and stretch, and returns what takes a figure's frame to pixels."""
    turn = uniform(random, -0.5, 0.5)
    cosine, sine = radius * math.cos(turn), radius * math.sin(turn)
    narrow = uniform(random, 0.88, 1.0)

    def place(polygon: Polygon) -> Polygon:
        return [
            (centre[0] + cosine * x - sine * narrow * y, centre[1] + sine * x + cosine * narrow * y) for x, y in polygon
        ]

    return place


def _add_clutter(canvas: Image.Image, random: Random, background: Color) -> None:
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
            draw.polygon(_placement(random, (x, y), uniform(random, 0.03, 0.09) * side)(blob(random)), fill=color)


def _add_figure(
    canvas: Image.Image, figure: Figure, place: Callable[[Polygon], Polygon], first: Color, second: Color
) -> None:
    area = Image.new("L", canvas.size)
    draw = ImageDraw.Draw(area)
    draw.polygon(place(figure.outline), fill=255)
    if figure.hole is not None:
        draw.polygon(place(figure.hole), fill=0)
    canvas.paste(first, mask=area)
    if figure.pattern:
        pattern = Image.new("L", canvas.size)
        draw = ImageDraw.Draw(pattern)
        for polygon in figure.pattern:
            draw.polygon(place(polygon), fill=255)
        canvas.paste(second, mask=ImageChops.darker(area, pattern))


def _photograph(image: Image.Image, random: Random) -> Image.Image:
    """Lights an image from one side and adds a sensor's noise."""
    size = image.width
    turn, strength = uniform(random, 0.0, math.tau), uniform(random, 0.0, 0.35)
    across = np.linspace(-1.0, 1.0, size)
    light = 1.0 + strength * (math.cos(turn) * across[None, :] + math.sin(turn) * across[:, None])
    # Four bytes added up are close to a normal variable, of a standard deviation of 147.8.
    bytes_ = np.frombuffer(random.randbytes(4 * 3 * size * size), np.uint8).reshape(4, size, size, 3)
    noise = (bytes_.sum(axis=0, dtype=np.float64) - 510) * (uniform(random, 2.0, 10.0) / 147.8)
    return Image.fromarray((np.asarray(image) * light[:, :, None] + noise).clip(0, 255).astype(np.uint8))


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the corpus from the command line.

    Args:
        argv: Arguments; those of the process if not given.

    Returns:
        Exit code: 0, or 2 after a message that says what was wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.synthetic.classification",
        description="Writes the built-in image corpus.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("directory", type=Path, help="where to write train/<class>/*.jpg and val/<class>/*.jpg")
    parser.add_argument("--train", type=int, default=5_000, help="number of training images")
    parser.add_argument("--validation", type=int, default=1_000, help="number of validation images")
    parser.add_argument("--seed", type=int, default=0, help="seed of the drawings")
    parser.add_argument("--size", type=int, default=64, help="side of an image in pixels")
    arguments = parser.parse_args(argv)
    try:
        write_corpus(**vars(arguments))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.directory} holds {arguments.train:,} + {arguments.validation:,} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
