"""What a kernel benchmark compares, and whether a provider's result is right before anything is timed."""

import math
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from experiments.bench.kernel_timing import Call, Direction, Outputs

OURS = "heddle"


class NotSupported(Exception):  # noqa: N818  it is an answer, not an error
    """A provider cannot compute a case; the message says why."""


@dataclass(frozen=True)
class Inputs:
    """One set of inputs.

    Attributes:
        tensors: By name; None for what a case does not have.
        wanted: Names of those whose gradients are asked for.
        upstream: Gradient of each output.
    """

    tensors: Mapping[str, Tensor | None]
    wanted: tuple[str, ...]
    upstream: tuple[Tensor, ...]

    def __getitem__(self, name: str) -> Any:
        return self.tensors[name]

    def leaves(self) -> list[Tensor]:
        """Return the tensors whose gradients are asked for."""
        return [self[name] for name in self.wanted]

    def bytes(self) -> int:
        """Return how much memory a set takes that no other set shares."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.leaves(), *self.upstream))


@dataclass(frozen=True)
class Case:
    """A shape to measure; each benchmark has a subclass.

    Attributes:
        group: The name that ``--shapes`` takes.
    """

    group: str

    dropout: float = 0.0
    directions: tuple[Direction, ...] = ("forward", "backward")
    unit: str = "TFLOP/s"
    records_memory: bool = False

    @property
    def label(self) -> str:
        """The shape in one word or a few."""
        raise NotImplementedError

    def make(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """Return random inputs."""
        raise NotImplementedError

    def work(self, direction: Direction, itemsize: int) -> float:
        """Return the operations (of unit "TFLOP/s") or bytes (of "GB/s") that a direction takes at least."""
        raise NotImplementedError

    def plain(self, inputs: Inputs) -> Outputs:
        """Return the outputs by the plain formula, without dropout, in the dtype of the inputs."""
        raise NotImplementedError

    def sample(self, tensor: Tensor) -> Tensor:
        """Return the part of a tensor that is checked; what is checked depends on no other part."""
        return tensor

    def shrunk(self) -> "Case":
        """Return the case in a size for a CPU."""
        raise NotImplementedError

    def without_dropout(self) -> "Case":
        """Return the case whose result has no randomness."""
        raise NotImplementedError


@dataclass(frozen=True)
class Built:
    """A provider's function, ready to be called on one set of inputs."""

    forward: Callable[[], Outputs]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


Provider = Callable[[Any, Inputs], Built]
"""Takes a case and a set of inputs; raises :class:`NotSupported` with the reason."""


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function compiled for one shape; its backward may run several times over one forward."""
    keep_buffers()
    return torch.compile(function, dynamic=False)


def keep_buffers() -> None:
    """Let what is compiled from now on run several backwards over one forward, whose buffers they would overwrite."""
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False


def bind(provider: Provider, case: Case, inputs: Inputs) -> tuple[Call, Built]:
    """Return a provider's call on a set of inputs, and what it is to be called in."""
    built = provider(case, inputs)
    return Call(built.forward, inputs.leaves(), inputs.upstream), built


