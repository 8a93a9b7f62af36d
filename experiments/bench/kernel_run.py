"""A kernel benchmark from its command line to its rows: check, time in turns, print, record, draw."""

import argparse
import importlib.util
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from experiments.bench import kernel_report
from experiments.bench.kernel_case import (
    Built,
    Case,
    Check,
    Inputs,
    NotSupported,
    Provider,
    Refusal,
    bind,
    in_turns,
    refusal,
    refusal_from,
)
from experiments.bench.kernel_report import Result
from experiments.bench.kernel_timing import (
    Clock,
    Direction,
    Task,
    eager_task,
    graph_task,
    measure,
    measure_roofs,
    own_stream,
    peak_bytes,
    release,
    sets_to_rotate,
)
from experiments.bench.record import RESULTS, append, check_columns
from experiments.bench.side_by_side import positive
from experiments.command import CommandParser
from experiments.errors import UsageError, near_miss

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
CPU_SECONDS = 20.0


@dataclass(frozen=True)
class Benchmark:
    """What one command measures.

    Attributes:
        name: The word after ``bench``.
        description: For ``--help``.
        cases: Every shape.
        providers: By name, this project's first.
        memory_baseline: The provider whose peak memory others are compared with; empty for none.
    """

    name: str
    description: str
    cases: Sequence[Case]
    providers: Mapping[str, Provider]
    memory_baseline: str = ""


