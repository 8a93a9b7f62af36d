"""A picture of a kernel benchmark: the rate of every provider on every shape, and the roof."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.bench.kernel_case import OURS
from experiments.bench.kernel_report import Report
from experiments.bench.kernel_timing import Direction

_OURS_COLOR = "#c2410c"
_COLORS = ("#1d4ed8", "#0f766e", "#7c3aed", "#4d7c0f", "#0891b2", "#a16207", "#be185d", "#475569", "#65a30d", "#6b7280")
_MARKERS = "osD^vPX<>*"


def draw(reports: Sequence[Report], context: Mapping[str, str], path: Path) -> Path:
    """Write a PNG with a panel for each group and direction.

    Args:
        reports: What was measured, at least one report.
        context: What it was measured on, for the title.
        path: The file.

    Returns:
        The file.
    """
    groups = list(dict.fromkeys(report.case.group for report in reports))
    directions = list(dict.fromkeys(direction for report in reports for direction in report.directions()))
    names = list(dict.fromkeys(name for report in reports for name in report.results))
    sizes = [sum(report.case.group == group for report in reports) for group in groups]
    widths = [max(2.2, 0.55 * size) for size in sizes]
    figure = Figure(figsize=(1.2 + sum(widths) + 0.6 * len(groups), 1.9 + 2.6 * max(1, len(directions))), dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.subplots(max(1, len(directions)), len(groups), squeeze=False, width_ratios=widths, sharex="col")
    for row, direction in enumerate(directions):
        for column, group in enumerate(groups):
            chosen = [report for report in reports if report.case.group == group]
            _panel(axes[row][column], chosen, direction, names, labelled=row == len(directions) - 1)
        axes[row][0].set_ylabel(f"{direction}, {reports[0].case.unit}")
    for column, group in enumerate(groups):
        axes[0][column].set_title(group, fontsize=10)
    handles, labels = _legend(list(axes.flat))
    figure.legend(handles, labels, loc="lower center", ncols=min(6, max(1, len(labels))), fontsize=8, frameon=False)
    hardware = ", ".join(context[name] for name in ("hardware", "date") if context.get(name))
    versions = ", ".join(f"{name} {context[name]}" for name in ("torch", "triton", "cudnn") if context.get(name))
    figure.suptitle(f"{hardware}\n{versions}, {reports[0].dtype}, {_how(reports[0])}", fontsize=9)
    figure.tight_layout(rect=(0, 0.06 + 0.02 * (len(labels) // 6), 1, 1))
    figure.savefig(path)
    return path


def _how(report: Report) -> str:
    return "CUDA graphs, eager where there is none" if report.on_gpu else "eager"


def _panel(axis: Axes, reports: Sequence[Report], direction: Direction, names: Sequence[str], labelled: bool) -> None:
    """Draw a marker for each provider and shape, side by side, and the roof as a dashed line if it is near."""
    highest = 0.0
    for number, name in enumerate(names):
        points = []
        for place, report in enumerate(reports):
            timed = (report.results[name].in_race(direction, timing) for timing in report.timings)
            if seconds := next((seconds for seconds in timed if seconds), None):
                points.append((place, report.rate(seconds, direction)))
        if not points:
            continue
        ours, aside = name == OURS, 0.5 * (number / max(1, len(names) - 1) - 0.5)
        axis.plot(
            [place + aside for place, _ in points],
            [rate for _, rate in points],
            linestyle="",
            color=_OURS_COLOR if ours else _COLORS[number % len(_COLORS)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=7 if ours else 5,
            zorder=3 if ours else 2,
            label=name,
        )
        highest = max(highest, *(rate for _, rate in points))
    roof = statistics.median(report.roofs.of(report.case.unit) for report in reports)
    if roof < 2 * highest:
        axis.axhline(roof, color="#333333", linewidth=0.8, linestyle="--", label="roof of the run")
    else:
        axis.text(0.98, 0.97, f"roof {roof:.3g}", transform=axis.transAxes, fontsize=7, ha="right", va="top")
    axis.set_ylim(bottom=0)
    axis.set_xlim(-0.5, len(reports) - 0.5)
    axis.set_xticks(range(len(reports)))
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=7)
    if labelled:
        axis.set_xticklabels([report.case.label for report in reports], rotation=55, ha="right", rotation_mode="anchor")


def _legend(axes: Sequence[Axes]) -> tuple[list[Artist], list[str]]:
    """Return each provider's line once, this project's first."""
    lines: dict[str, Artist] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            lines.setdefault(label, handle)
    labels = sorted(lines, key=lambda label: (label != OURS, list(lines).index(label)))
    return [lines[label] for label in labels], labels
