"""What is saved when: ``last.ckpt`` to resume from and ``best.ckpt`` by a metric."""

import os
import shutil
from collections.abc import Sequence
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
        keep_last: How many of the checkpoints written after a validation to keep; with more than one, each is also
            ``last-stepN.ckpt``.
        average: Write the mean weights of the kept ``best`` or ``last`` checkpoints to ``averaged.ckpt`` at the end
            of a fit, and test that file if a test follows.
    """

    monitor: str | None = None
    mode: Literal["min", "max"] = "min"
    keep_best: int = 1
    every_n_steps: int | None = None
    keep_last: int = 1
    average: Literal["none", "best", "last"] = "none"

    def __post_init__(self) -> None:
        kept = {"best": self.keep_best, "last": self.keep_last}
        for kind, number in kept.items():
            if number < 1:
                raise ValueError(f'"checkpoint.keep_{kind}" must be at least 1; got {number}')
        if kept.get(self.average) == 1:
            raise ValueError(
                f'"checkpoint.average" is "{self.average}": "checkpoint.keep_{self.average}" must be at least 2'
            )
        if self.average == "best" and self.monitor is None:
            raise ValueError('"checkpoint.average" is "best": "checkpoint.monitor" must name a metric')
        if self.every_n_steps is not None and self.every_n_steps < 1:
            raise ValueError(f'"checkpoint.every_n_steps" must be at least 1 or null; got {self.every_n_steps}')


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` after each validation, every ``every_n_steps``, at the end, and when a signal stops a run.

    Lightning's ``save_last`` writes only when the monitored metric improved, so its file may be old.

    Args:
        directory: Where the file goes.
        every_n_steps: Number of optimizer steps, None for never between validations.
        keep: How many of those written after a validation keep a name of their own; 1 for none.

    Attributes:
        path: ``last.ckpt``.
        kept: Those with a name of their own, oldest first.
    """

    def __init__(self, directory: str | os.PathLike[str], every_n_steps: int | None = None, keep: int = 1) -> None:
        self.path = Path(directory, "last.ckpt")
        self.kept: list[Path] = []
        self._every_n_steps = every_n_steps
        self._keep = keep
        self._saved_at = -1
        self._due = False

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
        """Save every so many steps, never within one: the gradients of its micro-batches are not saved."""
        if trainer.fit_loop._should_accumulate():
            return
        if self._due or (self._every_n_steps and trainer.global_step % self._every_n_steps == 0):
            self._save(trainer)
        self._due = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after each validation, also at a step that is saved already: now the metrics are known."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        own_name = self.path.with_name(f"last-step{trainer.global_step}.ckpt")
        keeps = self._keep > 1 and trainer.global_step > 0 and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if keeps and own_name not in self.kept:
            self.kept.append(own_name)  # before saving, so that the file itself knows its name
        self._saved_at = -1
        self._save(trainer)
        if keeps and trainer.is_global_zero:
            own_name.unlink(missing_ok=True)
            _link_or_copy(self.path, own_name)
            for old in self.kept[: -self._keep]:
                old.unlink(missing_ok=True)
        self.kept = self.kept[-self._keep :]
        # An epoch whose last step was short moves later validations into a step: save again when that step is done.
        self._due = trainer.fit_loop._should_accumulate()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of training."""
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save if the run stopped between two steps; within a step the state would be half old, half new."""
        if isinstance(exception, StopRequested):
            self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the paths of the kept files."""
        return {"kept": [str(path) for path in self.kept]} if self.kept else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the kept files of the run that this one resumes, which writes a ``last.ckpt`` of its own."""
        earlier = [Path(path) for path in state_dict.get("kept", []) if Path(path).is_file()]
        self.kept = _take_over(earlier, self.path.parent)[-self._keep :] if self._keep > 1 else []


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
            hint = near_miss(str(self.monitor), names)
            raise UsageError(
                f'"checkpoint.monitor" is "{self.monitor}", which validation does not log'
                f"{hint} (logged: {', '.join(names) or 'nothing'})",
                correction=f"--checkpoint.monitor={hint.split(chr(34))[1] if hint else 'METRIC'}",
            )
        super().on_validation_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best files of the run that this one resumes: a worse one must not take their name.

        Args:
            state_dict: What the earlier run stored: the paths of its best files and their scores.
        """
        assert self.dirpath is not None
        scores = {Path(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        earlier = [path for path in scores if path.is_file()]
        copies = _take_over(earlier, Path(self.dirpath))
        kept = {str(copy): scores[path] for path, copy in zip(earlier, copies, strict=True)}
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


def _take_over(paths: Sequence[Path], directory: Path) -> list[Path]:
    """Give files of another run their names in a directory too, and return these."""
    directory.mkdir(parents=True, exist_ok=True)
    copies = [directory / path.name for path in paths]
    for path, copy in zip(paths, copies, strict=True):
        if not copy.exists():
            _link_or_copy(path, copy)
    return copies


def _link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system cannot. Checkpoints are replaced, never changed."""
    try:
        os.link(source, target)
    except FileExistsError:
        return  # another process of the run was faster
    except OSError:
        shutil.copy2(source, target)
