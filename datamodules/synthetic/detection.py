"""The built-in detection corpus: scenes of shapes with a json in COCO's format, for a first run without a download.

An image holds one to eight figures of five classes that are told apart by shape, or none at all. Figures cover one
another in part, reach beyond the border, and lie among blobs and lines that belong to no class. Images differ in size
and aspect. Colour, size, rotation and position say nothing about the class.

A box is that of the whole outline as far as it lies inside the image, what other figures cover included; of every
figure a good half is seen. `area` counts the pixels that are seen. There are no crowds and no outlines in the json.

Run `python -m datamodules.synthetic.detection DIRECTORY` to write it.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from datamodules.synthetic.corpus import write_whole
from datamodules.synthetic.photographs import OVERSAMPLING, Color, add_clutter, draw_colors, draw_placement, photograph
from datamodules.synthetic.shapes import FIGURES, Figure, Polygon, uniform

CLASS_NAMES = ("cross", "ring", "square", "star", "triangle")
"""Category 1 of the json is the first, as COCO counts from 1."""
GENERATOR_VERSION = 1
"""Whoever changes what an image looks like raises this: older copies of the corpus are then written anew."""

_SIDES = (128, 256)  # pixels of an image's side
_MOST = 8  # figures of an image
_EMPTY = 0.04  # share of the images without any
_RADIUS = (0.09, 0.3)  # of a figure, as a share of the image's shorter side
_SEEN = 0.55  # share of each figure's area inside the image that no other covers
_INSIDE = 0.6  # share of each figure's box that lies inside the image
_TRIES = 20  # to place a figure, before the image goes without it

Mask = NDArray[np.bool_]


class Thing(NamedTuple):
    """A figure in an image.

    Attributes:
        label: Its place in ``CLASS_NAMES``.
        box: Left, top, width and height in pixels of its outline inside the image, what is covered included.
        area: Pixels of it that are seen.
    """

    label: int
    box: tuple[float, float, float, float]
    area: float


class _Placed(NamedTuple):
    """A figure with its place on the canvas: outline inside the image, area, pixels inside, and those that are seen."""

    label: int
    outline: Polygon
    stencil: Image.Image
    color: Color
    whole: int
    seen: Mask


def write_corpus(directory: Path, train: int = 2_000, validation: int = 400, seed: int = 0) -> None:
    """Writes the corpus as `train/*.jpg`, `val/*.jpg` and `annotations/instances_{train,val}.json`, unless it is there.

    Image n of a split depends on the seed, the split and n alone, and its bytes on the version of Pillow. `corpus.json`
    beside the splits says what wrote them: a corpus of other settings, or one that was not finished, is replaced as a
    whole.

    Args:
        directory: Where to write; made if it is missing.
        train: Number of training images, at least 1.
        validation: Number of validation images, as many at least.
        seed: Seed of the drawings, at least 0.

    Raises:
        ValueError: If a number is too small, `directory` is a file, or it holds files of somebody else.
        OSError: If the files cannot be written.
    """
    settings = {"generator": GENERATOR_VERSION, "seed": seed, "train": train, "validation": validation}
    splits = {"train": train, "val": validation}
    directory = Path(directory)

    def write(unfinished: Path) -> None:
        (unfinished / "annotations").mkdir()
        for split, count in splits.items():
            _write_split(unfinished, split, count, seed)

    write_whole(
        directory,
        settings,
        {"train": 1, "validation": 1, "seed": 0},
        (*splits, "annotations"),
        lambda: all(_is_whole(directory, split, count) for split, count in splits.items()),
        write,
    )


def _is_whole(directory: Path, split: str, count: int) -> bool:
    there = {path.name for path in (directory / split).glob("*")}
    return there == {_file_name(index) for index in range(count)} and _json_of(directory, split).is_file()


def _file_name(index: int) -> str:
    return f"{index:06d}.jpg"


def _json_of(directory: Path, split: str) -> Path:
    return directory / "annotations" / f"instances_{split}.json"


def _write_split(directory: Path, split: str, count: int, seed: int) -> None:
    (directory / split).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        image, things = render(Random(f"{seed}/{split}/{index}"))
        image.save(directory / split / _file_name(index), quality=90)
        images.append({"id": index + 1, "file_name": _file_name(index), "width": image.width, "height": image.height})
        annotations += [
            {
                "id": len(annotations) + number,
                "image_id": index + 1,
                "category_id": thing.label + 1,
                "bbox": list(thing.box),
                "area": thing.area,
                "iscrowd": 0,
            }
            for number, thing in enumerate(things, start=1)
        ]
    content = {
        "info": {"description": f"built-in detection corpus, generator {GENERATOR_VERSION}, seed {seed}, {split}"},
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, "supercategory": "shape"} for number, name in enumerate(CLASS_NAMES, start=1)
        ],
    }
    _json_of(directory, split).write_text(json.dumps(content) + "\n", encoding="utf-8")


def render(random: Random) -> tuple[Image.Image, list[Thing]]:
    """Draws one image.

    Args:
        random: What everything is drawn from.

    Returns:
        An RGB image, and the figures in it, those in front last.
    """
    width, height = (int(uniform(random, _SIDES[0], _SIDES[1] + 1)) for _ in range(2))
    side = max(width, height) * OVERSAMPLING
    background, _, _ = draw_colors(random)
    # A square, of which the image is the upper left part.
    canvas = Image.new("RGB", (side, side), background)
    add_clutter(canvas, random, background)
    count = 0 if random.random() < _EMPTY else 1 + int(_MOST * random.random())
    placed: list[_Placed] = []
    for _ in range(count):
        for _ in range(_TRIES):
            if (figure := _place(random, width * OVERSAMPLING, height * OVERSAMPLING)) is None:
                continue
            left = [other.seen & ~figure.seen for other in placed]
            if all(seen.sum() >= _SEEN * other.whole for seen, other in zip(left, placed, strict=True)):
                placed = [other._replace(seen=seen) for other, seen in zip(placed, left, strict=True)] + [figure]
                break
    for figure in placed:
        canvas.paste(figure.color, mask=figure.stencil)
    image = photograph(canvas.reduce(OVERSAMPLING), random).crop((0, 0, width, height))
    return image, [_thing(figure) for figure in placed]


def _place(random: Random, width: int, height: int) -> _Placed | None:
    """Draws a figure and where it stands on a canvas; None if too much of it would lie outside."""
    label = int(len(CLASS_NAMES) * random.random())
    figure: Figure = FIGURES[CLASS_NAMES[label]](random)
    color = draw_colors(random)[1 + int(2 * random.random())]
    low, high = (math.log(share * min(width, height)) for share in _RADIUS)
    radius = math.exp(uniform(random, low, high))
    place = draw_placement(random, (uniform(random, 0, width), uniform(random, 0, height)), radius)
    outline = place(figure.outline)
    side = max(width, height)
    stencil = Image.new("L", (side, side))
    draw = ImageDraw.Draw(stencil)
    draw.polygon(outline, fill=255)
    if figure.hole is not None:
        draw.polygon(place(figure.hole), fill=0)
    inside = _clip(outline, width, height)
    if not inside or _extent(inside) < _INSIDE * _extent(outline):
        return None
    seen = np.asarray(stencil)[:height, :width] > 0
    return _Placed(label, inside, stencil, color, int(seen.sum()), seen)


def _extent(polygon: Polygon) -> float:
    """Returns the area of a polygon's box."""
    columns, rows = zip(*polygon, strict=True)
    return (max(columns) - min(columns)) * (max(rows) - min(rows))


