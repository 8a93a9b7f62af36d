"""The result of a training as a row: what its run directory holds, on one line."""

import csv
import datetime
import json
from pathlib import Path
from typing import Any

import yaml

from experiments.bench.record import append
from experiments.command import CommandParser, run

# A table in experiments/results for each task, and the metrics that its rows take.
TABLES = {
    "runs": ("test/bleu", "test/bleu_moses_lowercase", "test/chrf", "test/loss", "test/perplexity"),
    "classification_runs": (
        "test/accuracy",
        "test/accuracy_top5",
        "test/loss",
        "test/accuracy_class",
        "test/accuracy_distillation",
    ),
    "detection_runs": ("test/AP", "test/AP50", "test/AP75", "test/APs", "test/APm", "test/APl", "test/AR100"),
}
# What tells the task: a metric that every test of it logs.
_TOLD_BY = {"test/bleu": "runs", "test/accuracy": "classification_runs", "test/AP": "detection_runs"}


def main(argv: list[str]) -> int:
    """Print the row, and append it to the task's table in ``experiments/results`` if asked to."""
    return run(_main, argv)


def _main(argv: list[str]) -> None:
    parser = CommandParser("python -m experiments bench run", __doc__ or "")
    parser.add_argument("run_dir", help="directory of a run that was tested")
    parser.add_argument(
        "--record", action="store_true", help="append the row to the task's table in experiments/results"
    )
    options = parser.parse_args(argv)
    table, row = summarize(Path(options.run_dir))
    for name, value in row.items():
        print(f"{name:<28} {value}")
    if options.record:
        print(append(table, [row]))


def summarize(directory: Path) -> tuple[str, dict[str, Any]]:
    """Return the task's table, and date, commit, hardware, versions, steps, minutes and test scores of a run.

    The minutes are those from the record before the first step to the last line of metrics: training, validation and
    testing, without the start of Python.

    Raises:
        ValueError: If the directory is not that of a run that was tested.
    """
    try:
        environment = json.loads((directory / "environment.json").read_text(encoding="utf-8"))
        git = (directory / "git.txt").read_text(encoding="utf-8").splitlines()
        command = (directory / "command.txt").read_text(encoding="utf-8").split()
        with (directory / "metrics.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        told, tested = [(name, row) for row in rows for name in _TOLD_BY if row.get(name)][-1]
    except (OSError, IndexError) as error:
        raise ValueError(f"{directory} is not the directory of a run that was tested: {error}") from error
    begun = (directory / "command.txt").stat().st_mtime
    ended = (directory / "metrics.csv").stat().st_mtime
    changed = (directory / "git.diff").stat().st_size > 0
    gpus = environment["gpus"]
    table = _TOLD_BY[told]
    config = [next((word for word in command if word.endswith(".yaml")), "")]
    if "test" in command:  # what was tested, where the config does not say it
        config += [word.removeprefix("--data.init_args.") for word in command if word.startswith("--data.init_args.")]
    row = {
        "date": datetime.datetime.fromtimestamp(begun, datetime.UTC).strftime("%Y-%m-%d"),
        "commit": git[0].removeprefix("commit: ")[:10] + ("+" if changed else ""),
        "hardware": gpus[0] if gpus else f"{environment['cpu']}, {environment['threads']} threads",
        "torch": environment["torch"],
        "lightning": environment["packages"]["lightning"],
        "config": " ".join(config),
        "steps": max(int(row["step"]) for row in rows),
        "minutes": round((ended - begun) / 60, 1),
    }
    if table != "runs":  # distillation is judged over seeds
        row["seed"] = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))["seed_everything"]
    row |= {name: round(float(tested[name]), 4) if tested.get(name) else "" for name in TABLES[table]}
    return table, row
