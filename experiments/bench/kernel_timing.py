"""Time on a device: rotating inputs, CUDA graphs, providers that take turns, peak memory and the device's two roofs.

Everything runs on a CPU too, where there are no graphs. What is measured is one pass over all sets of inputs: together
the sets are larger than the cache, so that no call finds its inputs there.
"""

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Direction = Literal["forward", "backward", "training", "evaluation"]
Outputs = tuple[Tensor, ...]

ROTATED_BYTES = {"cuda": 128 * 2**20, "cpu": 0}
MOST_SETS = 32
BLOCK_SECONDS = 2e-3
"""A block of passes lasts at least this long between two readings of the clock."""
SECONDS_EACH = {"cuda": 0.2, "cpu": 0.1}
FEWEST_ROUNDS, MOST_ROUNDS = 5, 50
GRAPH_CALLS = 16


@dataclass(frozen=True)
class Call:
    """A provider's function on one set of inputs.

    Attributes:
        forward: Computes the outputs.
        leaves: The inputs whose gradients are asked for.
        upstream: Gradient of each output.
    """

    forward: Callable[[], Outputs]
    leaves: Sequence[Tensor]
    upstream: Sequence[Tensor]

    def gradients(self, outputs: Outputs, *, again: bool = False, some: bool = False) -> tuple[Tensor | None, ...]:
        """Return the gradients of the leaves; ``again`` keeps the graph, ``some`` gives None where there is none."""
        return torch.autograd.grad(outputs, self.leaves, self.upstream, retain_graph=again, allow_unused=some)


@dataclass(frozen=True)
class Task:
    """What the clock is put to.

    Attributes:
        run: One pass.
        calls: Calls of the provider in a pass.
        context: Entered around the timed block, so that choosing a backend is not timed.
        kept: What must live as long as ``run`` does: a graph replays into memory that its outputs hold.
    """

    run: Callable[[], object]
    calls: int
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    kept: Any = None


class Clock:
    """Seconds of device time between two points of a stream, by events on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def seconds(self, run: Callable[[], object], repeats: int = 1) -> float:
        """Return the seconds of one of ``repeats`` runs; where the host is slower than the device, the host's."""
        if self.device.type != "cuda":
            started = time.perf_counter()
            for _ in range(repeats):
                run()
            return (time.perf_counter() - started) / repeats
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Work on a stream of its own on a GPU.

    A backward runs on the stream of its forward, and the default stream cannot be captured.
    """
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def sets_to_rotate(device: torch.device, bytes_of_a_set: int) -> int:
    """Return how many sets of inputs exceed the last-level cache together: at least two."""
    needed = math.ceil(ROTATED_BYTES[device.type] / max(1, bytes_of_a_set))
    return min(MOST_SETS, max(2, needed))


def eager_task(direction: Direction, calls: Sequence[Call], context: Callable[[], Any]) -> Task:
    """Return a pass over all sets, as a program without graphs runs it."""
    with context():
        outputs = [call.forward() for call in calls] if direction == "backward" else []
    return Task(_pass(direction, calls, outputs), len(calls), context, outputs)


def graph_task(direction: Direction, calls: Sequence[Call], context: Callable[[], Any]) -> Task:
    """Return a captured pass: several calls for each set, launched at once.

    Of a backward the forward is captured too: what dropout keeps for its backward differs inside and outside a graph.

    Raises:
        RuntimeError: If something waits for the device or cannot be captured.
    """
    repeats = math.ceil(GRAPH_CALLS / len(calls)) if _is_short(direction, calls, context) else 1
    outputs: list[Outputs] = []
    with context():
        forward = None
        if direction == "backward":
            forward = capture(lambda: outputs.extend(call.forward() for call in calls))
            forward.replay()
        run = _pass(direction, calls, outputs)
        graph = capture(lambda: [run() for _ in range(repeats)])
    return Task(graph.replay, len(calls) * repeats, nullcontext, (forward, outputs, graph))


def _pass(direction: Direction, calls: Sequence[Call], outputs: Sequence[Outputs]) -> Callable[[], None]:
    def forward() -> None:
        for call in calls:
            call.forward()

    def evaluation() -> None:
        with torch.no_grad():
            forward()

    def backward() -> None:
        for call, output in zip(calls, outputs, strict=True):
            call.gradients(output, again=True)

    def training() -> None:
        for call in calls:
            call.gradients(call.forward())

    return {"forward": forward, "evaluation": evaluation, "backward": backward, "training": training}[direction]


def _is_short(direction: Direction, calls: Sequence[Call], context: Callable[[], Any]) -> bool:
    """Run one pass that must not wait for the device, and return whether a call takes less than a millisecond."""
    task = eager_task(direction, calls, context)
    clock = Clock(calls[0].leaves[0].device)
    with context(), without_waiting():
        task.run()
    with context():
        return clock.seconds(task.run) / task.calls < 1e-3


@contextmanager
def without_waiting() -> Iterator[None]:
    """Make torch raise where the host would wait for the GPU: such code breaks a capture half-way."""
    if not torch.cuda.is_available():
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def capture(run: Callable[[], object]) -> Any:
    """Return a CUDA graph of what a function launches on the current stream."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        run()
    return graph


