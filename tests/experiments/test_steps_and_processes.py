"""Optimizer steps of several micro-batches, and what several processes must agree on."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loggers import CSVLogger

sys.path.insert(0, str(Path(__file__).parent))

from toy_experiment import ToyData, ToyModule, write_config

from experiments.callbacks import GracefulStop, RNGState, StepProgressBar
from experiments.callbacks import progress as progress_module
from experiments.callbacks.rng_state import capture
from experiments.cli import main
from experiments.errors import StopRequested
from experiments.precision import fastest_precision
from experiments.predictions import gather_predictions, merge_predictions, write_predictions


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(config, *words, code=0):
    assert main(["fit", "-c", str(config), *words]) == code


def load_last(run):
    return torch.load(Path(run, "checkpoints", "last.ckpt"), weights_only=True)


def assert_same_weights(one, two):
    assert one["global_step"] == two["global_step"]
    for name, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][name]), name


@pytest.mark.parametrize(
    ("accumulate", "changes", "code", "step"),
    [
        # the signal comes in the first of two micro-batches
        (2, ["--model.signal_at_step=3"], 143, 3),
        # 10 batches in an epoch make 4 steps, so that the validation after 12 batches falls into step 5
        (3, ["--model.signal_at_step=4", "--model.signal_in_validation=true"], 143, 5),
        (3, ["--model.nan_at_step=6"], 3, 5),
        # after resuming at a step that is saved anyway, none of its successor's micro-batches may be saved
        (3, ["--model.signal_at_step=2", "--checkpoint.every_n_steps=2"], 143, 2),
    ],
)
def test_no_checkpoint_within_an_optimizer_step(here, accumulate, changes, code, step):
    settings = {"accumulate_grad_batches": accumulate, "val_check_interval": 6, "max_steps": 9}
    config = write_config(here / "toy.yaml", **{f"trainer__{key}": value for key, value in settings.items()})
    train(config, "--run_dir=whole")
    train(config, "--run_dir=part", *changes, code=code)
    assert load_last("part")["global_step"] == step
    train(config, "--run_dir=rest", "--ckpt_path=part/checkpoints/last.ckpt")
    assert_same_weights(load_last("whole"), load_last("rest"))


def test_resumed_run_saves_no_micro_batch(here):
    config = write_config(here / "toy.yaml", trainer__accumulate_grad_batches=2, trainer__val_check_interval=20)
    train(config, "--run_dir=one", "--trainer.max_steps=2")
    words = ["--ckpt_path=one/checkpoints/last.ckpt", "--checkpoint.every_n_steps=2", "--model.nan_at_step=4"]
    train(config, "--run_dir=two", *words, code=3)
    assert not Path("two/checkpoints/last.ckpt").exists(), "step 2 is saved in the first run, step 4 is not done"


@pytest.mark.parametrize("words", [["--trainer.accumulate_grad_batches=2"], ["--trainer.accumulate_grad_batches=3"]])
def test_validation_within_an_optimizer_step_is_refused(here, capsys, words):
    config = write_config(here / "toy.yaml")  # validates every 5 batches
    train(config, *words, code=2)
    error = capsys.readouterr().err
    assert '"trainer.val_check_interval" (5 batches) must be a multiple of "trainer.accumulate_grad_batches"' in error
    assert "the next multiple is 6" in error
    assert not Path("runs").exists() or not list(Path("runs").rglob("config.yaml"))


def test_rate_is_read_once_per_logged_step(tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(progress_module._Rate, "read", lambda rate, now, tokens: reads.append(tokens) or 1.0)
    bar = StepProgressBar()
    bar.disable()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=8,
        accumulate_grad_batches=2,
        log_every_n_steps=2,
        callbacks=[bar],
        logger=CSVLogger(tmp_path),
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(ToyModule(), ToyData())
    assert reads == [64, 128, 192, 256], "two steps of two batches of 16 between two readings"


def test_precision_is_that_of_the_chosen_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert [fastest_precision(name) for name in ("auto", "gpu", "cuda")] == ["bf16-mixed"] * 3
    assert fastest_precision("cpu") == fastest_precision(CPUAccelerator()) == "32-true"


def test_precision_is_recorded(here, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    train(write_config(here / "toy.yaml", trainer__max_steps=1, auto_precision=True), "--run_dir=run")
    assert json.loads(Path("run/environment.json").read_text())["precision"] == "bf16-mixed"


def test_each_process_gets_its_own_random_state():
    states = [{**capture(), "torch": torch.get_rng_state() + number} for number in range(2)]
    for rank in range(2):
        callback = RNGState()
        callback.load_state_dict({"processes": states})
        callback.on_train_start(SimpleNamespace(world_size=2, global_rank=rank), None)
        assert callback.state_dict() == {"processes": [states[rank]]}, "this test is one process"


def test_processes_of_a_new_run_draw_different_numbers():
    drawn = []
    for world_size, rank in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(5)  # as seed_everything does in each process
        RNGState().on_train_start(SimpleNamespace(world_size=world_size, global_rank=rank), None)
        drawn.append(torch.rand(3).tolist())
    torch.manual_seed(5)
    assert drawn[0] == torch.rand(3).tolist(), "one process draws what it would have drawn"
    assert drawn[1] != drawn[2]


def test_random_states_of_another_number_of_processes_are_left():
    callback = RNGState()
    callback.load_state_dict({"processes": [capture(), capture()]})
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="random states of 2 processes, this run has 1"):
        callback.on_train_start(SimpleNamespace(world_size=1, global_rank=0), None)
    callback.on_train_batch_start(None, None, None, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_predictions_of_processes_are_merged(tmp_path):
    parts = [[[(4, "e"), (0, "a")], [(2, "c")]], [[(1, "b")], [(3, "d"), (4, "e twice")]]]
    path = write_predictions(merge_predictions(parts), tmp_path)
    assert path.read_text() == "a\nb\nc\nd\ne\n"
    assert gather_predictions(parts[0]) is parts[0], "this test is one process"


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_evaluation_in_several_processes_stops_at_once(command):
    trainer = SimpleNamespace(world_size=2, state=SimpleNamespace(fn=command), strategy=SimpleNamespace(launcher=None))
    callback = GracefulStop()
    callback.on_test_batch_end(trainer, None, None, None, 0)
    callback._note(15, None)
    with pytest.raises(StopRequested):
        callback.on_test_batch_end(trainer, None, None, None, 1)
