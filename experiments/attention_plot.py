"""Pictures of attention weights: a heat map for each head or their mean, with the tokens on the axes.

Figures are made without pyplot, so that nothing here depends on or changes a program's figures, display or backend.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.textpath import TextPath
from torch import Tensor

from experiments.line_io import replaced_when_done
from lit_models.translation.transformer import AttentionMaps

CELL = 0.27
"""Side of a cell in inches; a long sentence makes a larger picture, never smaller labels."""
LABEL_SIZE = 8.5
TITLE_SIZE = 10.0
PANELS_IN_A_ROW = 4
RESOLUTION = 150
LARGEST_SIDE = 12_000
"""Pixels that a side of a picture has at most; beyond, the resolution falls."""

WRITTEN, ATTENDING, READ = "token being written", "token that attends", "attends to"
"""Names of the axes."""

_POINT = 1.0 / 72.0
_MARGIN, _GAP, _BAR_SPACE = 0.15, 0.2, 0.65
_SLOPE, _BOLD = 0.7071, 1.15
_COLORS = LinearSegmentedColormap.from_list("paper_to_ink", ["#ffffff", "#cfe1f2", "#6aaed6", "#2070b4", "#08306b"])
_INK = "#333333"
_GRID = "#e6e6e6"


@dataclass(frozen=True)
class Panel:
    """One heat map.

    Attributes:
        weights: ``(rows, columns)``, at most as many as there are labels; more (padding) are cut off.
        rows: Labels of the positions that attend.
        columns: Labels of the positions that are attended to.
        title: Above the panel.
        row_axis: What the rows are.
        column_axis: What the columns are.
    """

    weights: Tensor
    rows: Sequence[str]
    columns: Sequence[str]
    title: str = ""
    row_axis: str = ""
    column_axis: str = ""


def readable(piece: str) -> str:
    """Return a SentencePiece piece as a label: a word's start without its mark, what continues a word with a dot."""
    if piece.startswith("<") and piece.endswith(">"):
        return piece
    if piece.startswith("\u2581"):
        return piece[1:] or "\u2423"
    return f"·{piece}"


def draw_attention(
    weights: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    *,
    row_axis: str = "",
    column_axis: str = "",
) -> Figure:
    """Draw the attention of one layer.

    Args:
        weights: ``(rows, columns)`` for one map, or ``(heads, rows, columns)`` for one panel for each head.
        rows: Labels of the positions that attend; weights of further positions (padding) are cut off.
        columns: Labels of the positions that are attended to.
        title: Above the figure.
        row_axis: What the rows are.
        column_axis: What the columns are.

    Returns:
        The figure.

    Raises:
        ValueError: There are fewer weights than labels.
    """
    if weights.ndim == 2:
        return draw_panels([Panel(weights, rows, columns, "", row_axis, column_axis)], title)
    panels = [
        Panel(head, rows, columns, f"head {number}", row_axis, column_axis)
        for number, head in enumerate(weights, start=1)
    ]
    return draw_panels(panels, title)


