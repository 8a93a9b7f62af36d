"""What Triton and ptxas get wrong on Hopper (sm_90), and what to do about it. Runs once a process, at the first kernel.

* Triton 3.4.0 to 3.7.0 miscompile a dot of a transposed dot result there. The kernels of this package never write that
  form, but nobody vouches for those versions.
* ptxas before 13.3 may reuse the input registers of an asynchronous matrix product before they are read
  (triton-lang/triton#11781). Triton 3.9 brings a newer one; 3.8 brings it for Blackwell only, and it can be lent to
  Hopper where the driver loads what it makes.
"""

import functools
import os
import re
import subprocess
import warnings
from pathlib import Path

import torch
from torch import Tensor

SAFE_PTXAS = (13, 3)
MISCOMPILING_TRITON = ((3, 4, 0), (3, 7, 0))
# From this CUDA version on a driver loads what ptxas 13.x makes (minor version compatibility).
DRIVER_FOR_PTXAS_13 = 13000


def prepare(tensor: Tensor) -> None:
    """Warn once about an unsafe Triton or ptxas if a tensor is on a Hopper, and use a safe ptxas if there is one.

    Operators call this before they launch a kernel.
    """
    if tensor.is_cuda and _is_hopper(tensor.device):
        _prepare_hopper()


@functools.cache
def _is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) == (9, 0)


@functools.cache
def _prepare_hopper() -> None:
    import triton
    from triton.backends.nvidia import compiler

    version = tuple(int(part) for part in re.findall(r"\d+", triton.__version__)[:3])
    oldest, newest = MISCOMPILING_TRITON
    if oldest <= version <= newest:
        warnings.warn(
            f"Triton {triton.__version__} is known to miscompile some matrix products on Hopper GPUs; "
            "install triton 3.7.1 or newer (torch 2.12.1 or newer brings it)",
            stacklevel=2,
        )
    path = _ptxas_of_hopper(compiler)
    found = ptxas_version(path)
    if found >= SAFE_PTXAS:
        return
    newer = Path(compiler.__file__).parent / "bin" / "ptxas-blackwell"
    chosen_by_user = "TRITON_PTXAS_PATH" in os.environ
    if not chosen_by_user and newer.exists() and ptxas_version(str(newer)) >= SAFE_PTXAS and driver_loads_13():
        os.environ["TRITON_PTXAS_PATH"] = str(newer)
        # Part of the key under which compiled kernels are kept on disk, and remembered by Triton.
        for remembered in (compiler.get_ptxas_version, compiler.CUDABackend.hash):
            if hasattr(remembered, "cache_clear"):
                remembered.cache_clear()
        return
    warnings.warn(
        f"{path} is ptxas {'.'.join(map(str, found))}, which can compile matrix products wrongly on Hopper GPUs. "
        "Remedy: triton 3.9 or newer, or TRITON_PTXAS_PATH=/path/to/ptxas of CUDA 13.3 with a driver for CUDA 13",
        stacklevel=2,
    )


def _ptxas_of_hopper(compiler: object) -> str:
    """Return the path of the ptxas that Triton would run for sm_90."""
    return getattr(compiler, "get_ptxas")(90).path  # noqa: B009


@functools.cache
def ptxas_version(path: str) -> tuple[int, int]:
    """Return the release of a ptxas, (0, 0) if it does not say."""
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"release (\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def driver_loads_13() -> bool:
    """Return whether the GPU driver is for CUDA 13 or newer."""
    return getattr(torch._C, "_cuda_getDriverVersion")() >= DRIVER_FOR_PTXAS_13  # noqa: B009
