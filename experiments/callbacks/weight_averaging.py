"""An exponential moving average of the weights, used for validation, for checkpoints and at the end of training."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

CHECKPOINT_KEY = "weight_averaging"


class WeightAveraging(Callback):
    r"""Keeps the average :math:`a \leftarrow d\,a + (1 - d)\,w` of the trained weights, updated after each step.

    Validation during training sees the average. A checkpoint's ``state_dict`` holds the average, and the raw weights
    lie under ``weight_averaging``, so that training resumes exactly. After training the module holds the average.
    Averages of half-precision weights are kept in float32. Buffers are not averaged: their present values are used.

    With ``evaluate_raw`` the raw weights are scored beside the average, on the same batches of the same validation:
    the module logs ``val/...`` for the average and ``val_raw/...`` for the raw weights. It must have the methods
    ``evaluate(batch, name)`` and ``log_evaluation(name)``, as ``lit_models.ClassificationModule`` does.

    Lightning's own ``EMAWeightAveraging`` calls ``configure_model`` a second time, and with a late start it throws
    the training away (both in 2.6). Weights that are sharded over processes are not supported.

    Polyak and Juditsky, 1992; the warm-up of the decay is that of TensorFlow's ``ExponentialMovingAverage``.

    Args:
        decay: The largest decay d, in [0, 1).
        warmup: Use ``d = min(decay, (1 + t) / (10 + t))`` after t updates, so that the initial weights are soon
            forgotten. DeiT's average is ``decay=0.99996, warmup=False``.
        evaluate_raw: Score the raw weights too, which makes a validation as long as two.
    """

    def __init__(self, decay: float = 0.999, warmup: bool = True, evaluate_raw: bool = False) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be at least 0 and below 1; got {decay}")
        self.decay = decay
        self.warmup = warmup
        self.evaluate_raw = evaluate_raw
        self._updates = 0
        self._last_step = 0
        self._averages: list[Tensor] = []
        self._raw: list[Tensor] | None = None  # the raw weights while the module holds the average
        self._restored: list[Tensor] | None = None

    def decay_at(self, updates: int) -> float:
        """Return the decay of the update that follows so many updates."""
        return min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the present weights, or with the average of a checkpoint.

        Raises:
            ValueError: ``evaluate_raw`` is set, and the module cannot score two sets of weights.
        """
        if self.evaluate_raw and not all(hasattr(pl_module, name) for name in ("evaluate", "log_evaluation")):
            raise ValueError(
                f"WeightAveraging.evaluate_raw is true, but {type(pl_module).__name__} scores one set of weights in a "
                "validation; ClassificationModule scores two"
            )
        start = self._restored or parameters_of(pl_module)
        self._averages = [
            average.detach().to(device=parameter.device, dtype=_average_dtype(parameter), copy=True)
            for average, parameter in zip(start, parameters_of(pl_module), strict=True)
        ]
        self._restored, self._raw = None, None
        self._last_step = trainer.global_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step at which training begins; it is restored after ``on_fit_start``."""
        self._last_step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average, if the optimizer made a step."""
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        current: list[Tensor] = [
            parameter.detach().to(average.dtype)
            for parameter, average in zip(parameters_of(pl_module), self._averages, strict=True)
        ]
        torch._foreach_lerp_(self._averages, current, 1.0 - self.decay_at(self._updates))
        self._updates += 1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the module, for a validation within training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._swap_in(pl_module)

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the raw weights on the batch that the average was just scored on."""
        if not self.evaluate_raw or self._raw is None:
            return
        parameters, module = parameters_of(pl_module), cast(Any, pl_module)
        torch._foreach_copy_(parameters, self._raw)
        with trainer.precision_plugin.val_step_context():
            module.evaluate(batch, "val_raw")
        torch._foreach_copy_(parameters, self._averages)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the scores of the raw weights."""
        if self.evaluate_raw and self._raw is not None:
            cast(Any, pl_module).log_evaluation("val_raw")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the raw weights back."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._swap_out(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the raw weights back if a validation was cut short."""
        self._swap_out(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module; the raw weights are kept for the last checkpoint."""
        self._swap_in(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Free the copies."""
        self._averages, self._raw = [], None

    @torch.no_grad()
    def _swap_in(self, pl_module: LightningModule) -> None:
        if self._raw is None and self._averages:
            parameters = parameters_of(pl_module)
            self._raw = [parameter.detach().clone() for parameter in parameters]
            torch._foreach_copy_(parameters, self._averages)

    @torch.no_grad()
    def _swap_out(self, pl_module: LightningModule) -> None:
        if self._raw is not None:
            torch._foreach_copy_(parameters_of(pl_module), self._raw)
            self._raw = None

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates."""
        return {"updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of updates."""
        self._updates = int(state_dict["updates"])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the average into ``state_dict`` and the raw weights beside it.

        Args:
            trainer: The trainer.
            pl_module: The module.
            checkpoint: What will be saved.
        """
        if not self._averages:
            return
        parameters = parameters_of(pl_module)
        positions = {id(parameter): index for index, parameter in enumerate(parameters)}
        # Tied weights have several names in state_dict: the objects tell which is which.
        for name, value in pl_module.state_dict(keep_vars=True).items():
            if id(value) in positions and name in checkpoint["state_dict"]:
                checkpoint["state_dict"][name] = self._averages[positions[id(value)]].to(value.dtype)
        raw = self._raw if self._raw is not None else [parameter.detach() for parameter in parameters]
        checkpoint[CHECKPOINT_KEY] = {"raw": list(raw), "average": list(self._averages)}

    @torch.no_grad()
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Resume training from the raw weights; evaluation goes on with the average that ``state_dict`` held.

        Raises:
            ValueError: The checkpoint averages another set of weights.
        """
        stored = checkpoint.get(CHECKPOINT_KEY)
        if stored is None or trainer.state.fn != "fit":
            return
        parameters = parameters_of(pl_module)
        shapes = [tuple(parameter.shape) for parameter in parameters]
        if [tuple(value.shape) for value in stored["raw"]] != shapes:
            raise ValueError(
                f"the checkpoint averages {len(stored['raw'])} weights; "
                f"the network trains {len(shapes)}, or of other shapes"
            )
        for parameter, value in zip(parameters, stored["raw"], strict=True):
            parameter.copy_(value)
        self._restored = list(stored["average"])


def parameters_of(pl_module: LightningModule) -> list[Tensor]:
    """Return the floating-point weights that are trained, each once, in the module's order."""
    found: Iterable[Tensor] = pl_module.parameters()
    return [parameter for parameter in found if parameter.requires_grad and parameter.is_floating_point()]


def _average_dtype(parameter: Tensor) -> torch.dtype:
    """Steps of 0.001 vanish in half precision."""
    return torch.promote_types(parameter.dtype, torch.float32)