def _clip(polygon: Polygon, width: float, height: float) -> Polygon:
    """Cuts off what of a polygon lies outside the image, side by side; empty if nothing is left."""
    for axis, sign, limit in ((0, 1, 0.0), (0, -1, -width), (1, 1, 0.0), (1, -1, -height)):
        inside = [sign * point[axis] - limit for point in polygon]
        clipped: Polygon = []
        for number, (point, depth) in enumerate(zip(polygon, inside, strict=True)):
            before, outside = polygon[number - 1], inside[number - 1]
            if (depth < 0) != (outside < 0):
                share = outside / (outside - depth)
                crossing = [start + share * (end - start) for start, end in zip(before, point, strict=True)]
                crossing[axis] = sign * limit
                clipped.append((crossing[0], crossing[1]))
            if depth >= 0:
                clipped.append(point)
        polygon = clipped
    return polygon


def _thing(figure: _Placed) -> Thing:
    columns, rows = zip(*figure.outline, strict=True)
    left, top, right, bottom = (
        round(corner / OVERSAMPLING, 2) for corner in (min(columns), min(rows), max(columns), max(rows))
    )
    box = (left, top, round(right - left, 2), round(bottom - top, 2))
    return Thing(figure.label, box, round(float(figure.seen.sum()) / OVERSAMPLING**2, 2))


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the corpus from the command line.

    Args:
        argv: Arguments; those of the process if not given.

    Returns:
        Exit code: 0, or 2 after a message that says what was wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.synthetic.detection",
        description="Writes the built-in detection corpus.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("directory", type=Path, help="where to write train/, val/ and annotations/")
    parser.add_argument("--train", type=int, default=2_000, help="number of training images")
    parser.add_argument("--validation", type=int, default=400, help="number of validation images")
    parser.add_argument("--seed", type=int, default=0, help="seed of the drawings")
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
