"""The one place that chooses between the Triton kernels and the PyTorch path.

CUDA tensors go to Triton, others to PyTorch. ``HEDDLE_BACKEND=torch|triton`` or :func:`use_backend` choose otherwise.
On a machine without a GPU, ``TRITON_INTERPRET=1`` with backend "triton" runs the kernels in Triton's interpreter.
"""

import functools
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

from kernels.library import refuse_transforms

Backend = Literal["torch", "triton"]
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

logger = logging.getLogger("heddle.kernels")
if not logger.handlers:
    # As torch's and Lightning's own loggers do: visible unless someone turns it down.
    logger.addHandler(logging.StreamHandler(sys.stderr))
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _check(name: str, source: str) -> Backend:
    for backend in get_args(Backend):
        if name == backend:
            return backend
    raise ValueError(f'{source} is "{name}"; it must be one of {", ".join(get_args(Backend))}')


_environment = os.environ.get("HEDDLE_BACKEND", "")
_forced: Backend | None = _check(_environment, "HEDDLE_BACKEND") if _environment else None


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Run the functions of this package on one backend inside a ``with`` block, for the whole process.

    Args:
        name: "torch" for the PyTorch path on any device, "triton" for the kernels.

    Raises:
        ValueError: If there is no such backend.
    """
    global _forced
    before, _forced = _forced, _check(name, "the backend")
    try:
        yield
    finally:
        _forced = before


def runs_triton(tensor: Tensor, function: str) -> bool:
    """Return whether a function of this package shall run its Triton kernels on a tensor.

    Args:
        tensor: The input that decides, by its device and dtype.
        function: The function's name, for messages.

    Raises:
        ValueError: If "triton" was asked for where it cannot run.
    """
    if _forced == "torch" or (_forced is None and not tensor.is_cuda):
        backend, reason = "torch", f"{_forced_by()}" if _forced else f"the tensors are on {tensor.device.type}"
    elif _forced is None and tensor.dtype not in TRITON_DTYPES:
        backend, reason = "torch", f"the kernels do not take {tensor.dtype}"
    elif _forced is None and not has_triton():
        backend, reason = "torch", "the package triton is not installed"
    else:
        refuse_transforms(function)
        _check_triton(tensor, function)
        backend, reason = "triton", _forced_by() if _forced else f"the tensors are on {tensor.device.type}"
    if not torch.compiler.is_compiling():
        _announce(backend, reason)
    return backend == "triton"


def _forced_by() -> str:
    return f'"{_forced}" was asked for'


def _check_triton(tensor: Tensor, function: str) -> None:
    """Raise a ValueError if the kernels cannot run on a tensor."""
    if not has_triton():
        raise ValueError(f'{function}: backend "triton" needs the package triton; install it, or use_backend("torch")')
    if tensor.dtype not in TRITON_DTYPES:
        allowed = ", ".join(str(dtype) for dtype in TRITON_DTYPES)
        raise ValueError(f'{function}: the Triton kernels take {allowed}, got {tensor.dtype}; use_backend("torch")')
    if interpreting():
        if tensor.dtype == torch.bfloat16:
            raise ValueError(
                f"{function}: Triton's interpreter computes wrongly in torch.bfloat16; use float16 or float32 there"
            )
    elif not tensor.is_cuda:
        raise ValueError(
            f'{function}: backend "triton" needs CUDA tensors, got {tensor.device}; '
            "TRITON_INTERPRET=1 in the environment runs the kernels on a CPU, slowly"
        )


def interpreting() -> bool:
    """Return whether kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


_HAS_TRITON = importlib.util.find_spec("triton") is not None


def has_triton() -> bool:
    """Return whether the package triton is installed."""
    return _HAS_TRITON


@functools.cache
def _announce(backend: str, reason: str) -> None:
    """Say once what runs and why."""
    where = "Triton kernels" if backend == "triton" else "PyTorch"
    if backend == "triton" and interpreting():
        where += ", interpreted"
    logger.info("heddle: attention, norms and losses run in %s: %s", where, reason)