class Check:
    """Compares outputs and gradients with the plain formula in higher precision.

    The reference is computed in float32 for 16-bit inputs and in float64 for float32. The error that a provider may
    have follows from that of the plain formula in the dtype of the inputs.

    Args:
        case: What is computed; dropout is checked apart.
        inputs: A set of inputs.
    """

    def __init__(self, case: Case, inputs: Inputs) -> None:
        self._case, self._inputs = case.without_dropout(), inputs
        self._dropout_case = case if case.dropout else None
        self._dtype = dtype = inputs.leaves()[0].dtype
        self._exact = self._reference(torch.float64 if dtype == torch.float32 else torch.float32)
        self._plain_errors = [error(low, exact) for low, exact in zip(self._reference(dtype), self._exact, strict=True)]

    def _reference(self, dtype: torch.dtype) -> list[Tensor]:
        """Return outputs and gradients of the plain formula on the sampled inputs."""
        tensors = {}
        for name, tensor in self._inputs.tensors.items():
            if tensor is not None:
                sampled = self._case.sample(tensor.detach())
                tensor = sampled.to(dtype) if sampled.is_floating_point() else sampled
                tensor = tensor.requires_grad_(name in self._inputs.wanted)
            tensors[name] = tensor
        upstream = tuple(self._case.sample(tensor) for tensor in self._inputs.upstream)
        inputs = Inputs(tensors, self._inputs.wanted, upstream)
        outputs = self._case.plain(inputs)
        upstream = tuple(gradient.to(output.dtype) for gradient, output in zip(upstream, outputs, strict=True))
        gradients = torch.autograd.grad(outputs, inputs.leaves(), upstream)
        return [tensor.detach() for tensor in (*outputs, *gradients)]

    def fault(self, provider: Provider) -> str:
        """Return what is wrong with a provider's result, or an empty string.

        Raises:
            NotSupported: If the provider gives no gradient of an input.
        """
        call, built = bind(provider, self._case, self._inputs)
        with built.context():
            outputs = call.forward()
            gradients = call.gradients(outputs, again=False, some=True)
        missing = [name for name, found in zip(self._inputs.wanted, gradients, strict=True) if found is None]
        if missing:
            raise NotSupported(f"gives no gradient of {', '.join(missing)}")
        names = [f"output {number}" for number in range(1, len(outputs) + 1)] if len(outputs) > 1 else ["the output"]
        names += [f"the gradient of {name}" for name in self._inputs.wanted]
        largest = max(exact.numel() for exact in self._exact)
        for name, found, exact, low in zip(names, (*outputs, *gradients), self._exact, self._plain_errors, strict=True):
            # Sums of n terms in float32, in any order, drift by about eps * sqrt(n).
            drift = torch.finfo(torch.float32).eps * math.sqrt(largest / max(1, exact.numel()))
            allowed = 4.0 * (low + torch.finfo(self._dtype).eps) + drift
            relative = error(self._case.sample(found.detach()), exact) if found is not None else math.nan
            if not relative <= allowed:
                return f"relative error {relative:.2g} of {name}, {allowed:.2g} is allowed"
        return self._dropout_fault(provider, outputs) if self._dropout_case else ""

    def _dropout_fault(self, provider: Provider, outputs: Outputs) -> str:
        """Return what is wrong with dropout: it must change the outputs, but not their expectation."""
        assert self._dropout_case is not None
        call, built = bind(provider, self._dropout_case, self._inputs)
        with built.context():
            dropped = call.forward()
            gradients = call.gradients(dropped)
        if not all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None):
            return "a gradient with dropout is not finite"
        expected, found = outputs[-1].detach().flatten(0, -2).float(), dropped[-1].detach().flatten(0, -2).float()
        if torch.equal(expected, found):
            return "dropout changes nothing"
        # Each row was dropped from independently: six standard errors of their sum never happen by chance.
        excess = ((found - expected) * expected).sum(dim=-1)
        share = float(excess.sum() / expected.square().sum())
        if float(excess.sum().abs() / excess.norm()) > 6.0 and abs(share) > self._dropout_case.dropout / 20:
            return f"with dropout the output is {1.0 + share:.3f} of what it should be on average"
        return ""


def error(found: Tensor, exact: Tensor) -> float:
    """Return ``|found - exact| / |exact|`` in the Euclidean norm, NaN if a value is."""
    exact = exact.double() if exact.numel() < 2**24 else exact.float()
    difference = torch.linalg.vector_norm(found.to(exact.dtype) - exact)
    return float(difference / torch.linalg.vector_norm(exact).clamp_min(torch.finfo(torch.float32).tiny))


@dataclass(frozen=True)
class Refusal:
    """Why a provider was not timed: ``status`` is "not supported", "wrong" or "failed"."""

    status: str
    reason: str


def refusal(check: Check, provider: Provider) -> Refusal | None:
    """Return why a provider is not to be timed on a case, None if its result is right."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fault = check.fault(provider)
    except Exception as stop:  # foreign code: whatever it raises is its answer
        return refusal_from(stop)
    return Refusal("wrong", fault) if fault else None


def refusal_from(stop: Exception) -> Refusal:
    """Return what an exception of a provider says."""
    if isinstance(stop, NotSupported):
        return Refusal("not supported", str(stop))
    if isinstance(stop, torch.OutOfMemoryError):
        return Refusal("not supported", "not enough memory")
    line = next((line.strip() for line in str(stop).splitlines() if line.strip()), "")
    frame = traceback.extract_tb(stop.__traceback__)[-1]
    return Refusal("failed", f"{type(stop).__name__}: {line} ({frame.name})"[:200])


def in_turns(cases: Sequence[Case]) -> list[Case]:
    """Return the first case of each group, then the second of each, so that a short run sees every group."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    longest = max(map(len, groups.values()), default=0)
    return [group[place] for place in range(longest) for group in groups.values() if place < len(group)]
