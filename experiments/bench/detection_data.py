"""DETR's training pipeline beside the official transform, in one process on one thread: images per second of a core.

Files are read, decoded, mirrored, resized or resized, cropped and resized again, and padded to batches, with their
boxes. The official transform is written here from its description (Carion et al. 2020, appendix A.4) on torchvision's
functions of Pillow's images; it ends with normalised float32 and a mask. This project's workers end with uint8, and the
device normalises. That is part "workers"; in part "normalised" our batches are normalised on the host as well.
``useful_pixels`` is the share of a batch's pixels that is not padding.
"""

import contextlib
import io
import random
import statistics
from argparse import Namespace
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import CocoDetection
from torchvision.transforms import functional

from datamodules import COCODataModule
from datamodules.image.detection_geometry import TrainingGeometry
from datamodules.image.evaluation import IMAGENET_MEAN, IMAGENET_STD
from experiments.bench.record import record
from experiments.bench.side_by_side import add_options, compare, positive, prepare, print_rows, take_turns
from experiments.command import CommandParser, run

PARTS = ("workers", "normalised")
# What our datamodule is told; the first is what the others are compared with.
PROVIDERS: dict[str, dict[str, Any]] = {
    "heddle-fast": {"fast": True},
    "heddle-fast-grouped": {"fast": True, "aspect_groups": 3, "one_scale": True},
    "heddle-exact": {},
}


def main(argv: list[str]) -> int:
    """Measure, print and record."""
    return run(_main, argv)


def _main(argv: list[str]) -> None:
    options = _parser().parse_args(argv)
    prepare(options, threads=1)
    random.seed(options.seed)
    rows = []
    for part in options.parts:
        passes = make_passes(options, part)
        times = take_turns(passes, options.rounds)
        rows += [
            {
                "data": options.data.name,
                "images": passes[provider].images,
                "batch_size": options.batch_size,
                "part": part,
                "provider": provider,
                "images_per_second": round(passes[provider].images / statistics.median(taken.wall), 2),
                "images_per_cpu_second": round(passes[provider].images / statistics.median(taken.cpu), 2),
                "useful_pixels": round(passes[provider].useful_pixels, 3),
                **compare(taken, times["heddle-fast"]),
            }
            for provider, taken in times.items()
        ]
    print_rows(rows)
    if options.record:
        print(record("detection_data", rows, ("torch", "torchvision", "pillow")))


def _parser() -> CommandParser:
    parser = CommandParser("python -m experiments bench detection_data", __doc__ or "")
    parser.add_argument("--data", type=Path, default=Path("data/coco_tiny"), help="directory laid out as COCO 2017")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="some of the parts")
    parser.add_argument("--batch-size", type=positive, default=16, help="images of a batch")
    add_options(parser, rounds=5)
    return parser


class Pass:
    """Reads all training images once whenever it is called, and counts pixels.

    Args:
        epochs: Returns the padded images and the (height, width) of those in them, batch by batch, of another epoch.
        images: Images of an epoch.
    """

    def __init__(self, epochs: Callable[[], Iterator[tuple[Tensor, list[tuple[int, int]]]]], images: int) -> None:
        self._epochs, self.images = epochs, images
        self._useful = self._padded = 0

    def __call__(self) -> None:
        """Read an epoch."""
        for images, sizes in self._epochs():
            self._padded += images[:, 0].numel()
            self._useful += sum(height * width for height, width in sizes)

    @property
    def useful_pixels(self) -> float:
        """Share of pixels outside the padding, of all epochs so far."""
        return self._useful / self._padded


def make_passes(options: Namespace, part: str) -> dict[str, Pass]:
    """Return each provider's pass over the training images; every one draws anew."""
    passes: dict[str, Pass] = {}
    for provider, settings in PROVIDERS.items():
        data = COCODataModule(
            str(options.data), batch_size=options.batch_size, degenerate="drop", seed=options.seed, **settings
        )
        data.setup("fit")
        images = data.steps_per_epoch * options.batch_size
        passes[provider] = Pass(_our_epochs(data, normalised=part == "normalised"), images)
    annotations = options.data / "annotations" / f"instances_{data.images['train']}.json"
    with contextlib.redirect_stdout(io.StringIO()):
        source = CocoDetection(options.data / data.images["train"], annotations)
    return {**passes, "official": Pass(_official_epochs(source, options.batch_size, images, options.seed), images)}