def measure(tasks: Mapping[str, Task], clock: Clock, seconds_each: float | None = None) -> dict[str, list[float]]:
    """Time tasks in turn, so that a device that drifts drifts for all of them.

    Args:
        tasks: By name.
        clock: Of the device.
        seconds_each: About how long each is timed altogether; slow ones get fewer rounds, at least five.

    Returns:
        Seconds of one call in each round, by name.
    """
    budget = SECONDS_EACH[clock.device.type] if seconds_each is None else seconds_each
    repeats, rounds = {}, {}
    for name, task in tasks.items():
        with task.context():
            clock.seconds(task.run)
            once = max(clock.seconds(task.run), 1e-9)
        repeats[name] = math.ceil(BLOCK_SECONDS / once)
        rounds[name] = min(MOST_ROUNDS, max(FEWEST_ROUNDS, int(budget / (once * repeats[name]))))
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(max(rounds.values(), default=0)):
        for name, task in tasks.items():
            if number < rounds[name]:
                with task.context():
                    seconds[name].append(clock.seconds(task.run, repeats[name]) / task.calls)
    return seconds


def spread_percent(seconds: Sequence[float]) -> float:
    """Return half the distance between the quartiles, in percent of the median: smaller differences are noise."""
    low, middle, high = statistics.quantiles(seconds, n=4)
    return 50.0 * (high - low) / middle


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Return how many times faster the second is: the median over the rounds that both took part in."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=False))


def peak_bytes(call: Call, device: torch.device) -> int:
    """Return how many bytes a forward and its backward take at most, beside their inputs."""
    if device.type == "cuda":
        release(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call.gradients(call.forward())
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library talks of missing GPUs
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        gradients = call.gradients(call.forward())
    del gradients
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def release(device: torch.device) -> None:
    """Give back what finished measurements held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Roofs:
    """What the device reached in this run.

    Attributes:
        tflops: 10^12 floating-point operations a second of a large ``torch.mm`` in the benchmark's dtype.
        gb_per_second: 10^9 bytes a second, read and written, of a large copy.
    """

    tflops: float
    gb_per_second: float

    def of(self, unit: str) -> float:
        """Return the roof of what is counted in "TFLOP/s" or "GB/s"."""
        return self.tflops if unit == "TFLOP/s" else self.gb_per_second


def measure_roofs(device: torch.device, dtype: torch.dtype) -> Roofs:
    """Time a matrix product and a copy that are both too large for the cache, on random numbers."""
    clock = Clock(device)
    size, elements = (8192, 2**30) if device.type == "cuda" else (1024, 2**25)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.empty(elements, device=device, dtype=torch.uint8).random_()
    target = torch.empty_like(source)
    tasks = {
        "mm": Task(lambda: torch.mm(left, right, out=product), 1),
        "copy": Task(lambda: target.copy_(source), 1),
    }
    measure(tasks, clock)  # an idle GPU takes a while to come to its clock rate
    seconds = {name: statistics.median(times) for name, times in measure(tasks, clock).items()}
    return Roofs(2 * size**3 / seconds["mm"] / 1e12, 2 * elements / seconds["copy"] / 1e9)
