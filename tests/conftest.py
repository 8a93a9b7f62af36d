"""What every test shares: quiet, reproducible, offline, and as fast as the machine's two cores allow."""

import os

import pytest

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def seeded():
    """Start every test from one seed."""
    import torch

    torch.manual_seed(0)