def draw_panels(panels: Sequence[Panel], title: str) -> Figure:
    """Draw panels in rows of up to four, in cells of one size and with one color scale.

    Raises:
        ValueError: A panel has fewer weights than labels.
    """
    blocks = [_Block(panel) for panel in panels]
    lines = [blocks[first : first + PANELS_IN_A_ROW] for first in range(0, len(blocks), PANELS_IN_A_ROW)]
    widths = [max(block.width for block in blocks[place::PANELS_IN_A_ROW]) for place in range(len(lines[0]))]
    heights = [max(block.height for block in line) for line in lines]
    title_height = 2.8 * TITLE_SIZE * _POINT
    width = max(_MARGIN + sum(widths) + _BAR_SPACE, _BOLD * _text_width(title, TITLE_SIZE) + 2 * _MARGIN)
    height = title_height + sum(heights) + _MARGIN
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.text(_MARGIN / width, 1 - _MARGIN / height, title, size=TITLE_SIZE, weight="bold", color=_INK, va="top")
    top_weight = max(block.top_weight for block in blocks)
    top = height - title_height
    for line, line_height in zip(lines, heights, strict=True):
        left = _MARGIN
        for block, block_width in zip(line, widths, strict=False):
            axes = figure.add_axes(block.rectangle(left, top, width, height))
            image = block.draw(axes, top_weight)
            left += block_width
        top -= line_height
    first = blocks[0].rectangle(_MARGIN, height - title_height, width, height)
    bar_height = min(first[3], 1.5 / height)
    bar = figure.add_axes(
        (1 - (_BAR_SPACE - _MARGIN) / width, first[1] + first[3] - bar_height, 0.1 / width, bar_height)
    )
    figure.colorbar(image, cax=bar).ax.tick_params(labelsize=LABEL_SIZE - 1.5, colors=_INK, length=2)
    bar.set_title("weight", size=LABEL_SIZE - 1.5, color=_INK, loc="left", pad=4)
    for spine in bar.spines.values():
        spine.set_color(_GRID)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format of the path's suffix, such as .png or .pdf; text in a PDF stays text.

    Raises:
        OSError: The file cannot be written; what was there before stays.
    """
    path = Path(path)
    resolution = min(RESOLUTION, LARGEST_SIDE / max(figure.get_size_inches()))
    # Without the date the same weights give the same bytes.
    metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
    with matplotlib.rc_context({"pdf.fonttype": 42}), replaced_when_done(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=resolution, metadata=metadata)


def save_overview(
    maps: AttentionMaps, source_pieces: Sequence[str], target_pieces: Sequence[str], path: str | Path, *, row: int = 0
) -> None:
    """Write one picture of what the last layers attend to: the encoder to its source, the decoder to the source.

    Args:
        maps: Weights of every layer.
        source_pieces: The source's pieces with EOS.
        target_pieces: The pieces that the decoder writes, EOS included: y1 ... yn EOS.
        path: The file; its suffix is the format.
        row: Which sentence of the batch.

    Raises:
        ValueError: There are fewer weights than pieces.
        OSError: The file cannot be written.
    """
    source, target = [[readable(piece) for piece in pieces] for pieces in (source_pieces, target_pieces)]
    cross, encoder = maps.cross[-1][row].mean(0), maps.encoder[-1][row].mean(0)
    panels = [
        Panel(cross, target, source, "target to source (cross-attention)", WRITTEN, READ),
        Panel(encoder, source, source, "source to source (encoder self-attention)", ATTENDING, READ),
    ]
    save(draw_panels(panels, f"Attention of the last layers, mean of {maps.cross[-1].shape[1]} heads"), path)


class _Block:
    """A panel with the space that its labels need, in inches."""

    def __init__(self, panel: Panel) -> None:
        rows, columns = len(panel.rows), len(panel.columns)
        if panel.weights.ndim != 2 or panel.weights.shape[0] < rows or panel.weights.shape[1] < columns:
            raise ValueError(f"weights of shape {tuple(panel.weights.shape)} for {rows} rows and {columns} columns")
        if not rows or not columns:
            raise ValueError("there is no token to draw")
        self.panel = panel
        self.weights = panel.weights[:rows, :columns].detach().float().cpu()
        self.top_weight = float(self.weights.max())
        lengths = [_text_width(label, LABEL_SIZE) for label in panel.columns]
        axis_space = 1.8 * LABEL_SIZE * _POINT
        self.left = max(_text_width(label, LABEL_SIZE) for label in panel.rows) + 0.08
        self.left += axis_space if panel.row_axis else 0.0
        self.top = _SLOPE * max(lengths) + 2.0 * LABEL_SIZE * _POINT
        self.top += axis_space if panel.title else 0.0
        # A label leans to the right from its column and may reach beyond the last one.
        reach = max(_SLOPE * length - (columns - 1 - place) * CELL for place, length in enumerate(lengths))
        self.width = (
            max(self.left + columns * CELL + max(reach, 0.0), _BOLD * _text_width(panel.title, LABEL_SIZE)) + _GAP
        )
        self.height = self.top + rows * CELL + _GAP + (axis_space if panel.column_axis else 0.0)

    def rectangle(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        """Return left, bottom, width and height of the cells, shares of the figure; ``left`` and ``top`` are inches."""
        rows, columns = self.weights.shape
        bottom = top - self.top - rows * CELL
        return (left + self.left) / width, bottom / height, columns * CELL / width, rows * CELL / height

    def draw(self, axes: Axes, top_weight: float) -> AxesImage:
        """Draw cells and labels; ``top_weight`` has the darkest color."""
        panel, (rows, columns) = self.panel, self.weights.shape
        image = axes.imshow(self.weights.numpy(), cmap=_COLORS, vmin=0.0, vmax=top_weight, aspect="auto")
        axes.set_xticks(range(columns), panel.columns, rotation=45, ha="left", va="baseline", rotation_mode="anchor")
        axes.set_yticks(range(rows), panel.rows)
        axes.xaxis.tick_top()
        axes.tick_params(labelsize=LABEL_SIZE, labelcolor=_INK, length=0, pad=3)
        axes.set_xticks([place - 0.5 for place in range(columns + 1)], minor=True)
        axes.set_yticks([place - 0.5 for place in range(rows + 1)], minor=True)
        axes.grid(which="minor", color=_GRID, linewidth=0.6)
        axes.tick_params(which="minor", length=0)
        for spine in axes.spines.values():
            spine.set_color(_GRID)
        style: dict[str, Any] = {"color": _INK, "size": LABEL_SIZE, "style": "italic"}
        left = -self.left / (columns * CELL)
        if _text_width(panel.row_axis, LABEL_SIZE) < rows * CELL + self.top / 2:
            axes.text(left, 0.5, panel.row_axis, rotation=90, va="center", transform=axes.transAxes, **style)
        below = -0.5 * LABEL_SIZE * _POINT / (rows * CELL)
        axes.text(0.5, below, panel.column_axis, va="top", ha="center", transform=axes.transAxes, **style)
        above = 1 + (self.top - 0.3 * LABEL_SIZE * _POINT) / (rows * CELL)
        axes.text(
            left, above, panel.title, va="top", transform=axes.transAxes, color=_INK, size=LABEL_SIZE, weight="bold"
        )
        return image


def _text_width(text: str, size: float) -> float:
    """Return the width of a text in inches."""
    return TextPath((0, 0), text, size=size).get_extents().width * _POINT if text.strip() else 0.0
