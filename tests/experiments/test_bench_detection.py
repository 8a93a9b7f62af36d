"""The comparisons of DETR's training step and of its data: equal work on all sides, rows, and what is refused."""

import copy
import csv
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from detection import write_scenes

from datamodules import COCODataModule
from experiments.__main__ import main as dispatch
from experiments.bench import detection, detection_data, record
from experiments.bench.detection import Caller, Structure, make_batch, make_networks, make_step, outputs_difference

SMALL = {
    "backbone": "resnet18",
    "dim": 32,
    "num_heads": 4,
    "layers": 2,
    "feed_forward_dim": 48,
    "num_queries": 9,
    "dropout": 0.0,
}
CPU = torch.device("cpu")


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setitem(detection.NETWORKS, "detr_r50", Structure(settings=SMALL))
    return tmp_path


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def callers(**settings):
    torch.manual_seed(0)
    networks = make_networks(Structure(settings={**SMALL, **settings}), detection.PROVIDERS)
    batch = make_batch(3, 64, 0, CPU)
    return {provider: Caller(provider, network, batch) for provider, network in networks.items()}


def test_a_run_prints_and_records_a_row_for_each_provider(results, capsys):
    words = ["--image-size", "64", "--rounds", "2", "--dtype", "float32", "bfloat16", "--channels-last", "--record"]
    assert dispatch(["bench", "detection", *words]) == 0
    assert "heddle_is_faster_by" in capsys.readouterr().out
    rows = rows_of(results / "detection.csv")
    assert [(row["dtype"], row["provider"]) for row in rows] == [
        (dtype, provider) for dtype in ("float32", "bfloat16") for provider in detection.PROVIDERS
    ]
    assert all(float(row["milliseconds"]) > 0 for row in rows)
    assert float(rows[0]["outputs_difference"]) < 1e-4 and rows[0]["useful_pixels"] == "0.857"


def test_all_train_the_same_weights_on_the_same_batch():
    calls = callers(dropout=0.1)
    assert outputs_difference(calls, torch.float32) < 1e-4
    counts = {
        provider: sum(parameter.numel() for parameter in call.network.parameters() if parameter.requires_grad)
        for provider, call in calls.items()
    }
    assert len(set(counts.values())) == 1
    for call in calls.values():
        call.network.train()
        call.loss(torch.float32).backward()
        reached = [parameter.grad is not None for parameter in call.network.parameters()]
        assert reached == [parameter.requires_grad for parameter in call.network.parameters()]
    dropouts = {module.p for module in calls["official"].network.modules() if isinstance(module, torch.nn.Dropout)}
    theirs = calls["transformers"].network.config
    assert dropouts == {theirs.dropout} == {theirs.activation_dropout} == {theirs.attention_dropout} == {0.1}


def test_a_step_of_the_official_structure_is_ours(monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, **_: torch.optim.SGD(parameters, lr=20.0))
    calls = callers()
    calls = {provider: calls[provider] for provider in ("heddle", "official")}
    start = copy.deepcopy(calls["heddle"].network)
    assert calls["heddle"].loss(torch.float32).item() == pytest.approx(
        calls["official"].loss(torch.float32).item(), rel=1e-4
    )
    for call in calls.values():
        make_step(call, torch.float32)()
    moved = {"heddle": calls["heddle"], "start": Caller("heddle", start, calls["heddle"].batch)}
    assert outputs_difference(calls, torch.float32) < 1e-2 * outputs_difference(moved, torch.float32)


def test_weights_that_differ_are_not_timed(results, monkeypatch):
    def unequal(structure, providers):
        networks = make_networks(structure, providers)
        networks["official"].class_embed.weight.data.neg_()
        return networks

    monkeypatch.setattr(detection, "make_networks", unequal)
    with pytest.raises(RuntimeError, match="detr_r50 in float32: the outputs differ"):
        dispatch(["bench", "detection", "--image-size", "64", "--rounds", "1"])


def test_ours_must_be_among_the_providers(results, capsys):
    assert dispatch(["bench", "detection", "--providers", "official"]) == 2
    assert "must have heddle among them" in capsys.readouterr().err


def test_data_prints_and_records_a_row_for_each_provider(results, capsys):
    write_scenes(results / "scenes", train=9, side=480)
    words = ["--data", str(results / "scenes"), "--batch-size", "4", "--rounds", "1", "--record"]
    assert dispatch(["bench", "detection_data", *words]) == 0
    rows = rows_of(results / "detection_data.csv")
    assert [(row["part"], row["provider"]) for row in rows] == [
        (part, provider) for part in detection_data.PARTS for provider in (*detection_data.PROVIDERS, "official")
    ]
    assert {row["images"] for row in rows} == {"8"}
    assert all(float(row["images_per_second"]) > 0 and 0.3 < float(row["useful_pixels"]) <= 1 for row in rows)


@pytest.mark.parametrize("draws", [[0.9, 0.9], [0.1, 0.9], [0.1, 0.1]], ids=["resized", "mirrored", "cut"])
def test_the_official_transform_is_the_exact_variant(draws, tmp_path, monkeypatch):
    """The same draws, told to both: pixels and boxes agree."""
    write_scenes(tmp_path, train=5, side=500)
    flip, cut = draws[0] < 0.5, draws[1] < 0.5
    data = COCODataModule(
        str(tmp_path),
        batch_size=1,
        sizes=(480,),
        crop_from=(600,),
        crop_sides=(450, 450),
        flip_probability=float(flip),
        crop_probability=float(cut),
    )
    data.setup("fit")
    regions = []
    drawn = type(data.training_geometry).regions
    monkeypatch.setattr(
        type(data.training_geometry), "regions", lambda *given: regions.append(drawn(*given)) or regions[-1]
    )
    annotations = {
        image["id"]: [found for found in data.ground_truth("train")["annotations"] if found["image_id"] == image["id"]]
        for image in data.ground_truth("train")["images"]
    }
    for batch in data.train_dataloader():
        corner = regions[-1].crop[0][:2].tolist()
        # Sizes of a cut, then its top and left; ours says left and top.
        integers = iter([450, 450, *corner[::-1]])
        monkeypatch.setattr(random, "random", iter(draws).__next__)
        monkeypatch.setattr(random, "choice", lambda values: 600 if values[0] == 400 else 480)
        monkeypatch.setattr(random, "randint", lambda *_, drawn=integers: next(drawn))
        path = data.path_of("train", batch.image_ids[0])
        pixels, target = detection_data.official_example(Image.open(path), annotations[batch.image_ids[0]])
        ours = data.on_after_batch_transfer(batch, 0)
        np.testing.assert_allclose(ours.images[0], pixels, atol=1e-5)
        boxes, order = target["boxes"], target["boxes"][:, 0].argsort()
        np.testing.assert_allclose(ours.boxes[0][ours.boxes[0, :, 0].argsort()], boxes[order], atol=1e-5)