def default_device() -> torch.device:
    """Return the GPU if torch sees one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _compile_on_cpu(case: Case, inputs: Inputs) -> Built:
    raise NotSupported("on a CPU only if --providers names it: compiling takes longer than everything else")


@dataclass
class Session:
    """One run of a benchmark.

    Attributes:
        benchmark: What is measured.
        options: The parsed command line.
        providers: By name; those of the command line if empty.
        directions: Those to time; every one of a case if empty.
    """

    benchmark: Benchmark
    options: argparse.Namespace
    providers: Mapping[str, Provider] = field(default_factory=dict)
    directions: tuple[Direction, ...] = ()
    device: torch.device = field(default_factory=default_device)

    def __post_init__(self) -> None:
        self.providers = self.providers or self._chosen_providers()

    def _chosen_providers(self) -> Mapping[str, Provider]:
        every = self.benchmark.providers
        if self.options.providers == "all":
            on_cpu = {name: _compile_on_cpu for name in every if name.startswith("compile")}
            return dict(every) if self.on_gpu else {**every, **on_cpu}
        return {name: every[name] for name in _words("--providers", self.options.providers, every)}

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU: only then are there graphs, and times that are worth printing."""
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the inputs."""
        return DTYPES[self.options.dtype or ("bfloat16" if self.on_gpu else "float32")]

    @property
    def timings(self) -> tuple[str, ...]:
        """How passes are launched; the first counts."""
        return ("graph", "eager") if self.on_gpu else ("eager",)

    def cases(self) -> list[Case]:
        """Return the chosen cases, those that say most first, small ones on a CPU."""
        groups = list(dict.fromkeys(case.group for case in self.benchmark.cases))
        chosen = groups if self.options.shapes == "all" else _words("--shapes", self.options.shapes, groups)
        cases = [case for case in self.benchmark.cases if case.group in chosen]
        return in_turns(cases if self.on_gpu else list(dict.fromkeys(case.shrunk() for case in cases)))


def parse(
    benchmark: Benchmark, argv: list[str], numbers: Mapping[str, str] | None = None, **flags: str
) -> argparse.Namespace:
    """Parse the command line of a benchmark.

    Args:
        benchmark: Whose shapes and providers may be named.
        argv: The words after its name.
        numbers: Further options with a whole number of 1 or more, None if not given, and what ``--help`` says of each.
        flags: Further options without a value, and what ``--help`` says of each.

    Raises:
        UsageError: If a word is unknown.
    """
    parser = CommandParser(f"python -m experiments bench {benchmark.name}", benchmark.description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    groups = list(dict.fromkeys(case.group for case in benchmark.cases))
    parser.add_argument("--shapes", default="all", help=f"all (default), or some with commas: {', '.join(groups)}")
    providers = ", ".join(benchmark.providers)
    parser.add_argument("--providers", default="all", help=f"all (default), or some with commas: {providers}")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="bfloat16 on a GPU, float32 on a CPU if not given")
    parser.add_argument("--seconds", type=float, help="start no further shape after this many seconds")
    parser.add_argument("--seed", type=int, default=1, help="of the inputs")
    parser.add_argument("--record", action="store_true", help="append the rows to experiments/results")
    picture = str(RESULTS / f"kernel_{benchmark.name}.png")
    parser.add_argument(
        "--plot", nargs="?", const=picture, help="draw a PNG; in experiments/results if no file is named"
    )
    for name, description in (numbers or {}).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=positive, help=description)
    for name, description in flags.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=description)
    options = parser.parse_args(argv)
    if options.seconds is not None and not options.seconds > 0:
        raise UsageError(f"--seconds must be more than 0, got {options.seconds:g}")
    if options.shapes != "all":
        _words("--shapes", options.shapes, groups)
    if options.providers != "all":
        _words("--providers", options.providers, benchmark.providers)
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs the package matplotlib, which is not installed")
    if options.plot and not Path(options.plot).resolve().parent.is_dir() and options.plot != picture:
        raise UsageError(f"--plot: there is no directory {Path(options.plot).resolve().parent}")
    return options


def _words(option: str, text: str, known: Mapping[str, object] | Sequence[str]) -> list[str]:
    """Return the words of a list with commas.

    Raises:
        UsageError: If one is unknown.
    """
    words = list(dict.fromkeys(word.strip() for word in text.split(",")))
    for word in words:
        if word not in known:
            raise UsageError(f'{option}: there is no "{word}"{near_miss(word, known)}; there are: {", ".join(known)}')
    return words


def run_benchmark(session: Session) -> None:
    """Measure every case that the time allows and print it, then record and draw if asked to.

    Raises:
        SystemExit: With code 1 if this project's result was wrong or missing.
    """
    options = session.options
    torch.manual_seed(options.seed)
    budget = options.seconds or (float("inf") if session.on_gpu else CPU_SECONDS)
    started = time.perf_counter()
    measured: list[kernel_report.Report] = []
    left_out: list[Case] = []
    with own_stream(session.device):
        roofs = measure_roofs(session.device, session.dtype)
        context = kernel_report.measured_with(session.on_gpu)
        if options.record:  # not after minutes of measuring
            check_columns(f"kernel_{session.benchmark.name}", kernel_report.columns(context))
        print(kernel_report.heading(context, session.dtype, roofs), flush=True)
        for case in session.cases():
            spent = time.perf_counter() - started
            if measured and spent * (1 + 1 / len(measured)) > budget:
                left_out.append(case)
                continue
            results = measure_case(session, case)
            report = kernel_report.Report(
                case,
                str(session.dtype).removeprefix("torch."),
                session.timings,
                roofs,
                results,
                session.on_gpu,
                session.benchmark.memory_baseline,
            )
            measured.append(report)
            print(report.table(), flush=True)
            if options.record:
                append(f"kernel_{session.benchmark.name}", [{**context, **row} for row in report.rows()])
    print(kernel_report.summary(measured))
    if left_out:
        print(f"left out after {budget:g} s: {'; '.join(f'{case.group} {case.label}' for case in left_out)}")
    if options.plot:
        from experiments.bench.kernel_plot import draw

        print(draw(measured, context, Path(options.plot)))
    faults = [f"{report.case.label}: {fault}" for report in measured if (fault := report.our_fault())]
    if faults:
        print("error: " + "; ".join(faults), file=sys.stderr)
        raise SystemExit(1)


def measure_case(session: Session, case: Case) -> dict[str, Result]:
    """Check each provider on a case and time those that are right, in turns.

    Args:
        session: The device, the dtype and the providers.
        case: What to measure.

    Returns:
        The result of each provider.
    """
    results = {name: Result() for name in session.providers}
    try:
        first = case.make(session.device, session.dtype)
        rotated = sets_to_rotate(session.device, first.bytes())
        sets = [first, *(case.make(session.device, session.dtype) for _ in range(rotated - 1))]
        _check_all(session, case, first, results)
        for direction in session.directions or case.directions:
            for timing in session.timings:
                _time(session, case, sets, direction, timing, results)
        if case.records_memory:
            _record_peaks(session, case, first, results)
    except torch.OutOfMemoryError:
        for result in results.values():
            result.refusal = result.refusal or Refusal("not supported", "not enough memory for all that is compared")
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # it compiles only so many shapes of a function
    release(session.device)
    return results


def _check_all(session: Session, case: Case, inputs: Inputs, results: Mapping[str, Result]) -> None:
    check = Check(case, inputs)
    for name, provider in session.providers.items():
        results[name].refusal = refusal(check, provider)
        _check_device(session, name, case, results[name].refusal)


def _check_device(session: Session, name: str, case: Case, found: Refusal | None) -> None:
    """Stop if a provider left the GPU in a state in which nothing runs any more."""
    if not session.on_gpu or found is None:
        return
    try:
        torch.cuda.synchronize(session.device)
        torch.rand(1, device=session.device)
    except RuntimeError as stop:
        raise RuntimeError(f"{name} broke the GPU's context on {case.label} ({found.reason}); leave it out") from stop


def _time(
    session: Session,
    case: Case,
    sets: Sequence[Inputs],
    direction: Direction,
    timing: str,
    results: Mapping[str, Result],
) -> None:
    """Time one direction of all providers that are still in the race."""
    tasks: dict[str, Task] = {}
    for name, provider in session.providers.items():
        if results[name].refusal is not None:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                bound = [bind(provider, case, inputs) for inputs in sets]
                calls, context = [call for call, _ in bound], bound[0][1].context
                make = graph_task if timing == "graph" else eager_task
                task = make(direction, calls, context)
                with task.context():
                    task.run()
            tasks[name] = task
        except Exception as stop:  # foreign code: whatever it raises is its answer
            found = refusal_from(stop)
            _check_device(session, name, case, found)
            if timing == "graph":
                results[name].notes.append(f"{direction}: no CUDA graph: {found.reason}")
            else:
                results[name].refusal = found
    for name, seconds in measure(tasks, Clock(session.device)).items():
        results[name].seconds[direction, timing] = seconds
    tasks.clear()
    release(session.device)


def _record_peaks(session: Session, case: Case, inputs: Inputs, results: Mapping[str, Result]) -> None:
    for name, provider in session.providers.items():
        if results[name].refusal is None:
            call, built = bind(provider, case, inputs)
            with built.context():
                results[name].peak_bytes = peak_bytes(call, session.device)
