"""Runs: their directory, replay of their config, exact resume, and what happens when they are stopped."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from toy_experiment import write_config

from experiments.cli import main

AVERAGING = [{"class_path": "experiments.callbacks.WeightAveraging", "init_args": {"decay": 0.9}}]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(config, *words, code=0):
    assert main(["fit", "-c", str(config), *words]) == code


def load(path):
    return torch.load(path, weights_only=True)


def assert_same_training_state(one, two):
    assert one["global_step"] == two["global_step"]
    for key in ("state_dict", "weight_averaging", "optimizer_states"):
        assert_equal(one.get(key), two.get(key))


def assert_equal(one, two):
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_equal(one[key], two[key])
    elif isinstance(one, list):
        assert len(one) == len(two)
        for first, second in zip(one, two, strict=True):
            assert_equal(first, second)
    else:
        assert one == two


def test_run_directory_holds_the_record(here, capsys):
    config = write_config(here / "toy.yaml", checkpoint__monitor="val/loss", test_after_fit=True)
    fit(config)
    (run,) = Path("runs/custom/toy").iterdir()
    names = {path.name for path in run.iterdir()}
    expected = {"config.yaml", "git.txt", "git.diff", "environment.json", "command.txt", "metrics.csv", "checkpoints"}
    assert names == expected
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert (run / "command.txt").read_text() == f"python -m experiments fit -c {config}\n"
    environment = json.loads((run / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["packages"]["lightning"]
    recorded = yaml.safe_load((run / "config.yaml").read_text())
    assert recorded["seed_everything"] == 1
    assert recorded["model"]["init_args"]["network"]["dropout"] == 0.25, "defaults are recorded too"
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    trained = [int(row["step"]) for row in rows if row["train/loss"]]
    validated = [int(row["step"]) for row in rows if row["val/loss"]]
    assert trained == [2, 4, 6, 8, 10, 12]
    assert validated == [5, 10]
    assert rows[-1]["test/loss"]
    output = capsys.readouterr().out
    assert f"run directory  {run}" in output
    assert f"checkpoint     {run / 'checkpoints' / 'best.ckpt'} (val/loss" in output


def test_the_best_checkpoint_is_the_best(here):
    config = write_config(here / "toy.yaml", checkpoint__monitor="val/loss", trainer__max_steps=60)
    fit(config, "--run_dir=run", "--model.learning_rate=0.3")
    with Path("run/metrics.csv").open(newline="") as file:
        scores = {int(row["step"]): float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]}
    assert load("run/checkpoints/best.ckpt")["global_step"] == min(scores, key=scores.get)
    assert load("run/checkpoints/last.ckpt")["global_step"] == 60


def test_checkpoints_carry_no_hyper_parameters_and_load_safely(here):
    fit(write_config(here / "toy.yaml"), "--run_dir=run")
    checkpoint = load("run/checkpoints/last.ckpt")
    assert "hyper_parameters" not in checkpoint
    assert checkpoint["callbacks"]["RunRecord"] == {"run_dir": "run", "name": "custom/toy", "wandb_id": None}


def test_second_run_leaves_the_first_alone(here, capsys):
    config = write_config(here / "toy.yaml", trainer__max_steps=2)
    fit(config, "--run_dir=run")
    first = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    fit(config, "--run_dir=run")
    assert 'this one goes to "run-2"' in capsys.readouterr().out
    assert {path: path.read_bytes() for path in first} == first
    assert Path("run-2/checkpoints/last.ckpt").is_file()
    for _ in range(2):  # within one second, as a rule
        fit(config)
    assert len(list(Path("runs/custom/toy").iterdir())) == 2


def test_print_config_and_recorded_config_replay(here, capsys):
    config = write_config(here / "toy.yaml", trainer__callbacks=AVERAGING)
    assert main(["fit", "-c", str(config), "--model.learning_rate=1e-3", "--print_config"]) == 0
    printed = here / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert yaml.safe_load(printed.read_text())["model"]["init_args"]["learning_rate"] == 1e-3
    fit(printed, "--run_dir=one")
    fit("one/config.yaml", "--run_dir=two")
    assert_same_training_state(load("one/checkpoints/last.ckpt"), load("two/checkpoints/last.ckpt"))
    without_name = [Path(run, "config.yaml").read_text().split("\n", 1)[1] for run in ("one", "two")]
    assert without_name[0] == without_name[1]
    for command in ("validate", "test", "predict"):
        # without -c: the config lies beside the checkpoint
        assert main([command, "--ckpt_path", "one/checkpoints/last.ckpt"]) == 0
    (predicted,) = Path("runs/custom/printed").glob("predict_*")
    assert (predicted / "predictions.txt").read_text().splitlines()[:2] == ["line 0", "line 1"]
    assert not (predicted / "checkpoints").exists()
    keys = yaml.safe_load(printed.read_text()).keys() - {"ckpt_path", "run_dir"}
    assert yaml.safe_load((predicted / "config.yaml").read_text()).keys() == keys


def test_overrides_win_wherever_they_stand(here):
    config = write_config(here / "toy.yaml")
    assert main(["fit", "--trainer.max_steps", "3", "-c", str(config), "--run_dir=run"]) == 0
    assert load("run/checkpoints/last.ckpt")["global_step"] == 3


def test_later_config_wins_and_appends(here):
    config = write_config(here / "toy.yaml", trainer__callbacks=AVERAGING)
    # a callback of ours that the config lists takes the place of the one that is always there
    added = "callbacks+: {class_path: experiments.callbacks.StopOnNonFinite, init_args: {every_n_steps: 7}}"
    (here / "more.yaml").write_text(f"trainer: {{max_steps: 2, {added}}}\nmodel: {{init_args: {{fail: null}}}}\n")
    fit(config, "-c", "more.yaml", "--run_dir=run")
    recorded = yaml.safe_load(Path("run/config.yaml").read_text())["trainer"]
    assert recorded["max_steps"] == 2
    assert len(recorded["callbacks"]) == 2


def test_checkpoint_never_overrides_the_config(here, capsys):
    config = write_config(here / "toy.yaml", trainer__max_steps=2)
    fit(config, "--run_dir=run")
    checkpoint = load("run/checkpoints/last.ckpt")
    # what a module that calls save_hyperparameters() leaves; Lightning would train with a rate of 7
    checkpoint["hyper_parameters"] = {"learning_rate": 7.0, "_class_path": "toy_experiment.ToyModule"}
    torch.save(checkpoint, "foreign.ckpt")
    fit(config, "--ckpt_path=foreign.ckpt", "--run_dir=two", "--trainer.max_steps=3")
    assert yaml.safe_load(Path("two/config.yaml").read_text())["model"]["init_args"]["learning_rate"] == 0.1
    capsys.readouterr()
    other = ("--model.network.dim=5", "--data.dim=5", "--trainer.max_steps=3")
    fit(config, "--ckpt_path=run/checkpoints/last.ckpt", *other, code=2)
    assert capsys.readouterr().err == "error: the checkpoint has network.dim=4, the config 5\n"


@pytest.mark.parametrize(
    ("step", "in_validation"),
    [
        (3, False),  # within the first epoch of 10
        (5, False),  # where a validation would follow
        (10, False),  # at the end of an epoch, where a validation would follow
        (13, False),  # within the second epoch
        (10, True),  # in the midst of a validation, while the module holds the average
    ],
)
def test_stopped_and_resumed_is_the_same_as_never_stopped(here, capsys, step, in_validation):
    config = write_config(here / "toy.yaml", trainer__callbacks=AVERAGING, trainer__max_steps=23)
    fit(config, "--run_dir=whole")
    stop = [f"--model.signal_at_step={step}", f"--model.signal_in_validation={str(in_validation).lower()}"]
    fit(config, "--run_dir=part", *stop, code=143)
    assert "resume with: python -m experiments fit --ckpt_path part/checkpoints/last.ckpt" in capsys.readouterr().err
    assert load("part/checkpoints/last.ckpt")["global_step"] == step
    fit(config, "--run_dir=rest", "--ckpt_path=part/checkpoints/last.ckpt")
    assert_same_training_state(load("whole/checkpoints/last.ckpt"), load("rest/checkpoints/last.ckpt"))
    assert "# starts from: " in Path("rest/command.txt").read_text()


def test_resume_in_the_same_directory_keeps_the_first_config(here):
    config = write_config(here / "toy.yaml", trainer__max_steps=4)
    fit(config, "--run_dir=run")
    before = Path("run/config.yaml").read_text()
    fit(config, "--run_dir=run", "--ckpt_path=run/checkpoints/last.ckpt", "--trainer.max_steps=8")
    assert Path("run/config.yaml").read_text() == before
    assert yaml.safe_load(Path("run/config-2.yaml").read_text())["trainer"]["max_steps"] == 8
    assert load("run/checkpoints/last.ckpt")["global_step"] == 8
    with Path("run/metrics.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file) if row["train/loss"]] == ["2", "4", "6", "8"]


def test_resumed_run_keeps_the_best_of_the_first(here):
    config = write_config(here / "toy.yaml", checkpoint__monitor="val/loss", trainer__max_steps=10)
    fit(config, "--run_dir=one")
    best = load("one/checkpoints/best.ckpt")["global_step"]
    # a rate at which every later validation is worse
    fit(
        config,
        "--run_dir=two",
        "--ckpt_path=one/checkpoints/last.ckpt",
        "--trainer.max_steps=20",
        "--trainer.callbacks+=toy_experiment.Diverge",
    )
    assert load("two/checkpoints/best.ckpt")["global_step"] == best
    assert Path("one/checkpoints/best.ckpt").is_file()


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_averaging_may_not_be_dropped_on_resume(here, capsys):
    fit(write_config(here / "a.yaml", trainer__callbacks=AVERAGING, trainer__max_steps=2), "--run_dir=one")
    capsys.readouterr()
    fit(write_config(here / "b.yaml"), "--ckpt_path=one/checkpoints/last.ckpt", code=2)
    assert "experiments.callbacks.WeightAveraging" in capsys.readouterr().err


def test_nan_stops_the_run_and_spares_the_last_good_checkpoint(here, capsys):
    config = write_config(here / "toy.yaml", trainer__callbacks=AVERAGING)
    fit(config, "--run_dir=run", "--model.nan_at_step=8", code=3)
    error = capsys.readouterr().err
    assert "error: the loss of step 8 is nan; examples " in error
    assert "resume with: python -m experiments fit --ckpt_path run/checkpoints/last.ckpt" in error
    checkpoint = load("run/checkpoints/last.ckpt")
    assert checkpoint["global_step"] == 5
    assert all(torch.isfinite(value).all() for value in checkpoint["state_dict"].values())
    assert not list(Path("run/checkpoints").glob("*.tmp"))


def test_full_disk_leaves_the_last_good_checkpoint(here, capsys, monkeypatch):
    config = write_config(here / "toy.yaml")
    fit(config, "--run_dir=run", "--trainer.max_steps=5")
    whole = Path("run/checkpoints/last.ckpt").read_bytes()
    real = os.fsync

    def full(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            return real(descriptor)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    capsys.readouterr()
    fit(config, "--run_dir=run", "--ckpt_path=run/checkpoints/last.ckpt", code=4)
    error = capsys.readouterr().err.splitlines()[0]
    assert error.startswith('error: cannot write the checkpoint "run/checkpoints/last.ckpt": No space left on device (')
    assert "MB free" in error
    assert Path("run/checkpoints/last.ckpt").read_bytes() == whole


def test_ctrl_c_in_a_process_of_its_own(here):
    config = write_config(here / "toy.yaml", trainer__max_steps=1_000_000, trainer__val_check_interval=1_000_000)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{root}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", "fit", "-c", str(config), "--run_dir=run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=here,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("step 1/1000000, loss "), line
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "stopping after this step (SIGINT); Ctrl-C again stops at once" in output
    assert load(here / "run" / "checkpoints" / "last.ckpt")["global_step"] >= 1


def test_second_ctrl_c_stops_at_once(here):
    config = write_config(here / "toy.yaml")
    # the second signal arrives within the step that the first one wanted to end
    fit(
        config, "--run_dir=run", "--model.signal_at_step=7", "--model.signal_name=SIGINT", "--model.signals=2", code=130
    )
    assert load("run/checkpoints/last.ckpt")["global_step"] == 5, "the state within a step is not one to resume from"
