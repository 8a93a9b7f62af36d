"""``python -m experiments detect``: the objects in images, by a checkpoint of this project or public weights.

    python -m experiments detect --checkpoint runs/my_run photo.jpg
    python -m experiments detect --checkpoint detr-r50-e632da11.pth photos/ --output found --threshold 0.5

The directory of ``--output`` holds then

- ``detections.json``: a list in COCO's result format, best first within an image: ``image_id``, ``category_id``,
  ``bbox`` (left, top, width, height in pixels of the image as it is) and ``score``. Without ``--threshold`` all queries
  are there, as average precision needs them.
- ``images.json``: ``id``, ``file_name``, ``width`` and ``height`` of each image. An id is the number that is the file's
  name, as COCO has it (000000039769.jpg is 39769, and so is COCO_val2014_000000039769.jpg). If the name of one file is
  no such number, or two have the same, all images are numbered from 1 instead.
- ``categories.json``: ``id`` and ``name`` of the classes.
- a picture for each image, with boxes of ``--threshold`` (0.7 of a softmax, 0.3 of sigmoids, if it is not given).

An image that cannot be read is named on standard error, the others go on, and the exit code is 2.
"""

import argparse
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from experiments.checkpoint_path import DEVICES
from experiments.classifier import find_weights
from experiments.classify import Failures, images_in, printable
from experiments.command import CommandParser, run
from experiments.detector import THRESHOLDS, ObjectDetector, Photo, add_size_options, check_threshold
from experiments.errors import UsageError
from experiments.line_io import open_output
from lit_models.detection.postprocess import Detections, coco_results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST_SIDE = 8.0
"""Of a picture, in inches, so that what is written can be read whatever the image's size."""
_COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d+_)?(\d+)")
_NAMED_OBJECTS = 8


def build_parser() -> CommandParser:
    """Return the parser of the command's options."""
    parser = CommandParser("python -m experiments detect", "Find the objects in images with a checkpoint.")
    add = parser.add_argument
    add("images", nargs="+", metavar="image", help="image file, or directory whose images are taken")
    add("--checkpoint", required=True,
        help="checkpoint file, a run's directory (its best, else its last), or public weights of a DETR")  # fmt: skip
    add("--threshold", type=float, metavar="SCORE",
        help="least score of a detection (default: of pictures 0.7, 0.3 of sigmoids; of the JSON none)")  # fmt: skip
    add("--output", default="detections", metavar="DIR", help="directory of the JSON and the pictures")
    add("--no-pictures", action="store_true", help="write the JSON alone")
    add_size_options(parser)
    add("--dilation", action=argparse.BooleanOptionalAction,
        help="public weights are DC5 (default: by the config beside the file, else by its name)")  # fmt: skip
    add("--num-heads", type=int, metavar="N", help="attention heads of public weights, where nothing tells them")
    add("--batch-size", type=int, default=1, metavar="N",
        help="images that go through the network together; padding changes scores a little")  # fmt: skip
    add("--device", choices=DEVICES, default="auto", help="where to compute")
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Check what can be checked before the checkpoint is loaded.

    Raises:
        UsageError: A value is out of its range.
    """
    check_threshold(options.threshold)
    if options.batch_size < 1:
        raise UsageError(f"--batch-size {options.batch_size}: it must be at least 1")
    existing = next(
        parent for parent in (Path(options.output), *Path(options.output).absolute().parents) if parent.exists()
    )
    if not existing.is_dir():
        raise UsageError(f'--output "{options.output}": "{existing}" is a file, not a directory')


def image_ids(paths: Sequence[str]) -> tuple[list[int], str | None]:
    """Return a number for each image, by the rule above, and why the names are not taken, if they are not."""
    found = [_COCO_NAME.fullmatch(Path(path).stem) for path in paths]
    numbers = [int(match[1]) for match in found if match is not None]
    if len(numbers) == len(paths) == len(set(numbers)):
        return numbers, None
    reason = (
        "two images have the same number as their name"
        if len(numbers) == len(paths)
        else f"the name {printable(Path(paths[found.index(None)]).name)} is no number"
    )
    return list(range(1, len(paths) + 1)), f"images are numbered from 1, see images.json: {reason}"


def above(found: Detections, threshold: float) -> Detections:
    """Return the detections of at least a score."""
    kept = found.scores >= threshold
    return Detections(*(part[kept] for part in found))


def draw(image: Image.Image, found: Detections, class_names: Sequence[str]) -> "Figure":
    """Draw boxes with class and score over an image that fills the figure."""
    from matplotlib.figure import Figure
    from torchvision.transforms.functional import pil_to_tensor

    from experiments.object_plot import Mark, draw_marks

    scale = _LONGEST_SIDE / max(image.size)
    figure = Figure(figsize=(scale * image.width, scale * image.height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.imshow(image, aspect="auto")
    rows = zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
    marks = [Mark(box, label, f"{class_names[label]} {score:.0%}") for box, label, score in rows]
    draw_marks(axes, pil_to_tensor(image), marks[::-1])  # the best on top
    return figure


def picture_files(paths: Sequence[str], directory: Path) -> list[Path]:
    """Return a file for each image's picture: images of one name in several directories get numbers."""
    taken: dict[str, int] = {}
    files = []
    for path in paths:
        stem = Path(path).stem
        taken[stem] = taken.get(stem, 0) + 1
        files.append(directory / (f"{stem}.jpg" if taken[stem] == 1 else f"{stem}_{taken[stem]}.jpg"))
    return files


