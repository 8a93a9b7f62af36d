"""Averaged checkpoints at the end of a fit, and early stopping on BLEU."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from corpus import CONFIGS, SMALL, options, small_corpus

from experiments.__main__ import main


@pytest.fixture
def fit(tmp_path):
    corpus = small_corpus(tmp_path / "data")

    def run(run_dir, *words):
        values = {
            **SMALL,
            "--data.init_args.corpus": "directory",
            "--data.init_args.data_dir": str(corpus),
            "--checkpoint.monitor": "val/bleu",
            "--checkpoint.mode": "max",
            "--auto_precision": "false",
            "--trainer.callbacks": "[]",
            "--run_dir": str(run_dir),
        }
        return main(["fit", "-c", str(CONFIGS / "synthetic.yaml"), *options(values), *words])

    return run


def load(path):
    return torch.load(path, weights_only=True)


def assert_mean(averaged, files):
    states = [load(path)["state_dict"] for path in files]
    result = load(averaged)
    assert sorted(result["heddle"]["averaged"]) == sorted(path.name for path in files)
    assert not any(torch.equal(states[0][name], states[1][name]) for name in states[0] if "embedding" in name)
    for name, value in result["state_dict"].items():
        expected = torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        assert torch.equal(value, expected), name


def test_the_last_two_are_averaged_and_tested(fit, tmp_path, capsys):
    words = ["--checkpoint.keep_last=2", "--checkpoint.average=last", "--trainer.val_check_interval=2"]
    run = tmp_path / "run"
    assert fit(run, *words, "--test_after_fit=true", "--trainer.max_steps=6") == 0
    checkpoints = run / "checkpoints"
    names = {path.name for path in checkpoints.iterdir()}
    assert names == {"best.ckpt", "last.ckpt", "last-step4.ckpt", "last-step6.ckpt", "averaged.ckpt"}
    assert load(checkpoints / "last-step4.ckpt")["global_step"] == 4
    assert_mean(checkpoints / "averaged.ckpt", [checkpoints / "last-step4.ckpt", checkpoints / "last-step6.ckpt"])
    printed = capsys.readouterr().out
    assert f"averaged       {checkpoints / 'averaged.ckpt'}" in printed
    # What was tested after the fit is what the file gives.
    tested = (run / "test_translations.txt").read_text(encoding="utf-8")
    words = [f"--ckpt_path={checkpoints / 'averaged.ckpt'}", f"--run_dir={tmp_path / 'test'}"]
    assert main(["test", *words]) == 0
    assert (tmp_path / "test" / "test_translations.txt").read_text(encoding="utf-8") == tested
    scores = [line for line in printed.splitlines() if line.startswith("test/loss")]
    assert scores and scores[0] in capsys.readouterr().out.splitlines()


def test_a_resumed_run_averages_with_what_it_continues(fit, tmp_path):
    words = ["--checkpoint.keep_last=2", "--checkpoint.average=last", "--trainer.val_check_interval=2"]
    words += ["--test_after_fit=false"]
    assert fit(tmp_path / "one", *words, "--trainer.max_steps=2") == 0
    checkpoint = tmp_path / "one" / "checkpoints" / "last.ckpt"
    assert fit(tmp_path / "two", *words, "--trainer.max_steps=4", f"--ckpt_path={checkpoint}") == 0
    files = [tmp_path / "two" / "checkpoints" / f"last-step{step}.ckpt" for step in (2, 4)]
    assert_mean(tmp_path / "two" / "checkpoints" / "averaged.ckpt", files)
    assert (tmp_path / "one" / "checkpoints" / "last-step2.ckpt").is_file()


def test_a_quick_look_keeps_and_averages_nothing(fit, tmp_path):
    words = ["--checkpoint.keep_last=2", "--checkpoint.average=last", "--test_after_fit=false"]
    assert fit(tmp_path / "quick", *words, "--trainer.fast_dev_run=true") == 0
    assert not list((tmp_path / "quick").rglob("*.ckpt"))


def test_the_best_two_are_averaged(fit, tmp_path):
    words = ["--checkpoint.keep_best=2", "--checkpoint.average=best", "--trainer.val_check_interval=1"]
    words += ["--checkpoint.monitor=val/loss", "--checkpoint.mode=min"]
    run = tmp_path / "run"
    assert fit(run, *words, "--test_after_fit=false", "--trainer.max_steps=3") == 0
    files = sorted((run / "checkpoints").glob("best-step=*.ckpt"))
    assert len(files) == 2
    assert_mean(run / "checkpoints" / "averaged.ckpt", files)
    # The command finds the same files.
    output = tmp_path / "again.ckpt"
    assert main(["average", "--output", str(output), "--run", str(run), "--best", "2"]) == 0
    assert_mean(output, files)


def test_early_stopping_on_bleu_is_a_good_end(fit, tmp_path, capsys):
    run = tmp_path / "run"
    words = [
        "--model.init_args.optimizer.init_args.lr=0.0",
        "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping",
        "--trainer.callbacks.monitor=val/bleu",
        "--trainer.callbacks.mode=max",
        "--trainer.callbacks.patience=1",
        "--trainer.val_check_interval=2",
        "--trainer.max_steps=50",
    ]
    assert fit(run, *words, "--test_after_fit=true") == 0
    assert load(run / "checkpoints" / "last.ckpt")["global_step"] == 4
    printed = capsys.readouterr().out
    assert "test/bleu" in printed
    assert f"run directory  {run}" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint.average=last"], '"checkpoint.keep_last" must be at least 2'),
        (["--checkpoint.average=best"], '"checkpoint.keep_best" must be at least 2'),
        (["--checkpoint.keep_last=0"], '"checkpoint.keep_last" must be at least 1; got 0'),
        (["--checkpoint.average=best", "--checkpoint.keep_best=2", "--checkpoint.monitor=null"], "must name a metric"),
        (["--checkpoint.average=first"], "checkpoint.average"),
    ],
)
def test_settings_that_cannot_be_met(fit, tmp_path, capsys, words, message):
    assert fit(tmp_path / "run", *words) == 2
    assert message in capsys.readouterr().err
