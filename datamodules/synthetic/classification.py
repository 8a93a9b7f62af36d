"""The built-in image corpus: photographs of shapes, for a first run without a download.

Ten classes are told apart by shape or texture. Colour, size, rotation, position, clutter, illumination and noise say
nothing about the class, so that a classifier of pixel values fails and one that has learnt shapes does not.

Run `python -m datamodules.synthetic.classification DIRECTORY` to write it.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from PIL import Image, ImageChops, ImageDraw

from datamodules.synthetic.corpus import write_whole
from datamodules.synthetic.photographs import OVERSAMPLING, Color, add_clutter, draw_colors, draw_placement, photograph
from datamodules.synthetic.shapes import FIGURES, Figure, Polygon, uniform

CLASS_NAMES = tuple(sorted(FIGURES))
GENERATOR_VERSION = 1
"""Whoever changes what an image looks like raises this: older copies of the corpus are then written anew."""


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
        ValueError: If a number is too small, `directory` is a file, or it holds files of somebody else.
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
    side = size * OVERSAMPLING
    background, first, second = draw_colors(random)
    canvas = Image.new("RGB", (side, side), background)
    add_clutter(canvas, random, background)
    radius = uniform(random, 0.26, 0.38) * side
    centre = (uniform(random, radius, side - radius), uniform(random, radius, side - radius))
    _add_figure(canvas, FIGURES[name](random), draw_placement(random, centre, radius), first, second)
    return photograph(canvas.reduce(OVERSAMPLING), random)


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
