"""Which precision multiplies fastest here without a loss scale to tune."""

from typing import Any, Literal

from lightning.pytorch.accelerators import CPUAccelerator


def fastest_precision(accelerator: Any = "auto") -> Literal["bf16-mixed", "32-true"]:
    """Return ``bf16-mixed`` where the device multiplies bfloat16 natively, else ``32-true``.

    A CPU without such instructions emulates them, many times slower than float32.

    Args:
        accelerator: ``trainer.accelerator``: a GPU that the run does not use has no say.
    """
    import torch

    on_cpu = accelerator == "cpu" or isinstance(accelerator, CPUAccelerator)
    if torch.cuda.is_available() and not on_cpu:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if native else "32-true"
