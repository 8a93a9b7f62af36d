"""Write what ran into the run directory, and carry the run's identity in its checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage

from experiments.callbacks.non_finite import describe_examples
from experiments.run_directory import RunDirectory

_STAGES: dict[RunningStage | None, str] = {RunningStage.TESTING: "testing", RunningStage.PREDICTING: "prediction"}


class RunRecord(Callback):
    """Writes ``config.yaml``, ``command.txt``, ``git.txt``, ``git.diff`` and ``environment.json`` before step 0.

    Attributes:
        started: Whether a batch was reached. Until then a ``ValueError`` is taken for a mistake in the input;
            after that for a defect of the code.
        interrupted: Whether Ctrl-C ended the run between two hooks.
        config_path: The config file that was written.
        evaluated: Stage, step, number and examples of the latest batch of an evaluation.

    Args:
        run: The run directory.
        config: Text of the whole configuration.
        command: Words of the command line.
        parent: Checkpoint that the run starts from, if any.
        wandb_id: Id of the W&B run to continue, if any.
    """

    def __init__(
        self, run: RunDirectory, config: str, command: Sequence[str], parent: str | None, wandb_id: str | None
    ) -> None:
        self.run = run
        self.started = False
        self.interrupted = False
        self._config, self._command, self._parent = config, list(command), parent
        self._wandb_id = wandb_id
        self.config_path: Path | None = None
        self.evaluated: tuple[str, int, int, Any] | None = None
        self._step: int | None = None  # of training, unless the latest batch is one of an evaluation

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the record, once, on the first process."""
        if trainer.is_global_zero and self.config_path is None:
            self.config_path = self.run.record(self._config, self._command, self._parent, trainer.precision)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note that training has begun, and how far it is."""
        self.started, self._step = True, trainer.global_step + 1

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note that evaluation has begun, and how far it is."""
        self.started = True
        stage = _STAGES.get(trainer.state.stage, "validation")
        examples = getattr(batch, "indices", getattr(batch, "image_ids", None))
        self.evaluated, self._step = (stage, trainer.global_step, batch_idx, examples), None

    on_test_batch_start = on_validation_batch_start
    on_predict_batch_start = on_validation_batch_start

    @property
    def place(self) -> str:
        """Where the run is: the step of training; or stage, step, batch and examples of an evaluation."""
        if self._step is not None:
            return f"step {self._step}"
        if self.evaluated is None:
            return "before the first evaluation"
        stage, step, number, indices = self.evaluated
        return f"{stage} after step {step}, batch {number}, {describe_examples(indices)}"

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Note a Ctrl-C, which Lightning turns into exit code 1."""
        self.interrupted = isinstance(exception, KeyboardInterrupt)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume without the weight averaging that the checkpoint was written with.

        Raises:
            ValueError: The raw weights would be lost: the optimizer's state belongs to them, not to the average.
        """
        averaged = "weight_averaging" in checkpoint
        names = [type(callback).__name__ for callback in trainer.callbacks]  # type: ignore[attr-defined]
        if trainer.state.fn == "fit" and averaged and "WeightAveraging" not in names:
            raise ValueError(
                "the checkpoint was written with experiments.callbacks.WeightAveraging, which the config does not "
                "list under trainer.callbacks; add it to resume"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the run's directory, name and W&B id."""
        return {"run_dir": str(self.run.path), "name": self.run.name, "wandb_id": self.wandb_id}

    @property
    def wandb_id(self) -> str | None:
        """Id of the W&B run."""
        return self._wandb_id

    @wandb_id.setter
    def wandb_id(self, value: str | None) -> None:
        self._wandb_id = value

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the id of the W&B run that has just started."""
        from experiments.loggers import LazyWandbLogger

        for logger in trainer.loggers:
            if isinstance(logger, LazyWandbLogger):
                self._wandb_id = logger.version
