"""Layer norm beside other libraries: GB/s against a copy's, forward and backward apart, in one run.

Shapes (``--shapes``): ``plain`` and ``add`` (dropout, residual addition and norm in one; without dropout where a vision
network has none), widths 96 to 1024, 65536 rows or more.

Bytes are those of the tensors that must be read or written once each, ``rows x width`` elements apiece, besides which
the weight and the bias of ``width`` elements weigh nothing:

=====================  =======  ========
tensors                forward  backward
=====================  =======  ========
plain                  2        3 (upstream, input; its gradient)
add                    4        4 (two upstreams, the sum; one gradient, which input and residual share)
add with dropout       4        5 (the gradient of the input is another one)
=====================  =======  ========
"""

import importlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from experiments.bench.kernel_case import OURS, Built, Case, Inputs, NotSupported, Provider, compiled
from experiments.bench.kernel_run import Benchmark, Session, parse, run_benchmark
from experiments.bench.kernel_timing import Direction, Outputs
from experiments.command import run

EPS = 1e-5


@dataclass(frozen=True)
class LayerNormCase(Case):
    """Shapes of a layer norm.

    Attributes:
        rows: Rows to normalise.
        width: Elements of a row.
        add: Whether a residual is added first.
    """

    rows: int = 1
    width: int = 1
    add: bool = False

    @property
    def label(self) -> str:
        """Rows x width, and what the case has besides."""
        return f"{self.rows}x{self.width}" + " add" * self.add + " dropout" * bool(self.dropout)

    def work(self, direction: Direction, itemsize: int) -> float:
        """Return the bytes of the tensors that a direction must read or write; see the top of this file."""
        forward, backward = (4, 5 if self.dropout else 4) if self.add else (2, 3)
        return (forward if direction == "forward" else backward) * self.rows * self.width * itemsize

    def make(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """Return random rows, with a weight and a bias that are not trivial."""
        names = ("input", "residual") if self.add else ("input",)
        tensors = {name: torch.randn(self.rows, self.width, device=device, dtype=dtype) for name in names}
        tensors |= {name: torch.randn(self.width, device=device, dtype=dtype) for name in ("weight", "bias")}
        upstream = tuple(torch.randn(self.rows, self.width, device=device, dtype=dtype) for _ in names)
        leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
        return Inputs({"residual": None, **leaves}, tuple(leaves), upstream)

    def plain(self, inputs: Inputs) -> Outputs:
        """Return the norm by its formula, and the sum if there is one."""
        summed = inputs["input"] if inputs["residual"] is None else inputs["input"] + inputs["residual"]
        centered = summed - summed.mean(dim=-1, keepdim=True)
        variance = centered.square().mean(dim=-1, keepdim=True)
        normed = centered / (variance + EPS).sqrt() * inputs["weight"] + inputs["bias"]
        return (normed, summed) if self.add else (normed,)

    def shrunk(self) -> "LayerNormCase":
        """Return the case with few rows."""
        return replace(self, rows=min(self.rows, 2048))

    def without_dropout(self) -> "LayerNormCase":
        """Return the case with all elements kept."""
        return replace(self, dropout=0.0)


def _heddle(case: LayerNormCase, inputs: Inputs) -> Built:
    from kernels import add_layer_norm, layer_norm

    rows, weight, bias = inputs["input"], inputs["weight"], inputs["bias"]
    if case.add:
        return Built(lambda: add_layer_norm(rows, inputs["residual"], weight, bias, eps=EPS, dropout_p=case.dropout))
    return Built(lambda: (layer_norm(rows, weight, bias, eps=EPS),))


def _norm(rows: Tensor, weight: Tensor, bias: Tensor) -> Outputs:
    return (functional.layer_norm(rows, weight.shape, weight, bias, EPS),)


def _add_norm(rows: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, dropout: float) -> Outputs:
    summed = (functional.dropout(rows, dropout) if dropout else rows) + residual
    return functional.layer_norm(summed, weight.shape, weight, bias, EPS), summed


def _torch(case: LayerNormCase, inputs: Inputs) -> Built:
    rows, residual, weight, bias = (inputs[name] for name in ("input", "residual", "weight", "bias"))
    if case.add:
        return Built(lambda: _add_norm(rows, residual, weight, bias, case.dropout))
    return Built(lambda: _norm(rows, weight, bias))


def _compile(case: LayerNormCase, inputs: Inputs) -> Built:
    rows, residual, weight, bias = (inputs[name] for name in ("input", "residual", "weight", "bias"))
    if case.add:
        add_norm = compiled(_add_norm)
        return Built(lambda: add_norm(rows, residual, weight, bias, case.dropout))
    norm = compiled(_norm)
    return Built(lambda: norm(rows, weight, bias))


def _liger(case: LayerNormCase, inputs: Inputs) -> Built:
    try:
        function = importlib.import_module("liger_kernel.ops.layer_norm").LigerLayerNormFunction
    except Exception as stop:  # a package built for another torch or triton fails in many ways
        raise NotSupported("liger_kernel is not installed") from stop
    if case.add:
        raise NotSupported("has no fused residual addition for a layer norm")
    return Built(lambda: (function.apply(inputs["input"], inputs["weight"], inputs["bias"], EPS),))


PROVIDERS: dict[str, Provider] = {OURS: _heddle, "torch": _torch, "compile": _compile, "liger": _liger}


def _cases() -> list[Case]:
    plain: list[Case] = [
        LayerNormCase("plain", unit="GB/s", rows=rows, width=width)
        for rows, widths in ((65536, (768, 256, 512, 96, 384, 1024, 192)), (262144, (256, 768, 96, 1024)))
        for width in widths
    ]
    add: list[Case] = [
        LayerNormCase("add", unit="GB/s", rows=65536, width=width, add=True, dropout=dropout)
        for width, dropout in ((512, 0.1), (768, 0.0), (256, 0.1), (384, 0.0), (1024, 0.1), (96, 0.0), (192, 0.0))
    ]
    return [*plain, *add]


BENCHMARK = Benchmark("layer_norm", __doc__ or "", _cases(), PROVIDERS)


def main(argv: list[str]) -> int:
    """Measure, print, and record and draw if asked to."""
    return run(_main, argv)


def _main(argv: list[str]) -> None:
    run_benchmark(Session(BENCHMARK, parse(BENCHMARK, argv)))
