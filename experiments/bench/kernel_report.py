"""What a kernel benchmark found, as a table, as rows and in a few lines."""

import importlib.metadata
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from experiments.bench.kernel_case import OURS, Case, Refusal
from experiments.bench.kernel_timing import Direction, Roofs, ratio, spread_percent
from experiments.bench.record import measured_on


@dataclass
class Result:
    """What was found of one provider on one case.

    Attributes:
        refusal: Why it was not timed, None if it was.
        seconds: Of one call in each round, by direction and timing ("graph", "eager").
        peak_bytes: What a forward and its backward take beside their inputs, None if not measured.
        notes: What else is to be said.
    """

    refusal: Refusal | None = None
    seconds: dict[tuple[Direction, str], list[float]] = field(default_factory=dict)
    peak_bytes: int | None = None
    notes: list[str] = field(default_factory=list)

    def in_race(self, direction: Direction, timing: str) -> list[float] | None:
        """Return the seconds of a direction, None if the provider was not timed or is out."""
        return None if self.refusal else self.seconds.get((direction, timing))


@dataclass(frozen=True)
class Report:
    """All providers on one case.

    Attributes:
        case: What was measured.
        dtype: Of the inputs.
        timings: "graph" and "eager", the one that counts first.
        roofs: What the device reached in this run.
        results: By provider.
        on_gpu: Whether times are worth giving; on a shared CPU only rates and ratios are.
        memory_baseline: The provider whose peak memory others are compared with; empty for none.
    """

    case: Case
    dtype: str
    timings: Sequence[str]
    roofs: Roofs
    results: Mapping[str, Result]
    on_gpu: bool
    memory_baseline: str = ""

    def directions(self) -> list[Direction]:
        """Return the directions that were timed, in the case's order."""
        timed = {direction for result in self.results.values() for direction, _ in result.seconds}
        return [direction for direction in self.case.directions if direction in timed]

    def best_other(self, direction: Direction, timing: str) -> str | None:
        """Return the fastest provider that is right and not this project, None if there is none."""
        others = {
            name: statistics.median(seconds)
            for name, result in self.results.items()
            if name != OURS and (seconds := result.in_race(direction, timing))
        }
        return min(others, key=others.__getitem__) if others else None

    def over_best_other(self, name: str, direction: Direction, timing: str) -> float | None:
        """Return how many times faster a provider is than the best other one, None if either has no time."""
        best, seconds = self.best_other(direction, timing), self.results[name].in_race(direction, timing)
        if best is None or seconds is None:
            return None
        return ratio(self.results[best].seconds[direction, timing], seconds)

    def rate(self, seconds: Sequence[float], direction: Direction) -> float:
        """Return TFLOP/s or GB/s."""
        itemsize = getattr(torch, self.dtype).itemsize
        scale = 1e12 if self.case.unit == "TFLOP/s" else 1e9
        return self.case.work(direction, itemsize) / statistics.median(seconds) / scale

    def memory_share(self, name: str) -> float | None:
        """Return a provider's peak memory over the baseline's."""
        base = self.results.get(self.memory_baseline, Result()).peak_bytes
        peak = self.results[name].peak_bytes
        return peak / base if base and peak is not None else None

    def our_fault(self) -> str:
        """Return why this project has no time, empty if it has."""
        found = self.results.get(OURS, Result()).refusal
        return f"{OURS} {found.status}: {found.reason}" if found else ""

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each direction and timing of each provider, one for a provider that was not timed."""
        rows = []
        for name, result in self.results.items():
            if result.refusal:
                rows.append(self._row(name, status=result.refusal.status, note=result.refusal.reason))
                continue
            for direction in self.directions():
                for timing in self.timings:
                    if seconds := result.in_race(direction, timing):
                        rows.append(self._timed_row(name, direction, timing, seconds))
        return rows

    def _timed_row(self, name: str, direction: Direction, timing: str, seconds: Sequence[float]) -> dict[str, Any]:
        rate, roof = self.rate(seconds, direction), self.roofs.of(self.case.unit)
        over, peak = self.over_best_other(name, direction, timing), self.results[name].peak_bytes
        share = self.memory_share(name)
        return self._row(
            name,
            direction=direction,
            timing=timing,
            milliseconds=f"{statistics.median(seconds) * 1e3:.4g}" if self.on_gpu else "",
            spread_percent=f"{spread_percent(seconds):.1f}",
            rate=f"{rate:.4g}",
            unit=self.case.unit,
            times_best_other="" if over is None else f"{over:.3f}",
            best_other=self.best_other(direction, timing) or "",
            percent_of_roof=f"{100 * rate / roof:.1f}",
            roof=f"{roof:.4g}",
            peak_mb="" if peak is None else f"{peak / 1e6:.4g}",
            peak_share="" if share is None else f"{share:.3f}",
            status="right",
            note="; ".join(note for note in self.results[name].notes if note.startswith(direction)),
        )

    def _row(self, name: str, **values: Any) -> dict[str, Any]:
        values |= {"group": self.case.group, "shape": self.case.label, "dtype": self.dtype, "provider": name}
        return {column: values.get(column, "") for column in COLUMNS}

    def table(self) -> str:
        """Return the case as text: for each direction the providers, the fastest first, then who was not timed."""
        lines = [f"\n{self.case.group} {self.case.label} ({self.dtype})"]
        heads = ["direction", "provider"]
        heads += [f"{timing} ms" for timing in self.timings] if self.on_gpu else []
        heads += ["±%", self.case.unit, "% of roof"]
        heads += [f"x best other, {timing}" for timing in self.timings]
        heads += ["peak MB"] if self.case.records_memory else []
        heads += [f"of {self.memory_baseline}"] if self.memory_baseline else []
        body = [line for direction in self.directions() for line in self._direction_lines(direction)]
        lines += _aligned([heads, *body])
        for name, result in self.results.items():
            if result.refusal:
                lines.append(f"  {name}: {result.refusal.status}: {result.refusal.reason}")
            lines += [f"  {name}: {note}" for note in result.notes]
        return "\n".join(lines)

    def _direction_lines(self, direction: Direction) -> list[list[str]]:
        rows = {(row["provider"], row["timing"]): row for row in self.rows() if row["direction"] == direction}
        lines = []
        for name in dict.fromkeys(name for name, _ in rows):
            of_timing = [rows.get((name, timing), dict.fromkeys(COLUMNS, "-")) for timing in self.timings]
            counts = next(row for row in of_timing if row["rate"] != "-")
            cells = [direction, name]
            cells += [row["milliseconds"] for row in of_timing] if self.on_gpu else []
            cells += [counts["spread_percent"], counts["rate"], counts["percent_of_roof"]]
            cells += [row["times_best_other"] for row in of_timing]
            cells += [counts["peak_mb"]] if self.case.records_memory else []
            cells += [counts["peak_share"]] if self.memory_baseline else []
            lines.append((-float(counts["rate"]), cells))
        return [cells for _, cells in sorted(lines)]


COLUMNS = (
    "group",
    "shape",
    "dtype",
    "provider",
    "direction",
    "timing",
    "milliseconds",
    "spread_percent",
    "rate",
    "unit",
    "times_best_other",
    "best_other",
    "percent_of_roof",
    "roof",
    "peak_mb",
    "peak_share",
    "status",
    "note",
)


def columns(context: Mapping[str, str]) -> list[str]:
    """Return the columns of a file of rows, those of what was measured on first."""
    return [*context, *COLUMNS]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with the columns aligned, words to the left and numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def summary(reports: Sequence[Report]) -> str:
    """Return for each group and direction how many times faster this project is than each other provider.

    CUDA graphs count on a GPU; against a provider that has none of a shape, the eager times of both.
    """
    found: dict[tuple[str, Direction], dict[str, list[float]]] = {}
    for report in reports:
        for direction in report.directions():
            ratios = found.setdefault((report.case.group, direction), {})
            for name, value in _ratios(report, direction).items():
                ratios.setdefault(name, []).append(value)
    lines = [f"\n{OURS} is faster by (range over the shapes that both ran):"]
    for (group, direction), ratios in found.items():
        parts = [f"{name} {min(values):.2f}-{max(values):.2f}" for name, values in ratios.items()]
        lines.append(f"  {group} {direction}: {', '.join(parts) or 'nobody else ran'}")
    return "\n".join(lines)


def _ratios(report: Report, direction: Direction) -> dict[str, float]:
    """Return by how much this project is faster than the best other provider and than each."""
    ratios: dict[str, float] = {}
    for timing in report.timings:
        ours = report.results[OURS].in_race(direction, timing) if OURS in report.results else None
        best = report.best_other(direction, timing)
        if ours is None or best is None:
            continue
        theirs = {"best other": report.results[best].in_race(direction, timing)}
        theirs |= {name: result.in_race(direction, timing) for name, result in report.results.items() if name != OURS}
        for name, seconds in theirs.items():
            if seconds:
                ratios.setdefault(name, ratio(seconds, ours))
    return ratios


def measured_with(on_gpu: bool) -> dict[str, str]:
    """Return date, commit, hardware and driver, and the versions that matter for a kernel."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = ""
    cudnn = str(torch.backends.cudnn.version()) if on_gpu else ""
    return {
        **measured_on(("torch",)),
        "driver": driver() if on_gpu else "",
        "cuda": (torch.version.cuda or "") if on_gpu else "",
        "cudnn": cudnn,
        "triton": triton,
    }


def driver() -> str:
    """Return the version of the NVIDIA driver, empty if nobody can tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    match = re.search(r"[\d.]+", done.stdout)
    return match.group() if match else ""


def heading(context: Mapping[str, str], dtype: torch.dtype, roofs: Roofs) -> str:
    """Return what was measured on, and the roofs."""
    versions = ", ".join(f"{name} {value}" for name, value in context.items() if value)
    return (
        f"{versions}\nroofs of this run: {roofs.tflops:.4g} TFLOP/s (torch.mm in {str(dtype).removeprefix('torch.')}), "
        f"{roofs.gb_per_second:.4g} GB/s (copy, read and written)"
    )
