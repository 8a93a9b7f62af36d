"""Stop a run at its first NaN or infinite loss, before it can reach a checkpoint."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from experiments.errors import NonFiniteError

_SHOWN = 8


class StopOnNonFinite(Callback):
    """Stops on a NaN or infinite loss and names the step and the batch.

    On one CPU process the loss is checked before each backward pass, so that the weights stay as they were. On a GPU
    reading the loss would wait for the device at every step: there the first bad step is noted on the device and read
    every ``every_n_steps``. Before a validation and before a checkpoint is written the loss and all weights are
    checked, on every device. A weight is bad if its norm is NaN or infinite, which is also that of a weight whose
    squares float32 cannot hold; smaller ones that exploded cannot be told from good ones.

    Args:
        every_n_steps: How often to read the flag from a GPU, or to compare it between processes.
    """

    def __init__(self, every_n_steps: int = 25) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1; got {every_n_steps}")
        self.every_n_steps = every_n_steps
        # Number, step and examples of the latest batches; reading the examples waits until they are asked for.
        self._recent: deque[tuple[int, int, Tensor | tuple[int, ...] | None]] = deque(maxlen=every_n_steps + 1)
        self._batches = 0
        self._first_bad: Tensor | None = None  # number of the first bad batch on the device, -1 if none
        self._bad_loss: Tensor | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember which examples the batch holds."""
        self._batches += 1
        examples = getattr(batch, "indices", getattr(batch, "image_ids", None))
        self._recent.append((self._batches, trainer.global_step + 1, examples))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check the loss, or note on the device that it is bad.

        Args:
            trainer: The trainer.
            pl_module: The module.
            loss: Scalar.

        Raises:
            NonFiniteError: On the CPU, at once.
        """
        value = loss.detach()
        if value.device.type == "cpu" and trainer.world_size == 1:
            if not torch.isfinite(value):
                raise NonFiniteError(self._message(float(value), self._batches))
            return
        if self._first_bad is None or self._bad_loss is None:
            self._first_bad = torch.full((), -1, dtype=torch.int64, device=value.device)
            self._bad_loss = torch.zeros((), dtype=torch.float32, device=value.device)
        newly_bad = ~torch.isfinite(value) & (self._first_bad < 0)
        self._first_bad = torch.where(newly_bad, self._batches, self._first_bad)
        self._bad_loss = torch.where(newly_bad, value.float(), self._bad_loss)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the flag now and then."""
        if self._batches % self.every_n_steps == 0:
            self._read(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the loss and the weights before a validation, which has nothing to say about broken ones."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._read(trainer)
            self._check_weights(trainer, pl_module, {})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the losses since the last reading; no checkpoint may follow."""
        self._read(trainer)

    def _read(self, trainer: Trainer) -> None:
        bad = int(self._first_bad.item()) if self._first_bad is not None else -1
        anywhere = bad >= 0
        if trainer.world_size > 1:
            anywhere = trainer.strategy.reduce_boolean_decision(anywhere, all=False)
        if not anywhere:
            return
        if bad < 0:
            raise NonFiniteError(f"the loss became NaN or infinite in another process by step {trainer.global_step}")
        assert self._bad_loss is not None
        raise NonFiniteError(self._message(float(self._bad_loss.item()), bad))

    def _message(self, loss: float, batch: int) -> str:
        step, indices = next((step, examples) for number, step, examples in self._recent if number == batch)
        return f"the loss of step {step} is {loss}; {describe_examples(indices)}"

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check the loss and the weights before they are written.

        Raises:
            NonFiniteError: A weight, raw or averaged, is NaN or infinite.
        """
        self._read(trainer)
        self._check_weights(trainer, pl_module, checkpoint.get("state_dict", {}))

    def _check_weights(self, trainer: Trainer, pl_module: LightningModule, saved: Mapping[str, Any]) -> None:
        """Raise if a weight, as it is or as it would be saved, is not finite; its buffers may be."""
        own = dict(pl_module.named_parameters(remove_duplicate=False))
        named = [*own.items(), *((name, saved[name]) for name in own if name in saved and saved[name] is not own[name])]
        floats = [(name, value.detach()) for name, value in named if value.is_floating_point() and value.numel()]
        if not floats:
            return
        norms = torch._foreach_norm([value for _, value in floats])
        finite = torch.stack([torch.isfinite(norm).to(pl_module.device) for norm in norms]).tolist()
        bad = list(dict.fromkeys(name for (name, _), good in zip(floats, finite, strict=True) if not good))
        if bad:
            last = describe_examples(self._recent[-1][2]) if self._recent else "no batch was trained"
            raise NonFiniteError(
                f"{len(bad)} of {len(own)} weights have a norm that is NaN or infinite after step "
                f"{trainer.global_step}, first {bad[0]}; last batch: {last}; no checkpoint was written"
            )


def describe_examples(examples: Tensor | tuple[int, ...] | None) -> str:
    """Return which examples a batch holds.

    Args:
        examples: Their numbers: a tensor of any shape, counted from 0, or ids of images; None if the batch does not
            say.
    """
    if examples is None:
        return "its batch does not say which examples it holds"
    counted = isinstance(examples, Tensor)
    numbers = examples.flatten().tolist() if isinstance(examples, Tensor) else list(examples)
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    listed = ", ".join(map(str, numbers[:_SHOWN]))
    return f"examples {listed}{more} (counted from 0)" if counted else f"image ids {listed}{more}"
