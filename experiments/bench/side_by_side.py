"""Providers that take turns on one piece of work: what they took, and how many times faster one is than another."""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from experiments import quiet
from experiments.bench.kernel_timing import Clock

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Times:
    """Seconds of each round.

    Attributes:
        wall: Of the device: by the clock on the wall, or by events on a GPU.
        cpu: Of the process on all its cores, which other processes on the machine disturb less.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def take_turns(
    tasks: Mapping[str, Callable[[], object]], rounds: int, *, repeats: int = 1, device: torch.device | None = None
) -> dict[str, Times]:
    """Time tasks in turn, so that a machine that drifts drifts for all of them; each is run once before.

    Args:
        tasks: Name and what to time.
        rounds: Times each is timed.
        repeats: Runs in a round; a round's time is that of one.
        device: Where the work is done; default the CPU.

    Returns:
        Seconds of each round, by name.
    """
    clock = Clock(device or torch.device("cpu"))
    for task in tasks.values():
        task()
    times = {name: Times() for name in tasks}
    for number in range(rounds):
        # Every other round backwards: who comes first after a pause of the machine has no advantage.
        for name, task in list(tasks.items())[:: -1 if number % 2 else 1]:
            started = time.process_time()
            times[name].wall.append(clock.seconds(task, repeats))
            times[name].cpu.append((time.process_time() - started) / repeats)
    return times


def compare(times: Times, ours: Times, *, on_gpu: bool = False) -> dict[str, str | float]:
    """Return how many times as long as ours another's rounds took.

    Args:
        times: The other's.
        ours: Ours.
        on_gpu: Leave the time of the processor out.

    Returns:
        ``heddle_is_faster_by``, the median over the rounds, ``quartiles`` of it, and ``by_cpu_time``, the same median
        of the processor's time.
    """
    ratios = _ratios(times.wall, ours.wall)
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "heddle_is_faster_by": round(statistics.median(ratios), 3),
        "quartiles": f"{low:.2f}-{high:.2f}",
        "by_cpu_time": "" if on_gpu else round(statistics.median(_ratios(times.cpu, ours.cpu)), 3),
    }


def _ratios(times: Sequence[float], ours: Sequence[float]) -> list[float]:
    return [theirs / own for theirs, own in zip(times, ours, strict=True)]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return autocast to bfloat16, or for float32 a context that changes nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def step_peak(step: Callable[[], object], device: torch.device) -> int | str:
    """Return the megabytes of GPU memory that a step takes at most beside what is there; empty on a CPU."""
    if device.type != "cuda":
        return ""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return round((torch.cuda.max_memory_allocated(device) - before) / 2**20)


def add_options(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add what all comparisons take: rounds, threads, seed and whether to record."""
    parser.add_argument("--rounds", type=positive, default=rounds, help="rounds of each provider; medians are reported")
    parser.add_argument("--threads", type=positive, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0, help="of weights, images and draws")
    parser.add_argument("--record", action="store_true", help="append the rows to experiments/results")


def prepare(options: argparse.Namespace, threads: int | None = None) -> torch.device:
    """Set what :func:`add_options` takes and where to be quiet, and return the device to measure on.

    Args:
        options: With ``threads``.
        threads: CPU threads if the options say nothing; None leaves torch's.
    """
    quiet.install()
    if wanted := options.threads or threads:
        torch.set_num_threads(wanted)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def positive(text: str) -> int:
    """Read a whole number of 1 or more.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of 1 or more")
    return number


def print_rows(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as a table."""
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)).rstrip())
