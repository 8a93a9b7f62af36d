"""Every shipped config of detection: parses, builds, and runs a few steps of fit, validate, test and predict."""

import contextlib
import csv
import io
import json
import sys
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

sys.path.insert(0, str(Path(__file__).parent))
from detection import CATEGORIES, CONFIGS, settings_of, small, write_scenes

from datamodules import COCODataModule
from experiments.__main__ import main
from lit_models.detection.checkpoint import load_checkpoint
from lit_models.detection.evaluation import NAMES
from lit_models.detection.registry import build

SHIPPED = sorted(path.name for path in CONFIGS.glob("*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data"))


def run(command, *words):
    assert main([command, *map(str, words)]) == 0


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def scored(annotations, results):
    """COCO's own 12 numbers of a file of results."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations)
        evaluation = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats, strict=True))


@pytest.mark.filterwarnings("ignore:.*(a DETR from scratch has|schedule.steps_per_epoch).*")
@pytest.mark.parametrize("config", SHIPPED)
def test_fit_validate_test_predict(config, data, tmp_path, capsys):
    accumulated = min(2, settings_of(config)["trainer"].get("accumulate_grad_batches", 1))
    run_dir = tmp_path / "run"
    steps = ["--trainer.max_steps=2", f"--trainer.val_check_interval={2 * accumulated}", "--test_after_fit=true"]
    steps += ["--trainer.callbacks.init_args.count=2"]  # drawing takes most of the time
    steps += ["--trainer.log_every_n_steps=1", f"--trainer.accumulate_grad_batches={accumulated}"]
    run("fit", *small(config, data), *steps, f"--run_dir={run_dir}")
    logged = rows(run_dir / "metrics.csv")
    assert [float(row["train/images"]) for row in logged if row["train/images"]] == [4 * accumulated, 8 * accumulated]
    for name in ("train/loss", "train/loss_giou_0", "train/matched_class_accuracy", "val/AP", "val/ARl", "test/AP"):
        assert any(row.get(name) for row in logged), name
    assert (run_dir / "train_objects.png").stat().st_size and (run_dir / "val_objects.png").stat().st_size

    checkpoint = run_dir / "checkpoints" / "last.ckpt"
    for command in ("validate", "test", "predict"):
        run(command, f"--ckpt_path={checkpoint}", f"--run_dir={tmp_path / command}")
    printed = capsys.readouterr().out
    tested = [line for line in printed.splitlines() if line.startswith("test/AP")]
    assert len(tested) == 2 and tested[0] == tested[1]
    assert {row["class"] for row in rows(run_dir / "test_per_class.tsv")} >= {*CATEGORIES.values()}
    # What was predicted is what was scored, in COCO's own format.
    results = tmp_path / "predict" / "predictions.json"
    assert {entry["image_id"] for entry in json.loads(results.read_text())} == {3 * number + 1 for number in range(7)}
    expected = {word.split()[0]: float(word.split()[1]) for word in tested[0].split(", ")}
    for name, value in scored(data / "annotations" / "instances_val2017.json", results).items():
        assert expected[f"test/{name}"] == pytest.approx(value, abs=2e-3), name
    loaded = load_checkpoint(checkpoint)
    names, ids = loaded.class_names, loaded.category_ids
    assert dict(zip(ids, names, strict=True)).items() >= CATEGORIES.items()
    assert loaded.preprocessing["sizes"] == [32, 56] and not loaded.network.training


# Parameters of the networks as shipped; Swin-T's stages are those of its file.
PARAMETERS = {
    "bccd.yaml": 1_911_121,
    "coco_tiny.yaml": 17_020_320,
    "detr_r50_coco.yaml": 41_524_768,
    "detr_r50_dc5_coco.yaml": 41_524_768,
    "detr_swin_tiny_coco.yaml": 45_261_530,
    "synthetic.yaml": 1_630_800,
    "synthetic_conditional.yaml": 1_901_521,
}


@pytest.mark.parametrize("config", SHIPPED)
def test_the_shipped_settings_build_network_and_data(config):
    """``small`` above replaces most of them."""
    shipped = settings_of(config)
    network, data = shipped["model"]["init_args"]["network"], shipped["data"]["init_args"]
    backbone = dict(network["init_args"]["backbone"])
    if "weights" in backbone and backbone.get("type") == "ClassifierBackbone":
        backbone |= {"network": "SwinTransformer", "network_settings": {}}
    backbone.pop("weights", None)
    with torch.device("meta"):
        built = build(network["class_path"].rsplit(".")[-1], 91, {**network["init_args"], "backbone": backbone})
    assert sum(parameter.numel() for parameter in built.parameters()) == PARAMETERS[config]
    assert COCODataModule(**data).batch_size == data["batch_size"]


@pytest.mark.parametrize(("config", "trainable"), [("detr_r50_coco.yaml", 41_302_368), ("detr_r50_dc5_coco.yaml", 0)])
def test_the_published_recipe(config, trainable):
    """Notes of the paper's code: 41,302,368 parameters train; 118,287 images in batches of 64, drop_last."""
    shipped = settings_of(config)
    model, data, trainer = shipped["model"]["init_args"], shipped["data"]["init_args"], shipped["trainer"]
    batch = data["batch_size"] * trainer["accumulate_grad_batches"]
    [milestone] = model["schedule"]["init_args"]["milestones"]
    epoch = model["schedule"]["init_args"]["steps_per_epoch"]
    assert (batch, epoch, milestone) == (64, 118_287 // 64, 400) and trainer["max_steps"] == 500 * epoch
    assert 118_287 // data["batch_size"] == epoch * trainer["accumulate_grad_batches"], "no step is short"
    rates = (model["optimizer"]["init_args"]["lr"], model["backbone_learning_rate"])
    assert (*rates, model["optimizer"]["init_args"]["weight_decay"], trainer["gradient_clip_val"]) == (
        1e-4, 1e-5, 1e-4, 0.1,
    )  # fmt: skip
    settings = model["network"]["init_args"]
    backbone = {key: value for key, value in settings["backbone"].items() if key != "weights"}
    assert settings["backbone"]["weights"] == "IMAGENET1K_V1" and backbone.get("dilation", False) == (trainable == 0)
    if trainable:
        network = build("DETR", 91, {**settings, "backbone": backbone})
        assert sum(p.numel() for p in network.parameters() if p.requires_grad) == trainable
