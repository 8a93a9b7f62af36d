"""What is saved when: ``last.ckpt`` to resume from and ``best.ckpt`` by a metric."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from experiments.errors import StopRequested, UsageError, near_miss


@dataclass(frozen=True)
class CheckpointOptions:
    """The section ``checkpoint`` of a config.

    Args:
        monitor: Validation metric that ``best.ckpt`` follows; null keeps only ``last.ckpt``.
        mode: Whether a lower (``min``) or higher (``max``) value is better.
        keep_best: How many of the best to keep; with more than one, the file name carries the step.
        every_n_steps: Write ``last.ckpt`` also every so many optimizer steps; null writes it after each validation.
    """

    monitor: str | None = None
    mode: Literal["min", "max"] = "min"
    keep_best: int = 1
    every_n_steps: int | None = None

    def __post_init__(self) -> None:
        if self.keep_best < 1:
            raise ValueError(f'"checkpoint.keep_best" must be at least 1; got {self.keep_best}')
        if self.every_n_steps is not None and self.every_n_steps < 1:
            raise ValueError(f'"checkpoint.every_n_steps" must be at least 1 or null; got {self.every_n_steps}')


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` after each validation, every ``every_n_steps``, at the end, and when a signal stops a run.

    Lightning's ``save_last`` writes only when the monitored metric improved, so its file may be old.

    Args:
        directory: Where the file goes.
        every_n_steps: Number of optimizer steps, None for never between validations.
    """

    def __init__(self, directory: str | os.PathLike[str], every_n_steps: int | None = None) -> None:
        self.path = Path(directory, "last.ckpt")
        self._every_n_steps = every_n_steps
        self._saved_at = -1

    def _save(self, trainer: Trainer) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if trainer.global_step in (self._saved_at, 0):
            return
        trainer.save_checkpoint(self.path)
        self._saved_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every so many steps."""
        if self._every_n_steps and trainer.global_step % self._every_n_steps == 0:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after each validation, also at a step that is saved already: now the metrics are known."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._saved_at = -1
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of training."""
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save if the run stopped between two steps; within a step the state would be half old, half new."""
        if isinstance(exception, StopRequested):
            self._save(trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing is carried over: a resumed run writes a file of its own."""


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best checkpoints by a validation metric.

    Args:
        directory: Where the files go.
        options: What to keep.
    """

    def __init__(self, directory: str | os.PathLike[str], options: CheckpointOptions) -> None:
        super().__init__(
            dirpath=Path(directory),
            filename="best" if options.keep_best == 1 else "best-{step}",
            monitor=options.monitor,
            mode=options.mode,
            save_top_k=options.keep_best,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if the metric improved.

        Raises:
            UsageError: The module logs no such metric.
        """
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self.monitor not in trainer.callback_metrics:
            names = sorted(name for name in trainer.callback_metrics if not name.startswith("train"))
            raise UsageError(
                f'"checkpoint.monitor" is "{self.monitor}", which validation does not log'
                f"{near_miss(str(self.monitor), names)} (logged: {', '.join(names) or 'nothing'})"
            )
        super().on_validation_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best files of the run that this one resumes: a worse one must not take their name.

        Args:
            state_dict: What the earlier run stored: the paths of its best files and their scores.
        """
        assert self.dirpath is not None
        Path(self.dirpath).mkdir(parents=True, exist_ok=True)
        kept = {}
        for path, score in state_dict.get("best_k_models", {}).items():
            copy = Path(self.dirpath, Path(path).name)
            if Path(path).is_file():
                if not copy.exists():
                    _link_or_copy(Path(path), copy)
                kept[str(copy)] = score
        if not kept:
            return
        better = min if self.mode == "min" else max
        worse = max if self.mode == "min" else min
        self.best_k_models = kept
        self.best_model_path = better(kept, key=lambda path: float(kept[path]))
        self.best_model_score = kept[self.best_model_path]
        self.kth_best_model_path = worse(kept, key=lambda path: float(kept[path]))
        self.kth_value = kept[self.kth_best_model_path]
        self.current_score = state_dict.get("current_score")


def _link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system cannot. Checkpoints are replaced, never changed."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
