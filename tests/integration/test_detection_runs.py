"""Detectors that are resumed, and mistakes in data, checkpoints and settings: one clear line each."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from detection import small, write_scenes
from test_classification_resume import assert_equal

from datamodules import COCODataModule
from experiments.__main__ import main

STEPS = ["--trainer.max_steps=3", "--trainer.val_check_interval=3", "--test_after_fit=false"]
STEPS += ["--trainer.callbacks=[]", "--trainer.log_every_n_steps=1"]
NETWORK = "--model.init_args.network.init_args"
NO_BATCH_STATISTICS = {
    "type": "ClassifierBackbone",
    "network": "VisionTransformer",
    "network_settings": {"image_size": 40, "patch_size": 8, "dim": 16, "depth": 1, "num_heads": 2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    assert main(["fit", *small("synthetic.yaml", data), *STEPS, f"--run_dir={run_dir}"]) == 0
    return run_dir / "checkpoints" / "last.ckpt"


@pytest.fixture
def call(tmp_path, capsys):
    """Run a command; returns exit code and the lines of errors."""

    def run(command, *words):
        capsys.readouterr()
        code = main([command, *map(str, words), f"--run_dir={tmp_path / 'run'}"])
        errors = capsys.readouterr().err.splitlines()
        return code, [line for line in errors if re.match("error: |Traceback|  ", line)]

    return run


@pytest.mark.parametrize("config", ["synthetic.yaml", "synthetic_conditional.yaml"])
def test_resuming_in_mid_epoch_changes_nothing(data, config, tmp_path):
    """Crops, flips, dropout, averages, decay and workers; an epoch has 4 batches, a step two of them."""
    words = [*small(config, data), "--trainer.callbacks=experiments.callbacks.WeightAveraging"]
    words += ["--trainer.callbacks.evaluate_raw=true", "--trainer.accumulate_grad_batches=2"]
    words += [f"{NETWORK}.dropout=0.1", f"--data.init_args.num_workers={int(config == 'synthetic.yaml')}"]
    words += ["--model.init_args.schedule.init_args.milestones=[4]", "--trainer.val_check_interval=6"]

    def fit(name, steps, *more):
        run = [f"--trainer.max_steps={steps}", "--test_after_fit=false", f"--run_dir={tmp_path / name}"]
        assert main(["fit", *words, *run, *more]) == 0
        return torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)

    whole = fit("whole", 6)
    fit("first", 3)
    resumed = fit("second", 6, f"--ckpt_path={tmp_path / 'first' / 'checkpoints' / 'last.ckpt'}")
    assert resumed["heddle"]["images_seen"] == whole["heddle"]["images_seen"] == 48
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "weight_averaging"):
        assert_equal(whole[name], resumed[name], name)
    assert "val_raw/AP" in (tmp_path / "whole" / "metrics.csv").read_text().splitlines()[0]


def test_joint_and_cut_steps_have_the_same_loss(tmp_path):
    """The loader's ``step_images`` and ``step_boxes`` make the shares of two halves add up, from files to the log."""
    directory = write_scenes(tmp_path / "even", train=16, side=40)
    losses = {}
    for batch, accumulated in ((8, 1), (4, 2)):
        words = [*small("coco_tiny.yaml", directory), *STEPS, f"--data.init_args.batch_size={batch}"]
        words += [f"--trainer.accumulate_grad_batches={accumulated}", "--trainer.val_check_interval=6"]
        words += [
            "--data.init_args.sizes=[40]",
            "--data.init_args.eval_size=40",
            "--data.init_args.crop_probability=0",
            f"{NETWORK}.dropout=0",
        ]
        words += ["--data.init_args.aspect_groups=0"]  # which would shuffle the batches
        words += [f"{NETWORK}.backbone={json.dumps(NO_BATCH_STATISTICS)}"]
        assert main(["fit", *words, f"--run_dir={tmp_path / str(batch)}"]) == 0
        header, *lines = (tmp_path / str(batch) / "metrics.csv").read_text().splitlines()
        column = header.split(",").index("train/loss")
        losses[batch] = [float(line.split(",")[column]) for line in lines if line.split(",")[column]]
    assert losses[8][0] == pytest.approx(losses[4][0], rel=1e-4)


