"""Rows of measurements in ``experiments/results/``, each with what it was measured on."""

import csv
import datetime
import importlib.metadata
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.environment import cpu_model, describe_git

RESULTS = Path(__file__).resolve().parents[1] / "results"


def record(name: str, rows: Sequence[Mapping[str, Any]], packages: Sequence[str] = ("torch",)) -> Path:
    """Append rows to ``experiments/results/NAME.csv``, adding date, commit, hardware and versions to each.

    Args:
        name: Stem of the file.
        rows: Measured values, with the same keys in every row.
        packages: Distributions whose versions matter.

    Returns:
        The file.

    Raises:
        ValueError: If the file has other columns.
    """
    context = measured_on(packages)
    return append(name, [{**context, **row} for row in rows])


def append(name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Append complete rows to ``experiments/results/NAME.csv``.

    Raises:
        ValueError: If the file has other columns.
    """
    columns = list(rows[0])
    path, exists = check_columns(name, columns)
    RESULTS.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if not exists:
            writer.writeheader()
        writer.writerows(rows)
    return path


def check_columns(name: str, columns: Sequence[str]) -> tuple[Path, bool]:
    """Return the file of a benchmark and whether it has rows.

    Raises:
        ValueError: If it has other columns.
    """
    path = RESULTS / f"{name}.csv"
    if not path.exists() or path.stat().st_size == 0:
        return path, False
    with path.open(encoding="utf-8", newline="") as file:
        header = next(csv.reader(file))
    if header != list(columns):
        raise ValueError(f"{path} has the columns {header}, the new rows have {list(columns)}: move it away")
    return path, True


def measured_on(packages: Sequence[str]) -> dict[str, str]:
    """Return date, commit (with ``+`` after it if the tree was changed), hardware and versions.

    A copy without its ``.git`` does not know its commit: there it is taken from ``HEDDLE_COMMIT``.
    """
    import torch

    state, difference = describe_git()
    commit = state.splitlines()[0].removeprefix("commit: ").split()[0][:10]
    if commit == "unknown":
        commit = os.environ.get("HEDDLE_COMMIT") or commit
    cuda = torch.cuda.is_available()
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": commit + ("+" if difference else ""),
        "hardware": torch.cuda.get_device_name() if cuda else f"{cpu_model()}, {torch.get_num_threads()} threads",
        **{package: importlib.metadata.version(package) for package in packages},
    }


def alternate(tasks: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time tasks in turn, so that a machine that drifts drifts for all of them.

    Args:
        tasks: Name and what to time.
        rounds: Times each is timed.

    Returns:
        Seconds of each round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Return the median over rounds of ``slow / fast``: how many times faster the second is."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))
