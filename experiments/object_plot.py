"""Pictures of images with boxes: what is there beside what was found.

Figures are made without pyplot, as those of :mod:`experiments.image_plot`, and are written by ``attention_plot.save``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from experiments.image_plot import (
    INK,
    LABEL_SIZE,
    PANEL,
    PANELS_IN_A_ROW,
    TITLE_SIZE,
    image_axes,
    new_figure,
    to_pixels,
)

COLORS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")
"""Of the classes in turn: colors that people with any color vision tell apart (Okabe & Ito)."""
_MARGIN, _GAP, _POINT = 0.18, 0.1, 1.0 / 72.0


@dataclass(frozen=True)
class Mark:
    """A box over an image.

    Attributes:
        box: Left, top, right and bottom in pixels of the image that is shown; what lies outside is cut.
        label: Class number, which decides the color.
        text: Beside the box.
    """

    box: Sequence[float]
    label: int
    text: str


@dataclass(frozen=True)
class Pair:
    """An image with its objects, and again with what was found.

    Attributes:
        image: uint8 of shape ``(3, height, width)``.
        truth: The objects.
        found: The detections; None draws the image once.
        name: Of the image.
    """

    image: Tensor
    truth: Sequence[Mark]
    found: Sequence[Mark] | None
    name: str


def draw_pairs(pairs: Sequence[Pair], title: str, subtitle: str = "") -> Figure:
    """Draw images in rows, each with its objects and again with what was found.

    Args:
        pairs: At least one; all with detections, or none.
        title: Above the figure.
        subtitle: Below the title.
    """
    panels = 1 if pairs[0].found is None else 2
    columns = min(PANELS_IN_A_ROW // panels, len(pairs))
    rows = -(-len(pairs) // columns)
    caption, head = 2.0 * LABEL_SIZE * _POINT, (3.8 * TITLE_SIZE if subtitle else 2.6 * TITLE_SIZE) * _POINT
    cell = panels * (PANEL + _GAP) + _MARGIN
    width, height = columns * cell + _MARGIN, _MARGIN + head + rows * (PANEL + caption)
    figure = new_figure(width, height, title, subtitle)
    for number, pair in enumerate(pairs):
        row, column = divmod(number, columns)
        bottom = height - _MARGIN / 2 - head - (row + 1) * (PANEL + caption) + caption / 2
        for place, marks in enumerate((pair.truth, pair.found or ())[:panels]):
            left = _MARGIN + column * cell + place * (PANEL + _GAP)
            box = (left / width, bottom / height, PANEL / width, PANEL / height)
            axes = image_axes(figure, box, f"found: {len(marks)}" if place else f"{pair.name}, objects: {len(marks)}")
            axes.imshow(to_pixels(pair.image), aspect="equal")
            axes.set_anchor("NW")
            draw_marks(axes, pair.image, marks)
    return figure


def draw_marks(axes: Axes, image: Tensor, marks: Sequence[Mark]) -> None:
    """Draw boxes with their texts over an image that is shown already."""
    height, width = image.shape[1:]
    for mark in marks:
        left, right = (min(max(side, 0.0), width) - 0.5 for side in (mark.box[0], mark.box[2]))
        top, bottom = (min(max(side, 0.0), height) - 0.5 for side in (mark.box[1], mark.box[3]))
        color = COLORS[mark.label % len(COLORS)]
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=1.5))
        if mark.text:
            axes.text(
                left,
                top,
                mark.text,
                size=LABEL_SIZE - 2.5,
                color=INK,
                va="bottom" if top > 0.08 * height else "top",
                parse_math=False,
                clip_on=True,
                bbox={"facecolor": "white", "edgecolor": color, "linewidth": 0.8, "pad": 0.8, "alpha": 0.85},
            )
