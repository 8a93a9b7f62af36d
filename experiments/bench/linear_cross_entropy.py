"""The output projection with its loss beside other libraries: time, and peak memory against the plain path, in one run.

Shapes (``--shapes``): ``8k``, ``16k`` and ``32k`` tokens, vocabularies of 32000 and 37000 entries, widths 512 and 1024,
label smoothing 0.1.

``evaluation`` is a forward without gradients, ``training`` a forward with its backward: some compute their gradients
in the forward, so the two have no times of their own. The products of ``tokens x vocabulary x width`` count: one of
them in an evaluation, three in training. Peak memory is what a training call takes beside its inputs.
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

LABEL_SMOOTHING = 0.1


@dataclass(frozen=True)
class LinearCrossEntropyCase(Case):
    """Shapes of an output projection.

    Attributes:
        tokens: Tokens of a batch.
        vocabulary: Entries of the vocabulary.
        width: Width of the hidden states.
    """

    tokens: int = 1
    vocabulary: int = 1
    width: int = 1

    @property
    def label(self) -> str:
        """Tokens x vocabulary x width."""
        return f"{self.tokens}x{self.vocabulary}x{self.width}"

    def work(self, direction: Direction, itemsize: int) -> float:
        """Return the floating-point operations of the matrix products."""
        return (3 if direction == "training" else 1) * 2 * self.tokens * self.vocabulary * self.width

    def make(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """Return random hidden states, a weight that makes logits of variance 1, and targets."""
        hidden = torch.randn(self.tokens, self.width, device=device, dtype=dtype)
        weight = torch.randn(self.vocabulary, self.width, device=device, dtype=dtype).mul_(self.width**-0.5)
        leaves = {"hidden": hidden.requires_grad_(), "weight": weight.requires_grad_()}
        target = torch.randint(self.vocabulary, (self.tokens,), device=device)
        # Gradients as of a mean, so that none is larger than a 16-bit float holds.
        upstream = torch.tensor(1.0 / self.tokens, device=device)
        return Inputs({**leaves, "target": target}, tuple(leaves), (upstream,))

    def plain(self, inputs: Inputs) -> Outputs:
        """Return the sum of the smoothed losses by their formula."""
        logits = inputs["hidden"] @ inputs["weight"].T
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        normalizer = logits.logsumexp(dim=-1)
        loss = normalizer - logits.gather(1, inputs["target"][:, None]).squeeze(1)
        smooth = normalizer - logits.mean(dim=-1)
        return (((1 - LABEL_SMOOTHING) * loss + LABEL_SMOOTHING * smooth).sum(),)

    def shrunk(self) -> "LinearCrossEntropyCase":
        """Return the case with a sixteenth of the tokens and an eighth of the vocabulary and width."""
        return replace(self, tokens=self.tokens // 16, vocabulary=self.vocabulary // 8, width=self.width // 8)

    def without_dropout(self) -> "LinearCrossEntropyCase":
        """Return the case itself."""
        return self


def _heddle(case: LinearCrossEntropyCase, inputs: Inputs) -> Built:
    from kernels import linear_cross_entropy

    hidden, weight, target = (inputs[name] for name in ("hidden", "weight", "target"))
    return Built(lambda: linear_cross_entropy(hidden, weight, target, label_smoothing=LABEL_SMOOTHING)[:1])


def _projected_loss(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    logits = functional.linear(hidden, weight).float()
    return functional.cross_entropy(logits, target, reduction="sum", label_smoothing=LABEL_SMOOTHING)


def _plain(case: LinearCrossEntropyCase, inputs: Inputs) -> Built:
    return Built(lambda: (_projected_loss(inputs["hidden"], inputs["weight"], inputs["target"]),))


def _compile(case: LinearCrossEntropyCase, inputs: Inputs) -> Built:
    loss = compiled(_projected_loss)
    return Built(lambda: (loss(inputs["hidden"], inputs["weight"], inputs["target"]),))


def _torch_chunked(case: LinearCrossEntropyCase, inputs: Inputs) -> Built:
    raise NotSupported("torch's own linear_cross_entropy holds the logits when labels are smoothed")


def _liger(case: LinearCrossEntropyCase, inputs: Inputs) -> Built:
    try:
        module = importlib.import_module("liger_kernel.transformers.fused_linear_cross_entropy")
    except Exception as stop:  # a package built for another torch or triton fails in many ways
        raise NotSupported("liger_kernel is not installed") from stop
    function = module.LigerFusedLinearCrossEntropyLoss(label_smoothing=LABEL_SMOOTHING, reduction="sum")
    return Built(lambda: (function(inputs["weight"], inputs["hidden"], inputs["target"]),))


PROVIDERS: dict[str, Provider] = {
    OURS: _heddle,
    "plain": _plain,
    "compile": _compile,
    "torch-chunked": _torch_chunked,
    "liger": _liger,
}


def _cases() -> list[Case]:
    return [
        LinearCrossEntropyCase(
            group,
            directions=("training", "evaluation"),
            records_memory=True,
            tokens=tokens,
            vocabulary=vocabulary,
            width=width,
        )
        for group, tokens in (("8k", 8192), ("16k", 16384), ("32k", 32768))
        for vocabulary, width in ((32000, 512), (37000, 1024), (37000, 512), (32000, 1024))
    ]


BENCHMARK = Benchmark("linear_cross_entropy", __doc__ or "", _cases(), PROVIDERS, memory_baseline="plain")


def main(argv: list[str]) -> int:
    """Measure, print, and record and draw if asked to."""
    return run(_main, argv)


def _main(argv: list[str]) -> None:
    run_benchmark(Session(BENCHMARK, parse(BENCHMARK, argv)))
