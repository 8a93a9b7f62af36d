"""A classifier that is stopped in the middle of an epoch and resumed equals one that was never interrupted."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from images import small, write_images

from experiments.__main__ import main

# Whatever is random, in the workers, on the device and in the network; an epoch has 4 batches.
EVERYTHING = [
    "--data.init_args.num_workers=2",
    "--data.init_args.erasing.probability=0.5",
    "--model.init_args.network.init_args.drop_path=0.4",
    "--model.init_args.network.init_args.dropout=0.1",
    "--model.init_args.schedule=lit_models.optimization.WarmupCosine",
    "--model.init_args.schedule.total_steps=7",
    "--model.init_args.schedule.warmup_steps=2",
    "--trainer.accumulate_grad_batches=1",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data"))


def fit(words, run_dir, *more):
    common = ["--trainer.val_check_interval=3", "--test_after_fit=false", f"--run_dir={run_dir}"]
    assert main(["fit", *words, *common, *more]) == 0
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


def assert_equal(one, two, name=""):
    """Compare nested states to the last bit."""
    assert type(one) is type(two), name
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), name
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), name
        for key in one:
            assert_equal(one[key], two[key], f"{name}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), name
        for index, (left, right) in enumerate(zip(one, two, strict=True)):
            assert_equal(left, right, f"{name}[{index}]")
    else:
        assert one == two, name


def assert_resumes(words, tmp_path):
    whole = fit(words, tmp_path / "whole", "--trainer.max_steps=7")
    fit(words, tmp_path / "first", "--trainer.max_steps=3")
    checkpoint = tmp_path / "first" / "checkpoints" / "last.ckpt"
    resumed = fit(words, tmp_path / "second", "--trainer.max_steps=7", f"--ckpt_path={checkpoint}")
    assert resumed["global_step"] == whole["global_step"] == 7
    assert resumed["heddle"]["images_seen"] == whole["heddle"]["images_seen"] == 42
    states = ["state_dict", "optimizer_states", "lr_schedulers", *{"weight_averaging"} & whole.keys()]
    for name in states:
        assert_equal(whole[name], resumed[name], name)
    return whole


def test_everything_that_is_random(data, tmp_path):
    """RandAugment, erasing, mixing, repeated augmentation, dropout, stochastic depth, averages, teacher, workers."""
    teacher = fit(small("resnet_cifar10.yaml", data), tmp_path / "teacher", "--trainer.max_steps=1")
    assert teacher["global_step"] == 1
    source = tmp_path / "teacher" / "checkpoints" / "last.ckpt"
    words = small("deit_base_distilled_imagenet.yaml", data, **{"distillation.teacher.source": str(source)})
    whole = assert_resumes([*words, *EVERYTHING], tmp_path)
    assert "weight_averaging" in whole


def test_batch_norm_and_momentum(data, tmp_path):
    assert_resumes(small("resnet_cifar10.yaml", data), tmp_path)
