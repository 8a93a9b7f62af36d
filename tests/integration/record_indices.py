"""A callback for runs of several processes: which images each of them reads."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class RecordIndices(Callback):
    """Writes a line with the numbers of each batch's images into ``train-RANK.txt`` or ``val-RANK.txt`` of the run."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._write(trainer, "train", batch)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._write(trainer, "val", batch)

    def _write(self, trainer: Trainer, split: str, batch: Any) -> None:
        with (Path(trainer.default_root_dir) / f"{split}-{trainer.global_rank}.txt").open("a") as file:
            print(*batch.indices.tolist(), file=file)
