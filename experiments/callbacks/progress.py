"""One progress bar for the whole run: loss, tokens or images per second and the time left."""

import sys
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


def clock(seconds: float) -> str:
    """Return a duration as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def counted(module: LightningModule) -> tuple[str, int] | None:
    """Return what a module counts, ``tokens`` or ``images``, and how many it has seen; None if it counts nothing."""
    for name in ("tokens", "images"):
        if (seen := getattr(module, f"{name}_seen", None)) is not None:
            return name, int(seen)
    return None


class _Rate:
    """Tokens or images per second between two readings, without the time spent in validation."""

    def __init__(self, now: float, seen: int) -> None:
        self._time, self._seen, self._paused = now, seen, 0.0

    def pause(self, seconds: float) -> None:
        self._paused += seconds

    def read(self, now: float, seen: int) -> float:
        """Return the rate since the last reading."""
        seconds = max(now - self._time - self._paused, 1e-9)
        rate = (seen - self._seen) / seconds
        self._time, self._seen, self._paused = now, seen, 0.0
        return rate


class StepProgressBar(ProgressBar):
    """A bar over ``max_steps`` on a terminal, a line now and then elsewhere.

    The loss is read from ``module.last_loss`` (scalar tensor; else from what ``training_step`` returned) and the
    progress from ``module.tokens_seen`` or ``module.images_seen`` (int, those of the whole run so far) where the module
    has one. They are read only when the bar is drawn, so that a GPU is not waited for at each step. The rate is logged
    as ``train/tokens_per_second`` or ``train/images_per_second`` at the trainer's logging interval.

    Args:
        refresh_seconds: Time between two drawings on a terminal.
        line_seconds: Time between two lines where the output is no terminal.
    """

    def __init__(self, refresh_seconds: float = 0.5, line_seconds: float = 15.0) -> None:
        super().__init__()
        self.refresh_seconds = refresh_seconds
        self.line_seconds = line_seconds
        self._enabled = True
        self._bar: Any = None
        self._loss: Any = None
        self._begun = (0.0, 0)  # time and step at which this process began to train
        self._drawn = 0.0
        self._pause_began = 0.0
        self._shown_rate = _Rate(0.0, 0)
        self._logged_rate = _Rate(0.0, 0)

    def disable(self) -> None:
        """Draw nothing; Lightning calls this on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Draw again."""
        self._enabled = True

    @property
    def on_terminal(self) -> bool:
        """Whether control characters make sense."""
        return sys.stderr.isatty()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.clear()
        print(*args, **kwargs, flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        now, (_, seen) = time.monotonic(), counted(pl_module) or ("", 0)
        self._begun, self._drawn = (now, trainer.global_step), float("-inf")
        self._shown_rate, self._logged_rate = _Rate(now, seen), _Rate(now, seen)
        if self._enabled and self.on_terminal:
            total = total_steps(trainer)
            self._bar = tqdm(
                total=total,
                initial=trainer.global_step,
                dynamic_ncols=True,
                leave=True,
                file=sys.stderr,
                bar_format="{n_fmt}/{total_fmt} |{bar:20}| {desc}" if total else "{n_fmt} steps {desc}",
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw if it is time to, and log the rate if the trainer logs this step."""
        now = time.monotonic()
        progress = counted(pl_module)
        stepped = trainer.fit_loop.epoch_loop._batches_that_stepped
        log_every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (
            progress is not None
            and trainer.loggers
            and (stepped + 1) % log_every == 0
            and not trainer.fit_loop._should_accumulate()  # the micro-batches of a step share its number
        ):
            name, seen = progress
            pl_module.log(f"train/{name}_per_second", self._logged_rate.read(now, seen), batch_size=1)
        if not self._enabled:
            return
        self._loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        wait = self.refresh_seconds if self.on_terminal else self.line_seconds
        if now - self._drawn >= wait or trainer.global_step == total_steps(trainer):
            self._draw(trainer, pl_module, now)

    def _draw(self, trainer: Trainer, pl_module: LightningModule, now: float) -> None:
        self._drawn = now
        text = self._text(trainer, pl_module, now)
        if self._bar is None:
            total = total_steps(trainer)
            print(f"step {trainer.global_step}{f'/{total}' if total else ''}{text}", flush=True)
        else:
            self._bar.n = trainer.global_step
            self._bar.set_description_str(text.removeprefix(", "), refresh=True)

    def _text(self, trainer: Trainer, pl_module: LightningModule, now: float) -> str:
        parts = []
        loss = getattr(pl_module, "last_loss", None)
        loss = self._loss if loss is None else loss
        if isinstance(loss, torch.Tensor):
            parts.append(f"loss {loss.detach().float().item():.4f}")
        if (progress := counted(pl_module)) is not None:
            name, seen = progress
            parts.append(f"{self._shown_rate.read(now, seen):,.0f} {name}/s")
        began, first_step = self._begun
        total, done = total_steps(trainer), trainer.global_step - first_step
        if total and done > 0:
            parts.append(f"{clock((now - began) / done * (total - trainer.global_step))} left")
        return "".join(f", {part}" for part in parts)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of the training rate."""
        self._pause_began = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the metrics of a validation within training; Lightning prints a table for the others."""
        seconds = time.monotonic() - self._pause_began
        self._shown_rate.pause(seconds)
        self._logged_rate.pause(seconds)
        if not self._enabled or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = {
            name: float(value) for name, value in trainer.callback_metrics.items() if not name.startswith("train")
        }
        if metrics:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items()))
            self.print(f"validation at step {trainer.global_step}: {shown} ({clock(seconds)})")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the error stands on a line of its own."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def total_steps(trainer: Trainer) -> int | None:
    """Return the number of optimizer steps of a run, None if no one knows."""
    if trainer.max_steps > 0:
        return trainer.max_steps
    batches = trainer.num_training_batches
    if trainer.max_epochs and trainer.max_epochs > 0 and batches != float("inf"):
        return int(trainer.max_epochs * -(-batches // trainer.accumulate_grad_batches))
    return None