def table_row(path: str, found: Detections, class_names: Sequence[str]) -> str:
    """Return the lines of one image for people: its objects, best first."""
    lines = [f"{printable(path)}: {len(found.scores)} object{'' if len(found.scores) == 1 else 's'}"]
    rows = zip(found.scores.tolist(), found.labels.tolist(), found.boxes.tolist(), strict=True)
    for score, label, box in list(rows)[:_NAMED_OBJECTS]:
        left, top, right, bottom = (round(side) for side in box)
        lines.append(f"{score:9.1%}  {class_names[label]}  ({left}, {top}) to ({right}, {bottom})")
    if len(found.scores) > _NAMED_OBJECTS:
        lines.append(f"{'':11}and {len(found.scores) - _NAMED_OBJECTS} more")
    return "\n".join(lines)


def detect(
    detector: ObjectDetector, paths: Sequence[str], batch_size: int, failures: Failures
) -> Iterator[tuple[int, Photo, Detections]]:
    """Yield the place, the image and all detections of each image that can be read, in order."""

    def read(path: str) -> Photo | Exception:
        try:
            return detector.read(path)
        except (OSError, ValueError) as error:
            return error

    with ThreadPoolExecutor(min(batch_size, os.cpu_count() or 1)) as pool:
        for first in range(0, len(paths), batch_size):
            batch = paths[first : first + batch_size]
            photos = {}
            for place, photo in enumerate(pool.map(read, batch), start=first):
                if isinstance(photo, Exception):
                    failures.add(paths[place], photo)
                else:
                    photos[place] = photo
            if photos:
                found = detector.detect(list(photos.values()))
                yield from zip(photos, photos.values(), found, strict=True)


def _command(argv: list[str]) -> None:
    options = build_parser().parse_args(argv)
    check_options(options)
    path, failures = find_weights(options.checkpoint), Failures()
    public = {name: getattr(options, name) for name in ("dilation", "num_heads")}
    detector = ObjectDetector.load(
        path, options.device, public, image_size=options.image_size, max_size=options.max_size
    )
    paths = [
        image for given in options.images for image in (images_in(given, failures) if Path(given).is_dir() else [given])
    ]
    directory = Path(options.output)
    directory.mkdir(parents=True, exist_ok=True)
    ids, notice = image_ids(paths)
    files = picture_files(paths, directory)
    shown = THRESHOLDS[detector.classification] if options.threshold is None else options.threshold
    results: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for place, photo, found in detect(detector, paths, options.batch_size, failures):
        kept = found if options.threshold is None else above(found, options.threshold)
        results += coco_results(ids[place], kept, detector.category_ids)
        height, width = photo.original_size
        images.append({"id": ids[place], "file_name": printable(paths[place]), "width": width, "height": height})
        found = above(found, shown)
        print(table_row(paths[place], found, detector.class_names), flush=True)
        if not options.no_pictures:
            from experiments.attention_plot import save

            save(draw(photo.image, found, detector.class_names), files[place])
    if images:
        categories = [
            {"id": number, "name": name}
            for number, name in zip(detector.category_ids, detector.class_names, strict=True)
        ]
        for name, rows in (("detections", results), ("images", images), ("categories", categories)):
            with open_output(str(directory / f"{name}.json")) as output:
                output.write("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")
        print(f"{directory / 'detections.json'}: {len(results)} detections in {len(images)} images")
        if notice:
            print(f"note: {notice}")
    if failures.count:
        raise UsageError(f"{failures.count} could not be read (named above), {len(images)} searched")


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: The words after ``detect``.

    Returns:
        The exit code.
    """
    return run(_command, argv)
