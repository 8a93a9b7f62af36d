"""Two processes train as one does with twice the micro-batches: the loss is a mean over all tokens of a step."""

import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from corpus import CONFIGS, SMALL, options, small_corpus


def run(*words):
    done = subprocess.run(
        [sys.executable, "-m", "experiments", *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def fit(corpus, run_dir, more=(), **changes):
    values = {
        **SMALL,
        "--data.init_args.data_dir": str(corpus),
        "--model.init_args.network.dropout": "0",
        "--auto_precision": "false",
        "--trainer.precision": "64-true",
        "--trainer.max_steps": "4",
        "--trainer.gradient_clip_val": "0.5",
        "--run_dir": str(run_dir),
        **{f"--trainer.{name}": str(value) for name, value in changes.items()},
    }
    # Gradients of unlike batches: a mean of means would differ visibly.
    run("fit", "-c", str(CONFIGS / "synthetic.yaml"), *options(values), *more)
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


def test_two_processes_equal_two_micro_batches(tmp_path):
    corpus = small_corpus(tmp_path / "data")
    micro = {"val_check_interval": 8, "accumulate_grad_batches": 2}
    one = fit(corpus, tmp_path / "one", **micro)
    two = fit(corpus, tmp_path / "two", devices=2, strategy="ddp", val_check_interval=4)
    assert one["global_step"] == two["global_step"] == 4
    for name, value in one["state_dict"].items():
        # float64 weights: only the order of the sums differs.
        torch.testing.assert_close(two["state_dict"][name], value, atol=1e-9, rtol=1e-9)
    translations = [(tmp_path / name / "test_translations.txt").read_text(encoding="utf-8") for name in ("one", "two")]
    assert translations[0] == translations[1]
    assert len(translations[0].splitlines()) == 12
    run("predict", f"--ckpt_path={tmp_path / 'two/checkpoints/best.ckpt'}", f"--run_dir={tmp_path / 'predict'}")
    assert (tmp_path / "predict" / "predictions.txt").read_text(encoding="utf-8") == translations[0]


def test_two_processes_resume_exactly(tmp_path):
    """Each process draws dropout from a generator of its own, and batches of other lengths leave it elsewhere."""
    corpus = small_corpus(tmp_path / "data")
    both = {"devices": 2, "strategy": "ddp", "val_check_interval": 4}
    more = ["--model.init_args.network.dropout=0.3", "--test_after_fit=false"]
    whole = fit(corpus, tmp_path / "whole", more, **both)
    first = fit(corpus, tmp_path / "first", [*more, "--trainer.max_steps=2"], **both)
    states = [state["torch"] for state in first["callbacks"]["RNGState"]["processes"]]
    assert len(states) == 2
    assert not torch.equal(*states)
    resumed = fit(corpus, tmp_path / "rest", [*more, f"--ckpt_path={tmp_path / 'first/checkpoints/last.ckpt'}"], **both)
    assert resumed["global_step"] == whole["global_step"] == 4
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], value, atol=1e-12, rtol=1e-12)
