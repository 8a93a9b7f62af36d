"""The attention of a DETR over an image as pictures: of its decoder for each object, of its encoder at chosen points.

They are those of Carion et al. 2020 (https://arxiv.org/abs/2005.12872), figures 3 and 6.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.attend import save_figure
from experiments.detector import THRESHOLDS, ObjectDetector, Photo, check_threshold
from experiments.errors import UsageError
from experiments.image_plot import INK, Overlay, draw_overlays, fitting
from experiments.line_io import replaced_when_done
from experiments.object_plot import Mark, draw_marks
from lit_models.detection.detr import AttentionMaps
from lit_models.detection.postprocess import Detections

MOST_OBJECTS, MOST_POINTS = 11, 4
_PANEL_TITLE = 1.9  # inches
_FILE_NAME = 4.0


@dataclass(frozen=True)
class Attention:
    """What is drawn of an image.

    Attributes:
        found: The objects, best first; boxes in pixels of the image as it is.
        decoder: Weights of each object's query over the features, ``(objects, heads, rows, columns)``.
        points: Where the encoder is looked at, (x, y) in pixels of the image as it is.
        encoder: Weights from there, ``(points, heads, rows, columns)``.
    """

    found: Detections
    decoder: Tensor
    points: list[tuple[float, float]]
    encoder: Tensor


def check_options(options: argparse.Namespace) -> None:
    """Check what concerns a detector before its checkpoint is loaded, and read the points.

    Raises:
        UsageError: A value is out of its range, or an option is for classifiers.
    """
    for name in ("crop", "crop_mode"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for image classifiers; a detector sees the whole image")
    if options.layer != "last":
        raise UsageError(f"--layer {options.layer}: of a detector the last layers are drawn; leave it out")
    check_threshold(options.threshold)
    options.points = None if options.points is None else [_point(text) for text in options.points]


def _point(text: str) -> tuple[float, float]:
    """Return (x, y) of the words ``x,y``.

    Raises:
        UsageError: They are none.
    """
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f'--points "{text}": it must be x,y in pixels of the image, such as 120,80') from None
    return x, y


def choose(found: Detections, threshold: float) -> tuple[Detections, Tensor]:
    """Return the objects to draw, best first, and the number of each one's query.

    If no score reaches the threshold, the best object is drawn, and a line on standard error says so.
    """
    order = found.scores.argsort(descending=True, stable=True)
    count = int((found.scores >= threshold).sum())
    best = float(found.scores.max())
    if not count:
        print(f"note: no object has a score of {threshold:.0%}; the best, {best:.1%}, is drawn", file=sys.stderr)
    if count > MOST_OBJECTS:
        print(
            f"note: {count} objects have a score of {threshold:.0%}; the best {MOST_OBJECTS} are drawn", file=sys.stderr
        )
    kept = order[: min(max(count, 1), MOST_OBJECTS)]
    return Detections(*(part[kept] for part in found)), kept


def look(
    photo: Photo,
    found: Detections,
    queries: Tensor,
    maps: AttentionMaps,
    points: Sequence[tuple[float, float]] | None,
) -> Attention:
    """Collect what is drawn.

    Args:
        photo: The image.
        found: The objects.
        queries: Their queries' numbers.
        maps: Where the last layers look.
        points: Where to look at the encoder; None takes the centres of the best objects.

    Raises:
        UsageError: A point is not in the image.
    """
    height, width = photo.original_size
    if points is None:
        centers = (found.boxes[:MOST_POINTS, :2] + found.boxes[:MOST_POINTS, 2:]) / 2
        points = [(min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)) for x, y in centers.tolist()]
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise UsageError(f"--points {x:g},{y:g} is not in the image of {width} x {height} pixels")
    rows, columns = maps.encoder.shape[1:3]
    encoder = [maps.encoder[:, int(y / height * rows), int(x / width * columns)] for x, y in points]
    return Attention(found, maps.decoder[:, queries].transpose(0, 1), list(points), torch.stack(encoder))


def write_pictures(path: Path, options: argparse.Namespace) -> list[Path]:
    """Write the pictures of the detector in a checkpoint file; return the files, in the order of writing.

    Raises:
        UsageError: A point is not in the image.
        ValueError: The network has no attention maps, or the image cannot be read.
    """
    detector = ObjectDetector.load(path, options.device, image_size=options.image_size)
    photo = detector.read(options.image)
    threshold = THRESHOLDS[detector.classification] if options.threshold is None else options.threshold
    found, queries = choose(detector.by_query(photo), threshold)
    attention = look(photo, found, queries, detector.attention_maps(photo), options.points)
    named = zip(found.labels.tolist(), found.scores.tolist(), strict=True)
    names = [
        f"{number} {detector.class_names[label]} {score:.0%}" for number, (label, score) in enumerate(named, start=1)
    ]
    scale = torch.tensor(photo.size[::-1] * 2) / torch.tensor(photo.original_size[::-1] * 2)
    boxes = (found.boxes * scale).tolist()
    marks = [_box(photo, [Mark(box, number, "")]) for number, box in enumerate(boxes)]
    every = _box(photo, [Mark(box, number, str(number + 1)) for number, box in enumerate(boxes)][::-1])
    dots = [_dot(x * float(scale[0]), y * float(scale[1])) for x, y in attention.points]
    places = [f"from ({x:.0f}, {y:.0f})" for x, y in attention.points]
    subtitle = f"{fitting(Path(options.image).name, _FILE_NAME)}, {len(names)} object{'' if len(names) == 1 else 's'}"
    pictures = {
        "decoder": ("Decoder: where the last layer looks for each object", attention.decoder, names, marks, every),
        "encoder": ("Encoder: what the last layer attends to from chosen points", attention.encoder, places, dots,
                    _all(dots)),
    }  # fmt: skip
    files = []
    for name, (title, weights, titles, draws, first) in pictures.items():
        count = weights.shape[1]
        if options.heads == "average":
            overlays = [Overlay(*panel) for panel in zip(weights.mean(1), _cut(titles), draws, strict=True)]
            figure = _draw(photo.pixels, overlays, f"{title}, mean of {count} heads", subtitle, first)
            files += save_figure(figure, options.output, name)
            continue
        for number, (each, text, draw) in enumerate(zip(weights, titles, draws, strict=True), start=1):
            overlays = [Overlay(head, f"head {place}", draw) for place, head in enumerate(each, start=1)]
            figure = _draw(photo.pixels, overlays, f"{title.split(':')[0]}: {text}, {count} heads", subtitle, draw)
            files += save_figure(figure, options.output, f"{name}_{number}")
    return [*files, save_numbers(Path(f"{options.output}_weights.npz"), photo, attention)]


def _draw(image: Tensor, overlays: list[Overlay], title: str, subtitle: str, marks: Callable[[Axes], None]) -> Figure:
    """Draw weights as multiples of what each cell of the features would get if all got the same."""
    even = overlays[0].weights.numel()
    scaled = [Overlay(overlay.weights * even, overlay.title, overlay.marks) for overlay in overlays]
    return draw_overlays(image, scaled, title, subtitle, f"weight\n(× 1/{even})", marks)


def _cut(titles: Sequence[str]) -> list[str]:
    return [fitting(title, _PANEL_TITLE) for title in titles]


def _box(photo: Photo, marks: Sequence[Mark]) -> Callable[[Axes], None]:
    return lambda axes: draw_marks(axes, photo.pixels, marks)


def _dot(x: float, y: float) -> Callable[[Axes], None]:
    """Return what draws a point that is seen on any ground."""

    def draw(axes: Axes) -> None:
        axes.plot([x], [y], "o", markersize=6, markerfacecolor="white", markeredgecolor=INK, markeredgewidth=1.5)

    return draw


def _all(draws: Sequence[Callable[[Axes], None]]) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        for each in draws:
            each(axes)

    return draw


def save_numbers(path: Path, photo: Photo, attention: Attention) -> Path:
    """Write the image as the network sees it (uint8, height, width, 3) and what is drawn as arrays of an ``.npz``."""
    arrays = {
        "image": photo.pixels.permute(1, 2, 0).numpy(),
        "points": np.array(attention.points),
        "decoder": attention.decoder.numpy(),
        "encoder": attention.encoder.numpy(),
        **{name: part.numpy() for name, part in attention.found._asdict().items()},
    }
    with replaced_when_done(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path