def test_a_step_knows_its_images(data):
    module = COCODataModule(str(data), batch_size=3, sizes=(32,), max_size=56)
    module.setup("fit")
    assert {batch.step_images for batch in module.train_dataloader()} == {3}
    loader = module.train_dataloader()
    loader._step = lambda: (2, 5)
    batches = list(loader)
    assert [batch.step_images for batch in batches] == [6, 6, 6, 6, 3], "the last step of an epoch is short"
    assert all(batch.step_images == 0 for batch in module.val_dataloader())


def test_predictions_that_are_no_numbers_end_a_run(data, call):
    code, lines = call("fit", *small("synthetic.yaml", data), *STEPS, "--model.init_args.optimizer.init_args.lr=1e30")
    assert code == 3 and len(lines) == 1
    assert re.match(r"error: step 2: the predictions are NaN or infinite from layer 1 of 2 on, .*image ids", lines[0])


def test_a_json_with_other_classes_than_the_checkpoint(checkpoint, tmp_path, call):
    other = write_scenes(tmp_path / "other", categories={2: "red", 5: "blue", 9: "green"})
    words = [f"--ckpt_path={checkpoint}", f"--data.init_args.data_dir={other}"]
    for command in ("test", "predict"):
        code, lines = call(command, *words)
        assert code == 2 and len(lines) == 1 and "differ in their categories (2 and 3): only in" in lines[0]
        assert "9 green" in lines[0]


def test_a_test_split_is_opened_before_training(data, call, tmp_path):
    words = [*small("bccd.yaml", data), *STEPS, "--test_after_fit=true", "--data.init_args.test_images=nowhere"]
    code, lines = call("fit", *words)
    assert code == 2 and len(lines) == 1 and "there are no annotations of" in lines[0] and "nowhere" in lines[0]
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_more_objects_than_queries(data, call):
    with pytest.warns(UserWarning, match=r"image \d+ has 3 objects, but the network has 2 queries: 1 of its objects"):
        assert call("fit", *small("synthetic.yaml", data), *STEPS, f"{NETWORK}.num_queries=2")[0] == 0


def test_public_weights_of_other_classes(data, tmp_path, call, capsys):
    """The official layout: everything but the head is loaded, and the head is named."""
    from lit_models.detection import DETR
    from lit_models.pretrained import detector_to_official

    sizes = {"dim": 16, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 2, "feed_forward_dim": 16}
    network = DETR(4, backbone="resnet18", num_queries=5, **sizes)
    torch.save({"model": detector_to_official(network)}, tmp_path / "detr.pth")
    words = [*small("detr_r50_coco.yaml", data, init_from=str(tmp_path / "detr.pth")), *STEPS]
    words += [f"{NETWORK}.backbone=resnet18", "--data.init_args.ids=contiguous", "--trainer.accumulate_grad_batches=1"]
    words += ["--model.init_args.optimizer.init_args.lr=0", "--model.init_args.backbone_learning_rate=0"]
    assert main(["fit", *words, "--trainer.max_steps=1", f"--run_dir={tmp_path / 'run'}"]) == 0
    weights = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in network.state_dict().items():
        assert name.startswith("class_head.") or torch.equal(weights[f"network.{name}"], value), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([f"{NETWORK}.backbone={json.dumps({'name': 'resnet19'})}"], "backbone name must be one of resnet18,"),
        ([f"{NETWORK}.backbone={json.dumps({'nam': 'resnet18'})}"], "a ResNetBackbone cannot be built from"),
        (["--model.init_args.init_from=none.ckpt"], 'init_from: there is no file "none.ckpt"'),
        (["--model.init_args.schedule.init_args.milestones=[5, 5]"], "milestones must be ascending and at least 1"),
        (
            ["--model.init_args.criterion={class_path: SetCriterion, init_args: {classification: focal}}"],
            "criterion.classification is focal, but the outputs of a DETR are for softmax",
        ),
        (["--model.network=ConditonalDETR"], 'did you mean "ConditionalDETR"?'),
        (
            ["--trainer.callbacks=ShowDetections", "--trainer.callbacks.threshold=2"],
            "a threshold between 0 and 1; got 2",
        ),
    ],
)
def test_settings(data, call, words, message):
    code, lines = call("fit", *small("synthetic.yaml", data), *STEPS, *words)
    assert code == 2 and lines[0].startswith("error: ") and message in "\n".join(lines)
