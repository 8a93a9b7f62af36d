"""metrics.csv, W&B, git and the environment."""

import csv
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from toy_experiment import write_config

from experiments import environment, loggers
from experiments.cli import main
from experiments.loggers import LazyWandbLogger, MetricsCSV, unreachable, wandb_mode
from experiments.run_directory import RunDirectory, create, run_name


def rows_of(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_columns_that_appear_later(tmp_path):
    logger = MetricsCSV(tmp_path / "run")
    logger.log_metrics({"train/loss": torch.tensor(0.5), "epoch": 0}, step=1)
    assert rows_of(logger.path) == [{"step": "1", "epoch": "0", "train/loss": "0.5"}], "written at once"
    logger.log_metrics({"val/bleu": 31.5, "name": 'with "quotes", and commas'}, step=2)
    logger.log_metrics({"train/loss": 0.25}, step=3)
    empty = {"epoch": "", "train/loss": "", "val/bleu": "", "name": ""}
    assert rows_of(logger.path)[1:] == [
        {**empty, "step": "2", "val/bleu": "31.5", "name": 'with "quotes", and commas'},
        {**empty, "step": "3", "train/loss": "0.25"},
    ]


def test_a_second_logger_continues_the_file(tmp_path):
    MetricsCSV(tmp_path).log_metrics({"a": 1.0}, step=1)
    again = MetricsCSV(tmp_path)
    again.log_metrics({"b": 2.0}, step=2)
    assert [(row["step"], row["a"], row["b"]) for row in rows_of(again.path)] == [("1", "1.0", ""), ("2", "", "2.0")]


@pytest.mark.parametrize(
    ("choice", "variable", "mode"),
    [
        ("disabled", "online", None),
        ("offline", "online", "offline"),
        ("online", "offline", "online"),
        ("auto", "disabled", None),
        ("auto", "offline", "offline"),
        ("auto", "dryrun", "offline"),
    ],
)
def test_wandb_mode(monkeypatch, choice, variable, mode):
    monkeypatch.setenv("WANDB_MODE", variable)
    assert wandb_mode(choice) == mode


def test_wandb_is_not_required(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    assert wandb_mode("auto") is None


@pytest.mark.parametrize("logged_in", [True, False])
def test_wandb_auto_follows_the_login(monkeypatch, logged_in):
    import wandb

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda prompt, verify: logged_in)
    assert wandb_mode("auto") == ("online" if logged_in else "offline")


def test_unreachable_server():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        assert unreachable(f"http://127.0.0.1:{port}") == "127.0.0.1: Connection refused"
        server.listen()
        assert unreachable(f"http://127.0.0.1:{port}") is None


def test_wandb_offline_keeps_config_and_id(tmp_path, monkeypatch):
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    started = []
    start = LazyWandbLogger._start
    monkeypatch.setattr(LazyWandbLogger, "_start", lambda self: started.append(start(self)) or started[-1])
    config = write_config(tmp_path / "toy.yaml", wandb="auto", trainer__max_steps=2)
    assert main(["fit", "-c", str(config), "--run_dir=one"]) == 0
    assert main(["fit", "-c", str(config), "--ckpt_path=one/checkpoints/last.ckpt", "--trainer.max_steps=4"]) == 0
    assert len(started) == 2
    assert started[0].id == started[1].id, "the resumed run continues the same W&B run"
    assert started[0].config["cli"]["trainer"]["max_steps"] == 2
    assert started[1].config["cli"]["model"]["init_args"]["network"]["dim"] == 4
    assert list(Path("one/wandb").glob("offline-run-*"))
    checkpoint = torch.load("one/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["RunRecord"]["wandb_id"] == started[0].id


def test_loggers_of_the_config_are_added(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "other"}}
    config = write_config(tmp_path / "toy.yaml", trainer__logger=logger, trainer__max_steps=4)
    assert main(["fit", "-c", str(config), "--run_dir=run"]) == 0
    assert rows_of("run/metrics.csv")
    assert list(Path("other").rglob("metrics.csv"))


def git(directory, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(directory), *identity, *words], check=True, capture_output=True)


def test_git_state(tmp_path, monkeypatch):
    text, diff = environment.describe_git(tmp_path)
    assert text.startswith("commit: unknown (") and diff == ""
    git(tmp_path, "init", "-b", "main")
    assert environment.describe_git(tmp_path)[0].startswith("commit: none yet\nbranch: main\n")
    (tmp_path / "a.txt").write_text("one\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "x")
    text, diff = environment.describe_git(tmp_path)
    assert text.endswith("status: clean\n") and len(text.split()[1]) == 40 and diff == ""
    (tmp_path / "a.txt").write_text("two\n")
    (tmp_path / "new.txt").write_text("")
    text, diff = environment.describe_git(tmp_path)
    assert " M a.txt\n?? new.txt\n" in text
    assert "-one\n+two\n" in diff
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.describe_git(tmp_path) == ("commit: unknown (git is not installed)\n", "")


def test_run_names_and_directories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = environment._ROOT / "experiments" / "configs" / "translation" / "some.yaml"
    assert run_name(str(shipped)) == "translation/some"
    run = create(None, "translation/some", "fit", None)
    run.record(yaml.safe_dump({"a": 1}), ["fit", "-c", "a b.yaml"], None)
    assert run_name(str(run.path / "config.yaml")) == "translation/some", "a replayed run keeps its name"
    assert (run.path / "command.txt").read_text() == "python -m experiments fit -c 'a b.yaml'\n"
    assert create(None, "x/y", "test", None).path.name.startswith("test_")
    monkeypatch.setattr("experiments.run_directory.datetime", FixedTime)
    paths = [create(None, "x/y", "fit", None).path for _ in range(3)]
    assert [path.name for path in paths] == ["now", "now-2", "now-3"]
    assert RunDirectory(run.path, "n", False).free_name("config.yaml").name == "config-2.yaml"


def test_runs_that_begin_together_get_directories_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()  # an empty one may be taken, once
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: create("run", "x/y", "fit", None), range(8)))
    assert len({run.path for run in runs}) == 8
    assert Path("run") in {run.path for run in runs}
    first = next(run for run in runs if run.path == Path("run"))
    first.record("a: 1\n", ["fit"], None)
    assert not Path("run/.claim").exists()
    assert create("run", "x/y", "fit", None).path.name != "run"
    for run in runs:
        run.discard()
    assert Path("run/config.yaml").is_file(), "the directory was there before"
    assert not [run for run in runs if run.is_new and run.path.exists()]


class FixedTime:
    @classmethod
    def now(cls):
        return cls()

    def strftime(self, form):
        return "now"
