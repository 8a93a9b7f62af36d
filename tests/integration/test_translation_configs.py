"""Every shipped config: parses, builds, and runs a few steps of fit, test, validate and predict."""

import csv
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from corpus import CONFIGS, SMALL, options, small_corpus

from experiments.__main__ import main
from experiments.translate import main as translate
from lit_models.translation import load_checkpoint

SHIPPED = sorted(path.name for path in CONFIGS.glob("*.yaml"))


@pytest.fixture
def corpus(tmp_path):
    return small_corpus(tmp_path / "data")


def run(command, *words):
    assert main([command, *words]) == 0


@pytest.mark.parametrize("config", SHIPPED)
def test_fit_validate_test_predict(config, corpus, tmp_path, capsys):
    shipped = ["-c", str(CONFIGS / config)]
    small = options(
        {
            **SMALL,
            "--data.init_args.data_dir": str(corpus),
            "--data.init_args.valid_prefix": "valid",
            "--data.init_args.test_prefix": "test",
        }
    )
    run_dir = tmp_path / "run"
    steps = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.accumulate_grad_batches=1"]
    run("fit", *shipped, *small, *steps, f"--run_dir={run_dir}")
    printed = capsys.readouterr().out
    assert "test/bleu" in printed
    assert "tok:13a" in printed
    assert f"run directory  {run_dir}" in printed
    for name in ("config.yaml", "git.txt", "environment.json", "command.txt", "metrics.csv", "test_translations.txt"):
        assert (run_dir / name).is_file(), name
    checkpoint = run_dir / "checkpoints" / "best.ckpt"
    for command in ("validate", "test", "predict"):
        run(command, f"--ckpt_path={checkpoint}", f"--run_dir={tmp_path / command}")
    predictions = (tmp_path / "predict" / "predictions.txt").read_text(encoding="utf-8").splitlines()
    assert predictions == (tmp_path / "test" / "test_translations.txt").read_text(encoding="utf-8").splitlines()
    # The checkpoint alone is enough, and gives what testing gave, in the order of the lines.
    settings = load_checkpoint(checkpoint).checkpoint["heddle"]["settings"]["search"]
    out = tmp_path / "out.txt"
    words = ["--input", str(corpus / "test.en"), "--output", str(out), "--beam", str(settings["beam_size"])]
    words += ["--length-penalty", str(settings["length_penalty"])]
    words += ["--length-penalty-kind", settings["length_penalty_kind"]]
    assert translate(["--checkpoint", str(checkpoint), *words]) == 0
    assert len(out.read_text(encoding="utf-8").splitlines()) == len(predictions)


@pytest.mark.parametrize("size", ["tiny", "small", "base", "big"])
def test_sizes_lie_over_any_config(size, capsys):
    words = ["-c", str(CONFIGS / "synthetic.yaml"), "-c", str(CONFIGS / "network" / f"{size}.yaml"), "--print_config"]
    run("fit", *words)
    dim = {"tiny": 128, "small": 512, "base": 512, "big": 1024}[size]
    assert f"dim: {dim}" in capsys.readouterr().out


def fit_synthetic(corpus, run_dir, *words):
    """Train the default config's small twin with dropout, averaging, random segmentation and micro-batches."""
    values = {
        **SMALL,
        "--data.init_args.data_dir": str(corpus),
        "--data.init_args.tokenizer.dropout": "0.1",
        "--model.init_args.network.dropout": "0.2",
        "--model.init_args.network.attention_dropout": "0.1",
        "--trainer.accumulate_grad_batches": "2",
        "--trainer.val_check_interval": "6",
        "--test_after_fit": "false",
        "--auto_precision": "false",
        "--run_dir": str(run_dir),
        "--trainer.callbacks+": "experiments.callbacks.WeightAveraging",
    }
    run("fit", "-c", str(CONFIGS / "synthetic.yaml"), *options(values), *words)
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


