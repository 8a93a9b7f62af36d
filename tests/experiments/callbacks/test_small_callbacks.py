"""RNG state, the progress bar, the non-finite check and the atomic writer, each alone."""

import io
import random
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy_experiment import ToyData, ToyModule

from experiments.callbacks import RNGState, StepProgressBar, StopOnNonFinite
from experiments.callbacks import progress as progress_module
from experiments.callbacks.rng_state import capture, restore
from experiments.checkpoint_io import AtomicCheckpointIO
from experiments.errors import CheckpointWriteError, NonFiniteError


def draw():
    return random.random(), np.random.rand(), np.random.randn(), torch.rand(3).tolist()


def trainer_of(callbacks, **settings):
    return Trainer(
        **{"max_steps": 8, "max_epochs": -1, "val_check_interval": 5, "check_val_every_n_epoch": None, **settings},
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )


def test_rng_state_survives_a_safe_load():
    np.random.randn()  # leaves half a pair behind, which is part of the state
    buffer = io.BytesIO()
    torch.save(capture(), buffer)
    first = draw()
    draw()
    buffer.seek(0)
    restore(torch.load(buffer, weights_only=True))
    assert draw() == first


def test_validation_does_not_disturb_the_numbers_of_training():
    class Numbers(Callback):
        def __init__(self):
            self.drawn = []

        def on_train_batch_start(self, *rest):
            self.drawn.append(torch.rand(()).item())

    histories = []
    for interval in (3, 8):
        numbers = Numbers()
        torch.manual_seed(3)
        trainer_of([RNGState(), numbers], val_check_interval=interval, enable_progress_bar=False).fit(
            ToyModule(), ToyData()
        )
        histories.append(numbers.drawn)
    assert histories[0] == histories[1]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bar_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    trainer_of([StepProgressBar(refresh_seconds=0.0)]).fit(ToyModule(), ToyData())
    text = terminal.getvalue()
    last = text.rstrip("\n").split("\r")[-1]
    assert "8/8" in last and "loss 0." in last and "tokens/s" in last and "0:00 left" in last


def test_lines_elsewhere(capsys):
    trainer_of([StepProgressBar(line_seconds=1000)]).fit(ToyModule(), ToyData())
    lines = [line for line in capsys.readouterr().out.splitlines() if "step" in line]
    assert lines[0].startswith("step 1/8, loss ")
    assert lines[1].startswith("validation at step 5: val/loss ")
    assert lines[2].startswith("step 8/8, loss ")
    assert len(lines) == 3 and not any("\r" in line or "\x1b" in line for line in lines)


def test_images_are_counted_as_tokens_are(capsys):
    module, logged = ToyModule(), {}
    del module.tokens_seen
    module.images_seen = 0
    module.log = lambda name, value, **_: logged.update({name: value})
    bar = StepProgressBar(line_seconds=0)
    trainer = SimpleNamespace(max_steps=-1, max_epochs=-1, num_training_batches=10, global_step=1, loggers=[None])
    trainer.fit_loop = SimpleNamespace(
        epoch_loop=SimpleNamespace(_batches_that_stepped=0), _should_accumulate=lambda: False
    )
    trainer.log_every_n_steps = 1
    bar.on_train_start(trainer, module)
    module.images_seen = 64
    bar.on_train_batch_end(trainer, module, torch.tensor(1.5), None, 0)
    assert capsys.readouterr().out.endswith(" images/s\n")
    assert logged.keys() == {"train/images_per_second"} and logged["train/images_per_second"] > 0


def test_bar_without_tokens_and_without_an_end(capsys):
    module = ToyModule()
    bar = StepProgressBar(line_seconds=0)
    trainer = SimpleNamespace(
        max_steps=-1, max_epochs=-1, num_training_batches=10, global_step=3, loggers=[], fit_loop=None
    )
    trainer.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=3))
    trainer.log_every_n_steps = 1
    del module.tokens_seen
    bar.on_train_start(trainer, module)
    bar.on_train_batch_end(trainer, module, torch.tensor(1.5), None, 0)
    assert capsys.readouterr().out == "step 3, loss 1.5000\n"


def test_loss_is_read_only_when_the_bar_is_drawn(monkeypatch):
    reads = []

    class Loss(torch.Tensor):
        def item(self):
            reads.append(1)
            return 1.0

    now = [0.0]
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    bar = StepProgressBar(line_seconds=10)
    trainer = SimpleNamespace(max_steps=1000, global_step=0, loggers=[], log_every_n_steps=1)
    trainer.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=0))
    module = SimpleNamespace(last_loss=torch.ones(()).as_subclass(Loss), tokens_seen=0)
    bar.on_train_start(trainer, module)
    for step in range(1, 101):
        now[0], trainer.global_step = now[0] + 1.0, step
        bar.on_train_batch_end(trainer, module, None, None, step)
    assert len(reads) == 10


