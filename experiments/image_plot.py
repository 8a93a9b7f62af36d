"""Pictures of images: weights laid over one, and grids of captioned ones.

Figures are made without pyplot, as those of :mod:`experiments.attention_plot`, and are written by its ``save``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from torch import Tensor
from torch.nn.functional import interpolate

PANEL = 2.1
"""Side of a panel in inches."""
PANELS_IN_A_ROW = 4
THUMBNAIL = 1.25
"""Side of an image of a grid in inches."""
LABEL_SIZE, TITLE_SIZE = 8.5, 10.0
STRENGTH = 0.6
"""Share of the color of a weight in a pixel; the rest is the image in grey."""

INK, RIGHT, WRONG = "#333333", "#0072b2", "#d55e00"
"""Colors that people with any color vision tell apart (Okabe & Ito)."""
_MARGIN, _GAP, _BAR_SPACE, _POINT = 0.18, 0.12, 0.75, 1.0 / 72.0
_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601
_COLORS = colormaps["inferno"]


@dataclass(frozen=True)
class Overlay:
    """Weights over an image.

    Attributes:
        weights: ``(rows, columns)``, a weight for each patch.
        title: Above the panel.
        marks: Draws over the panel, in pixels of the image; None draws nothing.
    """

    weights: Tensor
    title: str
    marks: Callable[[Axes], None] | None = None


def draw_overlays(
    image: Tensor,
    overlays: Sequence[Overlay],
    title: str,
    subtitle: str,
    bar_title: str,
    marks: Callable[[Axes], None] | None = None,
) -> Figure:
    """Draw an image, and beside it the same in grey under the weights of its patches, with one color scale for all.

    Args:
        image: uint8 of shape ``(3, height, width)``.
        overlays: At least one.
        title: Above the figure.
        subtitle: Below the title.
        bar_title: What the colors mean.
        marks: Draws over the image, in its pixels; None draws nothing.

    Returns:
        The figure.
    """
    height, width = PANEL * image.shape[1] / max(image.shape[1:]), PANEL * image.shape[2] / max(image.shape[1:])
    rows = -(-(1 + len(overlays)) // PANELS_IN_A_ROW)
    columns = -(-(1 + len(overlays)) // rows)
    caption, head = 1.9 * LABEL_SIZE * _POINT, (3.8 * TITLE_SIZE + 0.6 * LABEL_SIZE) * _POINT
    total_width = max(
        2 * _MARGIN + columns * width + (columns - 1) * _GAP + _BAR_SPACE,
        2 * _MARGIN + max(1.1 * _text_width(title, TITLE_SIZE), _text_width(subtitle, LABEL_SIZE)),
    )
    total_height = _MARGIN / 2 + head + rows * (height + caption) + (rows - 1) * _GAP + _MARGIN
    figure = new_figure(total_width, total_height, title, subtitle)
    top_weight = max(float(overlay.weights.max()) for overlay in overlays) or 1.0
    for number, overlay in enumerate([None, *overlays]):
        row, column = divmod(number, columns)
        left = _MARGIN + column * (width + _GAP)
        bottom = total_height - _MARGIN / 2 - head - (row + 1) * (height + caption) - row * _GAP
        box = (left / total_width, bottom / total_height, width / total_width, height / total_height)
        axes = image_axes(figure, box, overlay.title if overlay else "the network's input")
        pixels = overlaid(image, overlay.weights / top_weight) if overlay else to_pixels(image)
        axes.imshow(pixels, aspect="auto", extent=(-0.5, image.shape[2] - 0.5, image.shape[1] - 0.5, -0.5))
        draw = overlay.marks if overlay else marks
        if draw is not None:
            draw(axes)
    bar_left = _MARGIN + columns * (width + _GAP) + 0.02
    bottom = total_height - _MARGIN / 2 - head - height - caption
    _color_bar(figure, (bar_left / total_width, bottom / total_height, 0.1 / total_width, height / total_height),
               top_weight, bar_title)  # fmt: skip
    return figure


def overlaid(image: Tensor, weights: Tensor) -> np.ndarray:
    """Return an image in grey under weights.

    Args:
        image: uint8 of shape ``(3, height, width)``.
        weights: ``(rows, columns)`` in [0, 1]; each covers its patch, so that nothing looks finer than it is.

    Returns:
        Colors in [0, 1] of shape ``(height, width, 3)``, at least about 400 pixels a side.
    """
    scale = max(1, -(-400 // max(image.shape[1:])))
    height, width = image.shape[1] * scale, image.shape[2] * scale
    grey = torch.einsum("chw,c->hw", image / 255.0, torch.tensor(_LUMINANCE))
    large_grey, cells = (
        interpolate(values[None, None].float(), (height, width))[0, 0].numpy() for values in (grey, weights)
    )
    return np.clip((1.0 - STRENGTH) * large_grey[..., None] + STRENGTH * _COLORS(cells)[..., :3], 0.0, 1.0)


@dataclass(frozen=True)
class Thumbnail:
    """An image of a grid.

    Attributes:
        image: uint8 of shape ``(3, height, width)``.
        lines: Below the image, each with its color; what is too wide is cut.
    """

    image: Tensor
    lines: Sequence[tuple[str, str]]


def draw_grid(thumbnails: Sequence[Thumbnail], title: str, subtitle: str = "", columns: int = 8) -> Figure:
    """Draw images in rows, with lines of text below each.

    Args:
        thumbnails: At least one, all with as many lines.
        title: Above the figure.
        subtitle: Below the title.
        columns: Images of a row at most.
    """
    columns = min(columns, len(thumbnails))
    rows = -(-len(thumbnails) // columns)
    shape = thumbnails[0].image.shape
    height, width = THUMBNAIL * shape[1] / max(shape[1:]), THUMBNAIL * shape[2] / max(shape[1:])
    line = 1.35 * LABEL_SIZE * _POINT
    below = len(thumbnails[0].lines) * line + 0.12
    head = (2.2 * TITLE_SIZE + (1.6 * LABEL_SIZE if subtitle else 0)) * _POINT
    total_width = max(
        2 * _MARGIN + columns * width + (columns - 1) * _GAP,
        2 * _MARGIN + max(1.1 * _text_width(title, TITLE_SIZE), _text_width(subtitle, LABEL_SIZE)),
    )
    total_height = _MARGIN + head + rows * (height + below)
    figure = new_figure(total_width, total_height, title, subtitle)
    for number, thumbnail in enumerate(thumbnails):
        row, column = divmod(number, columns)
        left = _MARGIN + column * (width + _GAP)
        bottom = total_height - _MARGIN / 2 - head - row * (height + below) - height
        box = (left / total_width, bottom / total_height, width / total_width, height / total_height)
        axes = image_axes(figure, box, "")
        axes.imshow(to_pixels(thumbnail.image), aspect="auto")
        for place, (text, color) in enumerate(thumbnail.lines, start=1):
            figure.text(
                left / total_width,
                (bottom - place * line + 0.02) / total_height,
                fitting(text, width),
                size=LABEL_SIZE - 1,
                color=color,
            )
    return figure


def fitting(text: str, width: float) -> str:
    """Return a label of a grid, cut with an ellipsis to a width in inches."""
    full = _text_width(text, LABEL_SIZE - 1)
    if full <= width:
        return text
    text = text[: int(len(text) * width / full) + 2]  # near enough to be cut letter by letter
    while text and _text_width(f"{text}…", LABEL_SIZE - 1) > width:
        text = text[:-1].rstrip()
    return f"{text}…"


def new_figure(width: float, height: float, title: str, subtitle: str) -> Figure:
    """Return a figure of so many inches with its headings."""
    figure = Figure(figsize=(width, height), facecolor="white")
    left, top = _MARGIN / width, height - 0.6 * _MARGIN
    figure.text(left, top / height, title, size=TITLE_SIZE, weight="bold", color=INK, va="top", parse_math=False)
    below = (top - 1.7 * TITLE_SIZE * _POINT) / height
    figure.text(left, below, subtitle, size=LABEL_SIZE, color=INK, va="top", parse_math=False)
    return figure


def image_axes(figure: Figure, box: tuple[float, float, float, float], title: str) -> Axes:
    """Add axes for an image, without ticks, at (left, bottom, width, height) in shares of the figure."""
    axes = figure.add_axes(box)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, size=LABEL_SIZE, color=INK, loc="left", pad=3)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _color_bar(figure: Figure, box: tuple[float, float, float, float], top_weight: float, title: str) -> None:
    """Draw the scale of weights as they look over a middle grey."""
    mixed = (1.0 - STRENGTH) * 0.5 + STRENGTH * _COLORS(np.linspace(0.0, 1.0, 256))[:, :3]
    bar = figure.add_axes(box)
    style: dict[str, Any] = {"labelsize": LABEL_SIZE - 1, "labelcolor": INK, "color": INK, "length": 2}
    figure.colorbar(ScalarMappable(Normalize(0.0, top_weight), ListedColormap(mixed)), cax=bar).ax.tick_params(**style)
    # The topmost number may reach half its height above the bar.
    bar.set_title(title, size=LABEL_SIZE - 1, color=INK, loc="left", pad=3 + LABEL_SIZE / 2)
    bar.spines["outline"].set_visible(False)


def to_pixels(image: Tensor) -> np.ndarray:
    """Return an image (3, height, width) as matplotlib has it, (height, width, 3)."""
    return image.permute(1, 2, 0).cpu().numpy()


def _text_width(text: str, size: float) -> float:
    """Return the width of a text in inches, rather too much than too little: a renderer rounds each letter up."""
    plain = text.replace("$", "S")  # which would begin a formula
    return 1.06 * TextPath((0, 0), plain, size=size).get_extents().width * _POINT if text.strip() else 0.0