def test_resumed_in_the_middle_of_an_epoch_equals_uninterrupted(corpus, tmp_path):
    """Same batches, same dropout, same segmentation, same averages: the same weights to the last bit."""
    whole = fit_synthetic(corpus, tmp_path / "whole", "--trainer.max_steps=8")
    fit_synthetic(corpus, tmp_path / "first", "--trainer.max_steps=3")
    checkpoint = tmp_path / "first" / "checkpoints" / "last.ckpt"
    resumed = fit_synthetic(corpus, tmp_path / "second", "--trainer.max_steps=8", f"--ckpt_path={checkpoint}")
    assert resumed["global_step"] == whole["global_step"] == 8
    assert resumed["heddle"]["tokens_seen"] == whole["heddle"]["tokens_seen"]
    for name, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name


def test_settings_that_a_checkpoint_would_override_are_refused(corpus, tmp_path, capsys):
    fit_synthetic(corpus, tmp_path / "first", "--trainer.max_steps=1")
    checkpoint = tmp_path / "first" / "checkpoints" / "last.ckpt"
    capsys.readouterr()
    with_other_rate = [
        *["-c", str(tmp_path / "first" / "config.yaml"), f"--ckpt_path={checkpoint}"],
        *["--model.init_args.optimizer.init_args.lr=1e-5", f"--run_dir={tmp_path / 'second'}"],
        "--trainer.max_steps=3",
    ]
    assert main(["fit", *with_other_rate]) == 2
    message = capsys.readouterr().err
    assert "optimizer.init_args.lr: checkpoint 0.003, config 1e-05" in message


def test_metrics_are_recorded_at_their_own_step(corpus, tmp_path):
    fit_synthetic(corpus, tmp_path / "run", "--trainer.max_steps=6", "--trainer.log_every_n_steps=2")
    with (tmp_path / "run" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rates = {int(row["step"]): float(row["train/learning_rate"]) for row in rows if row["train/learning_rate"]}
    # 3e-3 after a warm-up of 100 steps; the rate of step n is that of the n-th update.
    assert rates == {step: pytest.approx(3e-3 * step / 100) for step in (2, 4, 6)}
    tokens = [float(row["train/tokens"]) for row in rows if row["train/tokens"]]
    assert len(tokens) == 3
    assert tokens == sorted(set(tokens))
    assert all(row["train/loss"] for row in rows if row["train/tokens"])
    validated = [row for row in rows if row["val/bleu"]]
    assert [row["step"] for row in validated] == ["3", "6"]
    assert all(row["val/loss"] and row["val/perplexity"] and row["val/chrf"] for row in validated)


def test_a_run_becomes_a_row(corpus, tmp_path, monkeypatch, capsys):
    from experiments.bench import record

    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    fit_synthetic(corpus, tmp_path / "run", "--trainer.max_steps=2", "--test_after_fit=true")
    run("bench", "run", str(tmp_path / "run"), "--record")
    with (tmp_path / "results" / "runs.csv").open(encoding="utf-8", newline="") as file:
        [row] = list(csv.DictReader(file))
    assert row["steps"] == "2"
    assert row["config"].endswith("synthetic.yaml")
    assert set(row) >= {"date", "commit", "hardware", "torch", "minutes", "test/bleu", "test/bleu_moses_lowercase"}
    assert main(["bench", "run", str(tmp_path)]) == 2
    assert "is not the directory of a run that was tested" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["network.pad_id=9"], "network.pad_id is 9; in the data's vocabulary it is 0"),
        (
            ["network.positions=learned", "network.max_positions=64"],
            "network.max_positions 64 is less than the data's max_length 256",
        ),
    ],
)
def test_networks_that_contradict_the_data_are_refused_before_training(changes, message, corpus, tmp_path, capsys):
    small = options({**SMALL, "--data.init_args.data_dir": str(corpus), "--run_dir": str(tmp_path / "run")})
    words = [f"--model.init_args.{change}" for change in changes]
    assert main(["fit", "-c", str(CONFIGS / "synthetic.yaml"), *small, *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
