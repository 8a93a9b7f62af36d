"""``python -m experiments classify``: what images show, by a checkpoint of this project or public weights.

    python -m experiments classify --checkpoint runs/my_run photo.jpg
    python -m experiments classify --checkpoint deit_small_patch16_224-cd65a155.pth photos/ --top 1
    find photos -name '*.png' | python -m experiments classify --checkpoint X --json - > predictions.jsonl

An image that cannot be read is named on standard error, the others go on, and the exit code is 2.

The fields of a JSON line: ``image`` (the path as given) and ``predictions``, most probable first, each with ``class``,
``index`` (its number, counted from 0) and ``probability``.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from datamodules.image.decode import SUFFIXES
from experiments.checkpoint_path import DEVICES
from experiments.classifier import ImageClassifier, add_preprocessing_options, check_preprocessing_options, find_weights
from experiments.command import CommandParser, run
from experiments.errors import UsageError
from experiments.line_io import open_output, read_chunks


def build_parser() -> CommandParser:
    """Return the parser of the command's options."""
    parser = CommandParser("python -m experiments classify", "Tell the classes of images with a checkpoint.")
    add = parser.add_argument
    add("images", nargs="+", metavar="image",
        help="image file, directory whose images are taken, or - for paths on standard input")  # fmt: skip
    add("--checkpoint", required=True,
        help="checkpoint file, the directory of a run (its best, else its last), or public weights")  # fmt: skip
    add("--top", type=int, default=5, metavar="K", help="classes to tell of each image")
    add("--json", action="store_true", help="one JSON object for each image")
    add("--output", help="file to write, complete or not at all; standard output if not given")
    add_preprocessing_options(parser)
    add("--window-size", type=int, metavar="PATCHES",
        help="side of public Swin weights' windows: V1's are resized, V2's told where the file is silent")  # fmt: skip
    add("--head-rows", metavar="FILE",
        help="rows of the head of public weights to keep, such as Microsoft's map22kto1k.txt")  # fmt: skip
    add("--batch-size", type=int, default=32, metavar="N", help="images that go through the network together")
    add("--device", choices=DEVICES, default="auto", help="where to compute")
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Check what can be checked before the checkpoint is loaded.

    Raises:
        UsageError: A value is out of its range.
    """
    for name in ("top", "batch_size"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(options, name)}: it must be at least 1")
    if options.images.count("-") > 1:
        raise UsageError("- is given twice; standard input can be read once")
    if options.window_size is not None and options.window_size < 1:
        raise UsageError(f"--window-size {options.window_size}: it must be at least 1")
    check_preprocessing_options(options)


class Failures:
    """Names what could not be read on standard error, and counts it."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, path: str, error: Exception | str) -> None:
        """Tell of one file or directory."""
        self.count += 1
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        # Many a reason names the file itself.
        print(f"error: {reason if printable(path) in reason else f'{printable(path)}: {reason}'}", file=sys.stderr)


def batches_of_paths(arguments: list[str], size: int, failures: Failures) -> Iterator[list[str]]:
    """Yield the paths of the images in batches, in order; those of standard input as they arrive."""
    waiting: list[str] = []
    for argument in arguments:
        if argument == "-":
            if waiting:
                yield waiting
            waiting = []
            for lines in read_chunks(sys.stdin.buffer, "standard input", size):
                yield [line for line in lines if line.strip()]
            continue
        waiting += images_in(argument, failures) if Path(argument).is_dir() else [argument]
        full = len(waiting) - len(waiting) % size
        for first in range(0, full, size):
            yield waiting[first : first + size]
        waiting = waiting[full:]
    if waiting:
        yield waiting


def images_in(directory: str, failures: Failures) -> list[str]:
    """Return the images in a directory and those below it, sorted by path; a file named itself may have any suffix."""
    found = sorted(str(path) for path in Path(directory).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        failures.add(directory, f"there is no image in this directory (looked for {', '.join(SUFFIXES)})")
    return found


def classify(classifier: ImageClassifier, options: argparse.Namespace, failures: Failures) -> Iterator[str]:
    """Yield what to write of each image that can be read, in order."""

    def read(path: str) -> Tensor | Exception:
        try:
            return classifier.read(path)
        except (OSError, ValueError) as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for paths in batches_of_paths(options.images, options.batch_size, failures):
            images, readable = [], []
            for path, image in zip(paths, pool.map(read, paths), strict=True):
                if isinstance(image, Exception):
                    failures.add(path, image)
                else:
                    images.append(image)
                    readable.append(path)
            if not images:
                continue
            top = classifier.probabilities(torch.stack(images)).topk(min(options.top, len(classifier.class_names)))
            for path, values, numbers in zip(readable, top.values.tolist(), top.indices.tolist(), strict=True):
                names = [classifier.class_names[number] for number in numbers]
                yield as_json(path, names, numbers, values) if options.json else as_text(path, names, values)


def as_text(path: str, names: list[str], probabilities: list[float]) -> str:
    """Return the lines of one image for people."""
    rows = [f"{probability:9.2%}  {name}" for name, probability in zip(names, probabilities, strict=True)]
    return "\n".join([printable(path), *rows])


def as_json(path: str, names: list[str], numbers: list[int], probabilities: list[float]) -> str:
    """Return the line of one image for machines."""
    predictions = [
        {"class": name, "index": number, "probability": probability}
        for name, number, probability in zip(names, numbers, probabilities, strict=True)
    ]
    return json.dumps({"image": printable(path), "predictions": predictions}, ensure_ascii=False)


def printable(path: str) -> str:
    """Return a path whose bytes may be no UTF-8 as text that can be written."""
    return os.fsencode(path).decode("utf-8", "replace")


def _command(argv: list[str]) -> None:
    options = build_parser().parse_args(argv)
    check_options(options)
    path = find_weights(options.checkpoint)
    changes = {name: getattr(options, name) for name in ("image_size", "crop", "crop_mode")}
    public = {name: getattr(options, name) for name in ("window_size", "head_rows")}
    classifier = ImageClassifier.load(path, options.device, public, **changes)
    failures, classified = Failures(), 0
    with open_output(options.output) as output:
        for result in classify(classifier, options, failures):
            output.write(f"{result}\n")
            output.flush()
            classified += 1
    if failures.count:
        raise UsageError(f"{failures.count} could not be read (named above), {classified} classified")
    if not classified:
        raise UsageError("standard input is empty: there is no image to classify")


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: The words after ``classify``.

    Returns:
        The exit code.
    """
    return run(_command, argv)
