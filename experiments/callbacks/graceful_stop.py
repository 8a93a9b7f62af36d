"""Stop between two steps on Ctrl-C or SIGTERM, so that the checkpoint written is one to resume from exactly."""

import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from experiments.errors import StopRequested

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# How often the processes of a distributed run compare notes, in optimizer steps; each time costs one small all-reduce.
_AGREE_EVERY_N_STEPS = 10


class GracefulStop(Callback):
    """Turns SIGINT and SIGTERM into :class:`StopRequested` at the next step boundary; a second Ctrl-C stops at once.

    Lightning's own SIGTERM handler ends with exit code 0, does nothing during evaluation, and hangs a distributed
    run when a process other than the first is signalled. Here the handler only sets a flag, and the processes of a
    distributed run agree on it every few steps.
    """

    def __init__(self) -> None:
        self._signal: int | None = None

    def _install(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handlers, which it puts back itself when the run ends."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._note)

    # Lightning registers its handlers after setup() and before each of these.
    on_sanity_check_start = _install
    on_train_start = _install
    on_validation_start = _install
    on_test_start = _install
    on_predict_start = _install

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal is None:
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            print(f"\nstopping after this step ({signal.Signals(number).name}){again}", flush=True)
        self._signal = number

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here if asked to, and if the optimizer step is done: no checkpoint holds a part of its gradients.

        Raises:
            StopRequested: A signal arrived, at this process or at another of the run.
        """
        if trainer.fit_loop._should_accumulate():
            return
        if trainer.world_size > 1:
            if trainer.global_step % _AGREE_EVERY_N_STEPS:
                return
            if trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False) and self._signal is None:
                self._signal = signal.SIGTERM
        self._raise_if_asked()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop within an evaluation, whose remaining batches nobody waits for.

        Raises:
            StopRequested: A signal arrived. Distributed training waits for the end of a step instead, and so does
                training whose optimizer step is not done.
        """
        if trainer.state.fn == "fit":
            if trainer.world_size == 1 and not trainer.fit_loop._should_accumulate():
                self._raise_if_asked()
            return
        if self._signal is not None and isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
            # The other processes would wait for this one for ever; there is nothing of theirs to save.
            trainer.strategy.launcher.kill(signal.SIGKILL)
        self._raise_if_asked()

    on_test_batch_end = on_validation_batch_end
    on_predict_batch_end = on_validation_batch_end

    def _raise_if_asked(self) -> None:
        if self._signal is not None:
            number, self._signal = self._signal, None
            raise StopRequested(number)
