"""Shifted-window attention beside others: GB/s against a copy's, forward and backward apart, in one run.

Shapes (``--shapes``): ``swin``, the four stages of Swin-T at 224 pixels (maps of 56 to 7, window 7), ``swinv2``, those
of SwinV2-T at 256 (maps of 64 to 8, window 8, cosine attention), and ``swinv2_16``, its first three with window 16;
each without and with the shift, but a map of one window, which no network shifts. Batches have 128 images on a GPU and
2 on a CPU, or ``--batch-size``. ``--all-configs`` times this project's kernels with every entry of their launch table
instead of other libraries.

All take one projection, (batch, height, width, 3 · channels), and a table, and give the map (batch, height, width,
channels). The networks that others compute this in roll and cut the map in front of the projection, where it has a
third of the channels that are rolled and cut here: ``bench classification`` compares whole networks.

Bytes are those of the tensors that must be read or written once each, ``batch · height · width · channels`` elements
apiece: 4 in a forward (queries, keys, values, output) and 7 in a backward (queries, keys, values, upstream; three
gradients). The bias table weighs nothing beside them.
"""

import argparse
import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from experiments.bench.kernel_case import Case, Inputs
from experiments.bench.kernel_run import Benchmark, Session, parse, run_benchmark
from experiments.bench.kernel_timing import Direction, Outputs
from experiments.bench.window_attention_providers import (
    NAMES,
    PROVIDERS,
    eager,
    entry_providers,
    region_ids,
    relative_index,
    shift_mask,
)
from experiments.command import run
from experiments.errors import UsageError

IMAGES, IMAGES_ON_CPU = 128, 2


@dataclass(frozen=True)
class WindowCase(Case):
    """Shapes of a shifted-window attention.

    Attributes:
        batch: Images; 0 for 128, or for 2 where the case is shrunk.
        size: Rows and columns of the map.
        heads: Heads of query, key and value.
        head_dim: Width of a head.
        window: Rows and columns of a window, which divide the map's.
        shift: Rows and columns that the map is rolled by.
        cosine: Whether the scores are cosines times a factor of each head, as in Swin V2.
    """

    batch: int = 0
    size: int = 7
    heads: int = 1
    head_dim: int = 32
    window: int = 7
    shift: int = 0
    cosine: bool = False

    @property
    def map_size(self) -> tuple[int, int, int]:
        """Batch, rows and columns."""
        return self.batch or IMAGES, self.size, self.size

    @property
    def channels(self) -> int:
        """Width of the map."""
        return self.heads * self.head_dim

    @property
    def label(self) -> str:
        """Batch x height x width x channels, the window, and what the case has besides."""
        sizes = "x".join(map(str, (*self.map_size, self.channels)))
        return f"{sizes} window {self.window}" + f" shift {self.shift}" * bool(self.shift) + " cosine" * self.cosine

    def work(self, direction: Direction, itemsize: int) -> float:
        """Return the bytes of the tensors that a direction must read or write; see the top of this file."""
        tensors = 4 if direction == "forward" else 7
        return tensors * math.prod(self.map_size) * self.channels * itemsize

    def make(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """Return a random projection and table, and the index and mask that the others keep between calls."""
        tensors = {
            "qkv": torch.randn(*self.map_size, 3 * self.channels, device=device, dtype=dtype),
            "table": torch.randn((2 * self.window - 1) ** 2, self.heads, device=device, dtype=dtype),
        }
        if self.cosine:
            tensors["logit_scale"] = torch.empty(self.heads, device=device, dtype=dtype).uniform_(5.0, 20.0)
        leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
        upstream = torch.randn(*self.map_size, self.channels, device=device, dtype=dtype)
        kept = _kept(self.size, self.window, self.shift, device, dtype)
        return Inputs({"logit_scale": None, **leaves, **kept}, tuple(leaves), (upstream,))

    def plain(self, inputs: Inputs) -> Outputs:
        """Return the map that rolling, cutting and computing every score gives."""
        arguments = [*(inputs[name] for name in NAMES), self.window, self.shift]
        return (eager(*arguments),)

    def shrunk(self) -> "WindowCase":
        """Return the case with two images, or as many as were asked for."""
        return replace(self, batch=self.batch or IMAGES_ON_CPU)

    def without_dropout(self) -> "WindowCase":
        """Return the case itself."""
        return self


@lru_cache(maxsize=1)
def _kept(size: int, window: int, shift: int, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """Return what depends on the shape alone; all sets of inputs share it."""
    regions = region_ids(size, window, shift)
    mask = shift_mask(regions).to(device, dtype) if shift else None
    return {"relative": relative_index(window).to(device), "regions": regions.to(device), "mask": mask}


def _stages(group: str, size: int, window: int, cosine: bool) -> list[Case]:
    """Return the stages of a network that fill a window, each without and, where they have several, with the shift."""
    return [
        WindowCase(
            group,
            unit="GB/s",
            records_memory=True,
            size=size // 2**stage,
            heads=3 * 2**stage,
            window=window,
            shift=shift,
            cosine=cosine,
        )
        for stage in range(4)
        if size // 2**stage >= window
        for shift in ((0, window // 2) if size // 2**stage > window else (0,))
    ]


CASES = [
    *_stages("swin", 56, 7, cosine=False),
    *_stages("swinv2", 64, 8, cosine=True),
    *_stages("swinv2_16", 64, 16, cosine=True),
]
BENCHMARK = Benchmark("window_attention", __doc__ or "", CASES, PROVIDERS, memory_baseline="eager")


def main(argv: list[str]) -> int:
    """Measure, print, and record and draw if asked to."""
    return run(_main, argv)


def _main(argv: list[str]) -> None:
    options = parse(
        BENCHMARK,
        argv,
        numbers={"batch_size": f"images; {IMAGES} on a GPU and {IMAGES_ON_CPU} on a CPU if not given"},
        all_configs="time every entry of the launch table instead of other libraries (GPU)",
    )
    if not options.all_configs:
        run_benchmark(Session(with_batch(BENCHMARK, options.batch_size), options))
        return
    if not torch.cuda.is_available():
        raise UsageError("--all-configs needs a GPU: on a CPU no kernel runs, so there are no entries")
    if options.providers != "all":
        raise UsageError("--all-configs compares this project's entries: --providers does not go with it")
    for session in entry_sessions(options):
        run_benchmark(session)


def entry_sessions(options: argparse.Namespace) -> list[Session]:
    """Return a session for each direction in which the providers are this project's launch entries."""
    benchmark = replace(with_batch(BENCHMARK, options.batch_size), name="window_attention_entries", memory_baseline="")
    forward = entry_providers(["forward"])
    backward = entry_providers(["backward_window", "backward_query", "backward_key_value", "backward_bias"])
    return [
        Session(benchmark, options, providers=forward, directions=("forward",)),
        Session(benchmark, options, providers=backward, directions=("backward",)),
    ]


def with_batch(benchmark: Benchmark, images: int | None) -> Benchmark:
    """Return the benchmark with so many images in every case; None for as many as the device takes."""
    cases = [replace(case, batch=images or 0) for case in benchmark.cases if isinstance(case, WindowCase)]
    return replace(benchmark, cases=cases)
