"""Every shipped config: parses, builds, and runs a few steps of fit, test, validate, predict and classify."""

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from images import CLASSES, CONFIGS, settings_of, small, write_images

from experiments.__main__ import main
from lit_models.classification import VisionTransformer, swin, vit
from lit_models.classification.checkpoint import load_checkpoint
from lit_models.classification.registry import build
from lit_models.optimization import SwinCosine

SHIPPED = sorted(path.name for path in CONFIGS.glob("*.yaml"))
OVERLAYS = sorted(path.stem for path in (CONFIGS / "network").glob("*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    """A ConvNet after one step."""
    run_dir = tmp_path_factory.mktemp("teacher") / "run"
    words = [*small("resnet_cifar10.yaml", data), "--trainer.max_steps=1", "--trainer.val_check_interval=1"]
    run("fit", *words, "--test_after_fit=false", f"--run_dir={run_dir}")
    return run_dir / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """A file as DeiT's authors publish it, for larger images and other classes."""
    from lit_models.pretrained import to_timm

    path = tmp_path_factory.mktemp("public") / "deit.pth"
    network = VisionTransformer(5, image_size=32, patch_size=8, dim=16, depth=2, num_heads=2)
    torch.save({"model": to_timm(network)}, path)
    return path


def run(command, *words):
    assert main([command, *words]) == 0


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.mark.parametrize("config", SHIPPED)
def test_fit_validate_test_predict_classify(config, data, teacher, public, tmp_path, capsys):
    shipped = settings_of(config)
    model, trainer = shipped["model"]["init_args"], shipped["trainer"]
    changes = {"distillation.teacher.source": str(teacher)} if "distillation" in model else {}
    changes |= {"init_from": str(public)} if "init_from" in model else {}
    accumulated = min(2, trainer.get("accumulate_grad_batches", 1))
    run_dir = tmp_path / "run"
    steps = ["--trainer.max_steps=2", f"--trainer.val_check_interval={2 * accumulated}"]
    steps += ["--trainer.log_every_n_steps=1", f"--trainer.accumulate_grad_batches={accumulated}"]
    run("fit", *small(config, data, **changes), *steps, f"--run_dir={run_dir}")
    printed = capsys.readouterr().out
    assert "test/loss" in printed and "accuracy" in printed and f"run directory  {run_dir}" in printed
    for name in ("config.yaml", "git.txt", "environment.json", "command.txt", "metrics.csv"):
        assert (run_dir / name).is_file(), name
    logged = rows(run_dir / "metrics.csv")
    assert [float(row["train/images"]) for row in logged if row["train/images"]] == [6 * accumulated, 12 * accumulated]
    heads = ("val/accuracy_class", "val/accuracy_distillation") if "distillation" in model else ()
    averaging = any("WeightAveraging" in callback["class_path"] for callback in trainer.get("callbacks", []))
    for name in ("val/accuracy", "val/accuracy_top5", *heads, *["val_raw/accuracy"] * averaging):
        assert any(row.get(name) for row in logged), name

    checkpoint = run_dir / "checkpoints" / "last.ckpt"
    for command in ("validate", "test", "predict"):
        run(command, f"--ckpt_path={checkpoint}", f"--run_dir={tmp_path / command}")
    tested = [line for line in printed.splitlines() if line.startswith("test/loss")]
    assert tested and tested[0] in capsys.readouterr().out.splitlines()
    # The checkpoint alone is enough, and gives what prediction gave, in the order of the files.
    predicted = rows(tmp_path / "predict" / "predictions.tsv")
    assert len(predicted) == 10 and {row["class"] for row in predicted} <= {*CLASSES}
    run("classify", "--checkpoint", str(checkpoint), "--json", "--top", "1", *(row["path"] for row in predicted))
    for line, row in zip(capsys.readouterr().out.splitlines(), predicted, strict=True):
        [best] = json.loads(line)["predictions"]
        assert best["class"] == row["class"]
        assert best["probability"] == pytest.approx(float(row["probability"]), abs=6e-5)
    assert load_checkpoint(checkpoint).class_names == [*CLASSES]


def overlaid(config, size, capsys):
    """The network's settings of a config with a size laid over it."""
    run("fit", "-c", str(CONFIGS / config), "-c", str(CONFIGS / "network" / f"{size}.yaml"), "--print_config")
    settings = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["network"]["init_args"]
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


@pytest.mark.parametrize("size", [size for size in OVERLAYS if not size.startswith("swin")])
def test_sizes_lie_over_any_config(size, capsys):
    settings = overlaid("deit_small_imagenet.yaml", size, capsys)
    assert vit.SIZES[size].items() <= settings.items()
    assert settings["image_size"] == 224 and settings["drop_path"] == 0.1, "what the config says of itself stays"


@pytest.mark.parametrize("size", [size for size in OVERLAYS if size.startswith("swin")])
@pytest.mark.parametrize("version", ["swin", "swinv2"])
def test_sizes_of_swin_lie_over_both_versions(version, size, capsys):
    settings = overlaid(f"{version}_tiny_imagenet.yaml", size, capsys)
    assert swin.SIZES[size.replace("swin", version)].items() <= settings.items()
    assert settings["drop_path"] == {"swin_small": 0.3, "swin_base": 0.5}[size], "the larger, the more"


@pytest.mark.parametrize("config", ["swin_tiny_imagenet.yaml", "swinv2_tiny_imagenet.yaml"])
def test_swin_learns_at_the_published_rates(config):
    """Swin's code scales all three rates, 5e-7, 5e-4 and 5e-6, by the batch over 512."""
    shipped = settings_of(config)
    model, data, trainer = shipped["model"]["init_args"], shipped["data"]["init_args"], shipped["trainer"]
    batch = data["batch_size"] * trainer["accumulate_grad_batches"]
    peak = model["optimizer"]["init_args"]["lr"] * batch / model["reference_batch"]
    assert batch == 1024
    schedule = SwinCosine(**model["schedule"]["init_args"])
    epoch = 1_281_167 // batch
    rates = [peak * schedule(step) for step in (0, 20 * epoch + 1, trainer["max_steps"] + 1)]
    assert rates == pytest.approx([1e-6, 1e-3, 1e-5])
    assert trainer["max_steps"] == 300 * epoch
    assert (trainer["gradient_clip_val"], data.get("repeated_augmentation", 1)) == (5.0, 1)


def test_as_many_parameters_as_the_vit_beside_it():
    counts, rest = [], []
    for config in ("deit_tinyimagenet50.yaml", "swin_tinyimagenet50.yaml"):
        shipped = settings_of(config)
        network = shipped["model"]["init_args"].pop("network")
        built = build(network["class_path"].rsplit(".", 1)[1], 50, network["init_args"])
        counts.append(sum(parameter.numel() for parameter in built.parameters()))
        assert f"{counts[-1]:,}" in (CONFIGS / "swin_tinyimagenet50.yaml").read_text(encoding="utf-8")
        rest.append(shipped)
    assert counts[1] == pytest.approx(counts[0], rel=0.03)
    assert rest[0] == rest[1]