def _our_epochs(data: COCODataModule, *, normalised: bool) -> Callable[[], Iterator[tuple[Tensor, Any]]]:
    loader = data.train_dataloader()

    def epoch() -> Iterator[tuple[Tensor, Any]]:
        for batch in loader:
            yield (data.on_after_batch_transfer(batch, 0) if normalised else batch).images, batch.sizes

    return epoch


def _official_epochs(
    source: CocoDetection, batch_size: int, images: int, seed: int
) -> Callable[[], Iterator[tuple[Tensor, Any]]]:
    epochs = count()

    def epoch() -> Iterator[tuple[Tensor, Any]]:
        order = np.random.default_rng((seed, next(epochs))).permutation(len(source))[:images].tolist()
        for first in range(0, images, batch_size):
            examples = [official_example(*source[index]) for index in order[first : first + batch_size]]
            padded, _ = pad([pixels for pixels, _ in examples])
            yield padded, [tuple(pixels.shape[1:]) for pixels, _ in examples]

    return epoch


def official_example(image: Image.Image, annotations: list[dict[str, Any]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Transform an image with its objects as DETR's training does.

    Args:
        image: The image, RGB.
        annotations: Its objects, as COCO's json has them.

    Returns:
        Normalised pixels (3, height, width) float32, and ``boxes`` (objects, 4) as (centre x, centre y, width, height)
        in shares of the image with their ``labels``.
    """
    objects = [found for found in annotations if not found.get("iscrowd")]
    boxes = torch.as_tensor([found["bbox"] for found in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, 0::2].clamp_(min=0, max=image.width)
    boxes[:, 1::2].clamp_(min=0, max=image.height)
    labels = torch.tensor([found["category_id"] for found in objects])
    kept = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
    boxes, labels = boxes[kept], labels[kept]
    if random.random() < 0.5:
        image = functional.hflip(image)
        boxes = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([image.width, 0, image.width, 0])
    recipe = TrainingGeometry()
    if random.random() < 0.5:
        image, boxes = _resize(image, boxes, random.choice(recipe.crop_from), None)
        image, boxes, labels = _cut(image, boxes, labels, *recipe.crop_sides)
    image, boxes = _resize(image, boxes, random.choice(recipe.sizes), recipe.max_size)
    pixels = functional.normalize(functional.to_tensor(image), list(IMAGENET_MEAN), list(IMAGENET_STD))
    centres = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), dim=1)
    shares = centres / torch.tensor([image.width, image.height] * 2)
    return pixels, {"boxes": shares, "labels": labels}


def _resize(image: Image.Image, boxes: Tensor, shorter: int, max_size: int | None) -> tuple[Image.Image, Tensor]:
    least, most = sorted(image.size)
    if max_size is not None and most / least * shorter > max_size:
        shorter = round(max_size * least / most)
    longer = int(shorter * most / least)
    width, height = (shorter, longer) if image.width == least else (longer, shorter)
    resized = functional.resize(image, [height, width])
    return resized, boxes * torch.tensor([width / image.width, height / image.height] * 2)


def _cut(
    image: Image.Image, boxes: Tensor, labels: Tensor, least: int, most: int
) -> tuple[Image.Image, Tensor, Tensor]:
    # The lower bound is cut too, where the official code cannot go on: images shorter than that.
    width, height = (random.randint(min(least, side), min(side, most)) for side in image.size)
    top, left = random.randint(0, image.height - height), random.randint(0, image.width - width)
    boxes = boxes - torch.tensor([left, top, left, top])
    boxes = torch.stack((boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)), dim=2).flatten(1)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return functional.crop(image, top, left, height, width), boxes[kept], labels[kept]


def pad(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return images (3, height, width) in one batch with zeros around them, and a mask that is True there."""
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    batch, mask = torch.zeros(len(images), 3, height, width), torch.ones(len(images), height, width, dtype=torch.bool)
    for row, inside, image in zip(batch, mask, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]].copy_(image)
        inside[: image.shape[1], : image.shape[2]] = False
    return batch, mask
