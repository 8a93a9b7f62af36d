"""Two processes train a detector as one does with twice the batch."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from detection import small, write_scenes
from test_classification_distributed import in_two_processes, metrics

from experiments.__main__ import main

NETWORK = "--model.init_args.network.init_args"
# Statistics of batches would differ with their sizes; each image is one size, for padding changes features a little.
BACKBONE = {
    "type": "ClassifierBackbone",
    "network": "VisionTransformer",
    "network_settings": {"image_size": 40, "patch_size": 8, "dim": 16, "depth": 1, "num_heads": 2},
}


def words_of(data, run_dir, batch_size):
    return [
        *small("synthetic.yaml", data),
        f"--data.init_args.batch_size={batch_size}",
        "--data.init_args.sizes=[40]",
        "--data.init_args.eval_size=40",
        "--data.init_args.crop_probability=0",
        "--data.init_args.aspect_groups=0",
        f"{NETWORK}.backbone={json.dumps(BACKBONE)}",
        # Adam's first step is the sign of a gradient, however small: the order of a sum would decide it.
        "--model.init_args.optimizer={class_path: torch.optim.SGD, init_args: {lr: 0.5}}",
        "--model.init_args.schedule.init_args.warmup_steps=0",
        "--trainer.callbacks=[]",
        "--trainer.accumulate_grad_batches=2",
        "--trainer.max_steps=2",
        "--trainer.limit_val_batches=0",
        "--trainer.log_every_n_steps=1",
        "--test_after_fit=false",
        f"--run_dir={run_dir}",
    ]


def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    """The processes' shares of a step hold different numbers of objects."""
    data = write_scenes(tmp_path / "data", train=16, side=40)
    two, one = tmp_path / "two", tmp_path / "one"
    in_two_processes(["fit", *words_of(data, two, batch_size=2)])
    assert main(["fit", *words_of(data, one, batch_size=4)]) == 0
    logged, alone = metrics(two), metrics(one)
    assert len(logged["train/loss"]) == 2
    for name in ("train/loss", "train/loss_class", "train/loss_l1", "train/loss_giou", "train/images"):
        assert logged[name] == pytest.approx(alone[name], rel=1e-4), name
    states = [torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for path in (one, two)]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-5, rtol=1e-4)
