"""An object detector made ready for use: a checkpoint of this project or public weights, and the steps before it."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.image.decode import EncodedImage
from datamodules.image.detection_geometry import EvaluationGeometry
from datamodules.image.evaluation import IMAGENET_MEAN, IMAGENET_STD
from datamodules.image.normalization import normalize
from experiments.checkpoint_path import choose_device
from experiments.classifier import COMMAND_OF, checkpoint_task
from experiments.command import CommandParser
from experiments.errors import UsageError
from lit_models.detection.boxes import cxcywh_to_xyxy
from lit_models.detection.checkpoint import classification_of, load_checkpoint
from lit_models.detection.detr import DETR, AttentionMaps
from lit_models.detection.matcher import Classification
from lit_models.detection.network import Detector
from lit_models.detection.postprocess import Detections, detections
from lit_models.pretrained.detr import SIZES, load_pretrained_detector

TASK = "detection"
# What DETR's authors draw; a sigmoid of the successors is less sure of what it finds.
THRESHOLDS: Mapping[Classification, float] = {"softmax": 0.7, "focal": 0.3}
"""Least score of a detection that is shown, by what reads the logits."""


def add_size_options(parser: CommandParser) -> None:
    """Add the options that change how an image is resized."""
    add, default = parser.add_argument, "(default: the checkpoint's)"
    add("--image-size", type=int, metavar="PIXELS", help=f"shorter side of the image that the network sees {default}")
    add("--max-size", type=int, metavar="PIXELS", help=f"most pixels of the longer side {default}")


def check_threshold(value: float | None) -> None:
    """Raise a UsageError if a ``--threshold`` is given that is no score."""
    if value is not None and not 0.0 <= value <= 1.0:
        raise UsageError(f"--threshold {value}: it must be between 0 and 1")


@dataclass(frozen=True)
class Photo:
    """An image as it is and as the network sees it.

    Attributes:
        image: Upright, RGB.
        pixels: uint8 of shape ``(3, height, width)``, resized.
    """

    image: Image.Image
    pixels: Tensor

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) of the image as it is."""
        return self.image.height, self.image.width

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what the network sees."""
        return self.pixels.shape[1], self.pixels.shape[2]


@dataclass(frozen=True)
class ObjectDetector:
    """A network on a device, with the names of its classes and the preparation of its images.

    Attributes:
        network: In evaluation mode.
        class_names: One for each class.
        category_ids: One for each class: its number in COCO's results.
        geometry: How images are resized.
        mean: Of RGB in [0, 1].
        std: Likewise.
        device: Where it computes.
    """

    network: Detector
    class_names: list[str]
    category_ids: list[int]
    geometry: EvaluationGeometry
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device

    @classmethod
    def load(
        cls,
        path: Path,
        device: str = "auto",
        public: Mapping[str, Any] | None = None,
        *,
        image_size: int | None = None,
        max_size: int | None = None,
    ) -> "ObjectDetector":
        """Load a checkpoint file of this project, or public weights.

        Of public weights, what was loaded and what was not is printed on standard error.

        Args:
            path: The file.
            device: ``auto``, ``cpu`` or ``cuda``.
            public: Arguments of ``load_pretrained_detector`` for public weights; None leaves them.
            image_size: Pixels of the shorter side in place of the checkpoint's.
            max_size: Most pixels of the longer side in place of the checkpoint's.

        Raises:
            UsageError: There is no such device, the checkpoint is of another task, ``public`` is given for one of this
                project, or the sizes do not go together.
            ValueError: The file cannot be read.
        """
        target, task = choose_device(device), checkpoint_task(path)
        public = {name: value for name, value in (public or {}).items() if value is not None}
        if task and public:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in public)
            raise UsageError(f'{options}: for public weights alone, and "{path}" is a checkpoint of this project')
        if task not in (None, TASK):
            command = COMMAND_OF.get(task)
            use = f"; use: python -m experiments {command} --checkpoint {path}" if command else ""
            raise UsageError(f'"{path}" is no detector, its task is {task}{use}')
        network: Detector
        names: Sequence[str] | None
        ids: Sequence[int] | None
        if task:
            loaded = load_checkpoint(path)
            network, names, ids, settings = (
                loaded.network,
                loaded.class_names,
                loaded.category_ids,
                loaded.preprocessing,
            )
        else:
            found = load_pretrained_detector(path, **public)
            print(found.report(), file=sys.stderr)
            network, names, ids, settings = found.network, found.class_names, found.category_ids, found.preprocessing
        numbers = range(network.num_classes)
        return cls(
            network.to(target).eval(),
            list(names or (f"class {number}" for number in numbers)),
            list(ids or numbers),
            _geometry(settings.get("sizes", SIZES), image_size, max_size),
            tuple(settings.get("mean", IMAGENET_MEAN)),
            tuple(settings.get("std", IMAGENET_STD)),
            target,
        )

    @property
    def classification(self) -> Classification:
        """What reads the logits."""
        return classification_of(self.network)

    def read(self, path: str | Path) -> Photo:
        """Decode an image file and resize it.

        Raises:
            OSError: The file is missing or cannot be read.
            ValueError: It is no image, or a broken one.
        """
        image = EncodedImage(Path(path), str(path)).image()
        originals = np.array([[image.height, image.width]])
        height, width = self.geometry.regions(originals, np.zeros(1, dtype=np.int64), 0).sizes[0].tolist()
        resized = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)
        return Photo(image, torch.from_numpy(np.array(resized)).permute(2, 0, 1))

    def batch(self, photos: Sequence[Photo]) -> Tensor:
        """Return the network's float32 input: normalised, zeros right of and below each image, on its device."""
        height, width = (max(photo.size[side] for photo in photos) for side in (0, 1))
        images = torch.zeros(len(photos), 3, height, width, device=self.device)
        for image, photo in zip(images, photos, strict=True):
            rows, columns = photo.size
            pixels = photo.pixels[None].contiguous().to(self.device)
            image[:, :rows, :columns] = normalize(pixels, self.mean, self.std)[0]
        return images

    @torch.inference_mode()
    def detect(self, photos: Sequence[Photo]) -> list[Detections]:
        """Return what is found in images, best first, boxes in pixels of the images as they are; on the CPU."""
        predictions = self.network(self.batch(photos), [photo.size for photo in photos])
        found = detections(predictions, [photo.original_size for photo in photos], self.classification)
        orders = (one.scores.argsort(descending=True, stable=True) for one in found)
        return [Detections(*(part[order].cpu() for part in one)) for one, order in zip(found, orders, strict=True)]

    @torch.inference_mode()
    def by_query(self, photo: Photo) -> Detections:
        """Return the best detection of each query of the network, in its order; on the CPU."""
        logits, boxes = self.network(self.batch([photo]), [photo.size]).final
        outputs = logits.softmax(-1)[..., :-1] if self.classification == "softmax" else logits.sigmoid()
        scores, labels = outputs[0].max(-1)
        height, width = photo.original_size
        corners = cxcywh_to_xyxy(boxes[0]).cpu() * torch.tensor([width, height] * 2)
        return Detections(scores.cpu(), labels.cpu(), corners)

    def attention_maps(self, photo: Photo) -> AttentionMaps:
        """Return where the last layers look, on the CPU.

        Raises:
            ValueError: The network has no attention maps.
        """
        if not isinstance(self.network, DETR):
            raise ValueError(f"{type(self.network).__name__} has no attention maps; DETR and ConditionalDETR have")
        [maps] = self.network.attention_maps(self.batch([photo]), [photo.size])
        return AttentionMaps(*(weights.float().cpu() for weights in maps))


def _geometry(sizes: Sequence[int], image_size: int | None, max_size: int | None) -> EvaluationGeometry:
    """Return how images are resized; a larger shorter side lets the longer one grow in proportion.

    Raises:
        UsageError: A size is impossible.
    """
    geometry = EvaluationGeometry(*sizes)
    for option, value in (("--image-size", image_size), ("--max-size", max_size)):
        if value is not None and value < 1:
            raise UsageError(f"{option} {value}: it must be at least 1")
    size = image_size or geometry.size
    longest = max_size or round(geometry.max_size * size / geometry.size)
    if longest < size:
        raise UsageError(f"--max-size {longest}: it must be at least the shorter side, {size}")
    return replace(geometry, size=size, max_size=longest)
