"""What every test shares: quiet, reproducible, offline, and as fast as the machine's two cores allow."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers beside each other, one core each, and so the programs that they start.
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
if not torch.cuda.is_available():
    # Kernels run in Triton's interpreter. It is chosen when triton is imported, so before any test module is.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def seeded():
    """Start every test from one seed."""
    torch.manual_seed(0)
