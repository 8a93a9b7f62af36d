"""Validation scores of runs over the images that they were trained on: rows, and a picture of them side by side."""

import csv
from pathlib import Path
from typing import Any

from experiments.bench.record import append
from experiments.bench.run import summarize
from experiments.bench.side_by_side import print_rows
from experiments.command import CommandParser, run

# What a row takes of the run's own, see ``bench run``.
_OF_THE_RUN = ("date", "commit", "hardware", "config", "minutes", "seed")


def main(argv: list[str]) -> int:
    """Print the rows; append them to ``curves.csv`` in ``experiments/results``, and draw them, if asked to."""
    return run(_main, argv)


def _main(argv: list[str]) -> None:
    parser = CommandParser("python -m experiments bench curves", __doc__ or "")
    parser.add_argument("run_dirs", nargs="+", type=Path, help="directories of runs that were tested")
    parser.add_argument(
        "--metrics", nargs="+", default=["val/AP", "val/AP50"], metavar="NAME", help="validation scores"
    )
    parser.add_argument("--record", action="store_true", help="append the rows to experiments/results/curves.csv")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="picture to write")
    options = parser.parse_args(argv)
    curves = [curve(directory, options.metrics) for directory in options.run_dirs]
    rows = [row for rows in curves for row in rows]
    print_rows(rows)
    if options.record:
        print(append("curves", rows))
    if options.plot is not None:
        draw(curves, options.plot)
        print(options.plot)


def curve(directory: Path, metrics: list[str]) -> list[dict[str, Any]]:
    """Return a row for each validation and metric of a run that logs the images it has seen, as many in every step.

    Raises:
        ValueError: If the directory is not that of a run that was tested, or never logged a metric.
    """
    _, told = summarize(directory)
    told = {name: told[name] for name in _OF_THE_RUN if name in told}
    with (directory / "metrics.csv").open(encoding="utf-8", newline="") as file:
        logged = list(csv.DictReader(file))
    seen = [float(line["train/images"]) / int(line["step"]) for line in logged if line.get("train/images")]
    rows = [
        {
            **told,
            "step": int(line["step"]),
            "images": round(int(line["step"]) * (seen[-1] if seen else 0)),
            "metric": name,
            "value": round(float(line[name]), 4),
        }
        for line in logged
        for name in metrics
        if line.get(name)
    ]
    if missing := [name for name in metrics if name not in {row["metric"] for row in rows}]:
        raise ValueError(f"{directory}/metrics.csv has no values of {', '.join(missing)}")
    return rows


def draw(curves: list[list[dict[str, Any]]], path: Path) -> None:
    """Write a panel for each metric, with a line for each run."""
    from matplotlib.figure import Figure

    metrics = list(dict.fromkeys(row["metric"] for row in curves[0]))
    figure = Figure(figsize=(4.2 * len(metrics), 3.2), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        for rows in curves:
            points = [row for row in rows if row["metric"] == metric]
            label = f"{Path(points[0]['config']).stem}, {points[0]['minutes']:.0f} minutes"
            thousands = [row["images"] / 1000 for row in points]
            panel.plot(thousands, [row["value"] for row in points], marker="o", markersize=4, label=label)
        panel.set_title(metric, fontsize=10, loc="left")
        panel.set_xlabel("thousand training images", fontsize=9)
        panel.set_ylim(0, 1)
        panel.set_xlim(left=0)
        panel.grid(color="#e6e6e6", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    panels[0].legend(fontsize=8, frameon=False, loc="upper left")
    figure.savefig(path, dpi=150)
