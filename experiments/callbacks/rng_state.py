"""Restore the random number generators with a checkpoint, so that dropout and mixup continue as they would have."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from datamodules.loading import keyed_seed


def capture() -> dict[str, Any]:
    """Return the state of the generators of Python, NumPy, torch and each CUDA device: tensors and plain values."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "rest": (int(position), int(has_gauss), float(cached)),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore(state: dict[str, Any]) -> None:
    """Set the generators to a state that :func:`capture` returned."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    np.random.set_state((numpy["name"], numpy["keys"].numpy().astype(np.uint32), *numpy["rest"]))
    torch.set_rng_state(state["torch"])
    devices: list[Tensor] = state.get("cuda", [])
    if devices and torch.cuda.is_available() and len(devices) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(devices)


class RNGState(Callback):
    """Stores the generators' state in every checkpoint and restores it before the first step that follows.

    Each process of a distributed run has generators of its own: all are stored, and each gets its own back.

    The state is that after the last training step: a validation, which may draw numbers of its own, does not change
    the numbers of training. So a run is the same whether it was stopped before, during or after a validation.
    """

    def __init__(self) -> None:
        self._after_step: dict[str, Any] | None = None
        self._to_restore: dict[str, Any] | None = None
        self._loaded: list[dict[str, Any]] | None = None  # of each process

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last step of every process; all of them must call this."""
        own = self._to_restore or self._after_step or capture()
        distributed = torch.distributed
        if not distributed.is_available() or not distributed.is_initialized():
            return {"processes": [own]}
        states: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(states, own)
        return {"processes": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training begins; set-up code may draw numbers before that."""
        self._loaded = state_dict.get("processes", [state_dict])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the state of this process, or a seed of its own where nothing is restored."""
        states, self._loaded = self._loaded, None
        if states is None:
            if trainer.world_size > 1:
                # All were seeded alike, so that all build the same network; their dropout must differ from here on.
                torch.manual_seed(keyed_seed(torch.initial_seed(), trainer.global_rank))
            return
        if len(states) == trainer.world_size:
            self._to_restore = states[trainer.global_rank]
        else:
            rank_zero_warn(
                f"the checkpoint holds the random states of {len(states)} processes, this run has "
                f"{trainer.world_size}: dropout and the like draw other numbers than an uninterrupted run"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Restore the state of a checkpoint, or that from before a validation."""
        if self._to_restore is not None:
            restore(self._to_restore)
            self._to_restore = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Capture the state after the step."""
        self._after_step = capture()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let training go on as if there had been no validation."""
        if not trainer.sanity_checking and self._after_step is not None:
            self._to_restore = self._after_step
