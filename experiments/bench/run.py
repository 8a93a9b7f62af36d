"""The result of a training as a row: what its run directory holds, on one line."""

import csv
import datetime
import json
from pathlib import Path
from typing import Any

from experiments.bench.record import append
from experiments.command import CommandParser, run

METRICS = ("test/bleu", "test/bleu_moses_lowercase", "test/chrf", "test/loss", "test/perplexity")


def main(argv: list[str]) -> int:
    """Print the row, and append it to ``experiments/results/runs.csv`` if asked to."""
    return run(_main, argv)


def _main(argv: list[str]) -> None:
    parser = CommandParser("python -m experiments bench run", __doc__ or "")
    parser.add_argument("run_dir", help="directory of a run that was tested")
    parser.add_argument("--record", action="store_true", help="append the row to experiments/results/runs.csv")
    options = parser.parse_args(argv)
    row = summarize(Path(options.run_dir))
    for name, value in row.items():
        print(f"{name:<28} {value}")
    if options.record:
        print(append("runs", [row]))


def summarize(directory: Path) -> dict[str, Any]:
    """Return date, commit, hardware, versions, steps, minutes and test scores of a run.

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
        tested = [row for row in rows if row.get("test/loss")][-1]
    except (OSError, IndexError) as error:
        raise ValueError(f"{directory} is not the directory of a run that was tested: {error}") from error
    begun = (directory / "command.txt").stat().st_mtime
    ended = (directory / "metrics.csv").stat().st_mtime
    changed = (directory / "git.diff").stat().st_size > 0
    gpus = environment["gpus"]
    return {
        "date": datetime.datetime.fromtimestamp(begun, datetime.UTC).strftime("%Y-%m-%d"),
        "commit": git[0].removeprefix("commit: ")[:10] + ("+" if changed else ""),
        "hardware": gpus[0] if gpus else f"{environment['cpu']}, {environment['threads']} threads",
        "torch": environment["torch"],
        "lightning": environment["packages"]["lightning"],
        "config": next((word for word in command if word.endswith(".yaml")), ""),
        "steps": max(int(row["step"]) for row in rows),
        "minutes": round((ended - begun) / 60, 1),
        **{name: round(float(tested[name]), 3) for name in METRICS},
    }
