"""Attention beside other libraries: milliseconds and TFLOP/s, forward and backward apart, in one run.

Shapes (``--shapes``): ``deit`` (197 and 198 tokens), ``translation`` (20 to 256 tokens with dropout, causal and cross,
padded; ``causal`` alone is a decoder as this project runs it, whose padding comes last and needs no mask), ``detr``
(1050 and 4200 padded keys with dropout), ``long`` (2k to 16k tokens) and ``bias`` (a learned bias for every pair of
positions, with its gradient). ``--all-configs`` times this project's kernels with every tile instead.

A forward counts 4 operations for each visible pair of positions, head and element of a head, a backward 2.5 times as
many. Queries, keys and values are views of one projection, as networks make them. A backward includes the gradient of
the bias. Outputs and gradients are first compared with the plain formula in higher precision.
"""

import argparse
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from experiments.bench.attention_providers import PROVIDERS, plain_attention, tile_providers
from experiments.bench.kernel_case import Case, Inputs
from experiments.bench.kernel_run import Benchmark, Session, parse, run_benchmark
from experiments.bench.kernel_timing import Direction, Outputs
from experiments.command import run
from experiments.errors import UsageError


@dataclass(frozen=True)
class AttentionCase(Case):
    """Shapes of an attention.

    Attributes:
        batch: Examples.
        heads: Heads of query, key and value.
        query_length: Queries.
        key_length: Keys; equal to the queries in self-attention.
        head_dim: Width of a head.
        causal: Whether a query sees no later key.
        shortest: The batch is padded: its lengths are spread evenly from here to ``key_length``. 0 for no padding.
        bias: Whether there is a (1, heads, query_length, key_length) bias that needs a gradient.
    """

    batch: int = 1
    heads: int = 1
    query_length: int = 1
    key_length: int = 1
    head_dim: int = 64
    causal: bool = False
    shortest: int = 0
    bias: bool = False

    @property
    def label(self) -> str:
        """Batch x heads x queries x keys x head_dim, and what the case has besides."""
        sizes = (self.batch, self.heads, self.query_length, self.key_length, self.head_dim)
        flags = {"causal": self.causal, "padded": self.shortest, "dropout": self.dropout, "bias": self.bias}
        return " ".join(["x".join(map(str, sizes)), *(name for name, is_set in flags.items() if is_set)])

    @cached_property
    def lengths(self) -> list[int]:
        """The number of valid keys of each example."""
        shortest = self.shortest or self.key_length
        span, last = self.key_length - shortest, max(1, self.batch - 1)
        return [self.key_length - span * place // last for place in range(self.batch)]

    def pairs(self) -> int:
        """Return how many pairs of query and visible key the batch has."""
        if not self.causal:
            return self.query_length * sum(self.lengths)
        shift = 1 + self.key_length - self.query_length
        return sum(max(0, min(row + shift, length)) for length in self.lengths for row in range(self.query_length))

    def work(self, direction: Direction, itemsize: int) -> float:
        """Return the floating-point operations of the products of queries, keys and values."""
        return (2.5 if direction == "backward" else 1.0) * 4 * self.heads * self.pairs() * self.head_dim

    def make(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """Return inputs that are views of the fused projections: (batch, length, parts, heads, head_dim)."""
        own = (self.heads, self.head_dim)
        if self.query_length == self.key_length:
            fused = torch.randn(self.batch, self.query_length, 3, *own, device=device, dtype=dtype).unbind(2)
        else:
            query = torch.randn(self.batch, self.query_length, *own, device=device, dtype=dtype)
            fused = (query, *torch.randn(self.batch, self.key_length, 2, *own, device=device, dtype=dtype).unbind(2))
        tensors = dict(zip(("query", "key", "value"), (part.transpose(1, 2) for part in fused), strict=True))
        if self.bias:
            sizes = (1, self.heads, self.query_length, self.key_length)
            tensors["bias"] = torch.randn(sizes, device=device, dtype=dtype)
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
        upstream = torch.randn(self.batch, self.query_length, *own, device=device, dtype=dtype).transpose(1, 2)
        return Inputs({"bias": None, **leaves, **_masks(self, device)}, tuple(leaves), (upstream,))

    def plain(self, inputs: Inputs) -> Outputs:
        """Return the plain formula's output."""
        return (plain_attention(inputs["query"], inputs["key"], inputs["value"], inputs["mask"], inputs["bias"], 0.0),)

    def sample(self, tensor: Tensor) -> Tensor:
        """Return the first and last head, of all examples if they share a bias, else of the first and the last."""
        if tensor.dim() == 4 and tensor.shape[1] > 2:
            tensor = tensor[:, :: tensor.shape[1] - 1]
        if not self.bias and tensor.shape[0] > 2:
            tensor = tensor[:: tensor.shape[0] - 1]
        return tensor

    def shrunk(self) -> "AttentionCase":
        """Return the case with two examples, few heads and at most 256 tokens."""
        query_length, key_length = min(self.query_length, 256), min(self.key_length, 256)
        return replace(
            self,
            batch=2,
            heads=min(self.heads, 3),
            query_length=query_length,
            key_length=key_length,
            shortest=self.shortest * key_length // self.key_length,
        )

    def without_dropout(self) -> "AttentionCase":
        """Return the case with all weights kept."""
        return replace(self, dropout=0.0)


@lru_cache(maxsize=1)
def _masks(case: AttentionCase, device: torch.device) -> dict[str, Tensor | None]:
    """Return the lengths, and the mask that says the same to those who take none; all sets of inputs share them."""
    lengths = torch.tensor(case.lengths, device=device, dtype=torch.int32) if case.shortest else None
    visible = None
    if case.causal:
        last = torch.arange(case.query_length, device=device)[:, None] + case.key_length - case.query_length
        visible = (torch.arange(case.key_length, device=device) <= last)[None, None]
    if lengths is not None:
        valid = torch.arange(case.key_length, device=device) < lengths[:, None, None, None]
        visible = valid if visible is None else visible & valid
    return {"key_lengths": lengths, "mask": visible}


def _deit() -> list[Case]:
    sizes = [(256, 6, 197), (64, 3, 197), (1024, 12, 198), (256, 12, 197), (64, 6, 198), (1024, 3, 197)]
    others = [(batch, heads, length) for length in (197, 198) for batch in (256, 64, 1024) for heads in (6, 12, 3)]
    return [
        AttentionCase("deit", batch=batch, heads=heads, query_length=length, key_length=length)
        for batch, heads, length in dict.fromkeys([*sizes, *others])
    ]


def _translation() -> list[Case]:
    cases: list[Case] = []
    for length in (128, 256, 64, 32):
        case = AttentionCase(
            "translation", dropout=0.1, batch=16384 // length, heads=8, query_length=length, key_length=length
        )
        cases += [replace(case, causal=True, shortest=20), replace(case, shortest=20), replace(case, causal=True)]
    return cases


def _detr() -> list[Case]:
    case = AttentionCase("detr", dropout=0.1, records_memory=True, batch=8, heads=8, head_dim=32)
    sizes = [(1050, 1050), (100, 4200), (4200, 4200), (100, 1050)]
    return [replace(case, query_length=queries, key_length=keys, shortest=keys * 6 // 10) for queries, keys in sizes]


def _long() -> list[Case]:
    return [
        AttentionCase(
            "long",
            batch=16384 // length,
            heads=2048 // head_dim,
            query_length=length,
            key_length=length,
            head_dim=head_dim,
            causal=causal,
        )
        for length in (4096, 2048, 8192, 16384)
        for head_dim, causal in ((128, False), (64, True), (64, False), (128, True))
    ]


def _bias() -> list[Case]:
    return [
        AttentionCase("bias", batch=16384 // length, heads=16, query_length=length, key_length=length, bias=True)
        for length in (1024, 512, 2048, 4096)
    ]


BENCHMARK = Benchmark("attention", __doc__ or "", [*_deit(), *_translation(), *_detr(), *_long(), *_bias()], PROVIDERS)


def main(argv: list[str]) -> int:
    """Measure, print, and record and draw if asked to."""
    return run(_main, argv)


def _main(argv: list[str]) -> None:
    options = parse(
        BENCHMARK, argv, all_configs="time every tile that a kernel can have instead of other libraries (GPU)"
    )
    if not options.all_configs:
        run_benchmark(Session(BENCHMARK, options))
        return
    if not torch.cuda.is_available():
        raise UsageError("--all-configs needs a GPU: on a CPU no kernel runs, so there are no tiles")
    if options.providers != "all":
        raise UsageError("--all-configs compares this project's tiles: --providers does not go with it")
    for session in tile_sessions(options):
        run_benchmark(session)


def tile_sessions(options: argparse.Namespace) -> list[Session]:
    """Return a session for each direction in which the providers are this project's tiles."""
    benchmark = replace(BENCHMARK, name="attention_tiles")
    forward = tile_providers(["forward"])
    backward = tile_providers(["backward_query", "backward_key_value", "backward_bias"])
    return [
        Session(benchmark, options, providers=forward, directions=("forward",)),
        Session(benchmark, options, providers=backward, directions=("backward",)),
    ]