def test_clock():
    assert [progress_module.clock(s) for s in (0, 61.9, 3723)] == ["0:00", "1:01", "1:02:03"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_loss_names_step_and_batch_and_spares_the_weights(value):
    check = StopOnNonFinite()
    trainer = SimpleNamespace(world_size=1, global_step=6, accumulate_grad_batches=1)
    check.on_train_batch_start(trainer, None, SimpleNamespace(indices=torch.arange(30, 42)), 0)
    check.on_before_backward(trainer, None, torch.tensor(1.0))
    with pytest.raises(NonFiniteError) as error:
        check.on_before_backward(trainer, None, torch.tensor(value))
    assert str(error.value) == (
        f"the loss of step 7 is {value}; examples 30, 31, 32, 33, 34, 35, 36, 37 and 4 more (counted from 0)"
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_flag_on_the_device_names_the_first_bad_step(accumulate, monkeypatch):
    # several processes compare notes on the same occasions on which a GPU is read
    check = StopOnNonFinite(every_n_steps=4)
    trainer = SimpleNamespace(world_size=2, global_step=0, accumulate_grad_batches=accumulate)
    trainer.strategy = SimpleNamespace(reduce_boolean_decision=lambda flag, all: flag)
    with pytest.raises(NonFiniteError) as error:
        for batch in range(1, 9):
            check.on_train_batch_start(trainer, None, SimpleNamespace(indices=torch.tensor([10 * batch])), batch)
            check.on_before_backward(trainer, None, torch.tensor(float("nan") if batch >= 6 else 1.0))
            trainer.global_step = batch // accumulate
            check.on_train_batch_end(trainer, None, None, None, batch)
    assert batch == 8
    step = 6 if accumulate == 1 else 3
    assert str(error.value) == f"the loss of step {step} is nan; examples 60 (counted from 0)"


def test_bad_weights_are_never_written(tmp_path):
    class Poison(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 3:
                with torch.no_grad():
                    next(pl_module.parameters())[0, 0] = torch.nan
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    message = "1 of 4 weights .* first network.0.weight; last batch: examples .*; no checkpoint was written"
    with pytest.raises(NonFiniteError, match=message):
        trainer_of([StopOnNonFinite(), Poison()], enable_progress_bar=False).fit(ToyModule(), ToyData())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.ckpt", "2.ckpt"]


class Explode(Callback):
    """Multiplies the weights after step 5, before which a validation runs."""

    def __init__(self, factor):
        self.factor = factor

    @torch.no_grad()
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 5:
            for parameter in pl_module.parameters():
                parameter.mul_(self.factor)


@pytest.mark.parametrize("factor", [torch.nan, torch.inf, 1e30])  # of 1e30 the square is infinite in float32
def test_bad_weights_are_told_before_a_validation(factor):
    module = ToyModule()
    with pytest.raises(NonFiniteError, match="of 4 weights have a norm that is NaN or infinite after step 5, "):
        trainer_of([Explode(factor), StopOnNonFinite()], enable_progress_bar=False, num_sanity_val_steps=0).fit(
            module, ToyData()
        )
    assert not module.validated_with


def test_infinite_buffers_are_no_weights():
    module = ToyModule()
    module.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    trainer = SimpleNamespace(world_size=1, global_step=1)
    StopOnNonFinite().on_save_checkpoint(trainer, module, {"state_dict": module.state_dict()})


def test_flag_on_the_device_is_read_at_the_end_of_training():
    check = StopOnNonFinite(every_n_steps=25)
    trainer = SimpleNamespace(world_size=2, global_step=0)
    trainer.strategy = SimpleNamespace(reduce_boolean_decision=lambda flag, all: flag)
    check.on_train_batch_start(trainer, None, SimpleNamespace(indices=torch.tensor([3])), 0)
    check.on_before_backward(trainer, None, torch.tensor(torch.nan))
    check.on_train_batch_end(trainer, None, None, None, 0)
    with pytest.raises(NonFiniteError, match="the loss of step 1 is nan; examples 3 "):
        check.on_train_end(trainer, None)


def test_writer_replaces_only_what_is_complete(tmp_path):
    path = tmp_path / "deep" / "x.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"state_dict": {}, "loops": {}, "n": 1}, path)
    assert writer.load_checkpoint(path)["n"] == 1
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # a real failure of write(), as on a full disk
    try:
        with pytest.raises(CheckpointWriteError, match=r'cannot write the checkpoint ".*x.ckpt": .*MB free'):
            writer.save_checkpoint({"state_dict": {"w": torch.rand(1_000_000)}, "loops": {}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir()] == ["x.ckpt"]


def test_writer_that_is_killed_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"state_dict": {}, "loops": {}, "n": 1}, path)

    def killed(*args, **kwargs):
        raise SystemExit("killed")

    monkeypatch.setattr("experiments.checkpoint_io.os.replace", killed)
    with pytest.raises(SystemExit):
        writer.save_checkpoint({"state_dict": {}, "loops": {}, "n": 2}, path)
    monkeypatch.undo()
    assert writer.load_checkpoint(path)["n"] == 1
    writer.save_checkpoint({"state_dict": {}, "loops": {}, "n": 3}, path)
    assert writer.load_checkpoint(path)["n"] == 3
    assert [found.name for found in tmp_path.iterdir()] == ["x.ckpt"]


def test_writer_does_not_hide_our_own_mistakes(tmp_path):
    with pytest.raises((AttributeError, TypeError, RuntimeError)) as error:
        AtomicCheckpointIO().save_checkpoint({"f": lambda: 0}, tmp_path / "x.ckpt")
    assert not isinstance(error.value, CheckpointWriteError)
    assert not list(tmp_path.iterdir())
