"""The LightningModule: the loss of a whole step, rates, scores, checkpoints, warnings, and what it refuses."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "integration"))

from detection import BACKBONE, write_scenes
from detection_samples import join
from tiny_scenes import CLASSES, COCODataModule, conditional, draw, network, of_one_step, trainer

from datamodules import COCODataModule as RealDataModule
from lit_models import DetectionModule
from lit_models.detection import DETR, SetCriterion, module
from lit_models.detection.backbone import ResNetBackbone
from lit_models.detection.checkpoint import load_checkpoint
from lit_models.detection.evaluation import NAMES, CocoScores
from lit_models.detection.postprocess import detections
from lit_models.optimization import StepDecay

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|smaller than the logging interval|a DETR from scratch has).*"
)
SGD = partial(torch.optim.SGD, lr=1.0)


def fitted(batches, make=network, **options):
    torch.manual_seed(3)
    module = DetectionModule(make, SGD, backbone_learning_rate=None)
    trainer(**options).fit(module, datamodule=COCODataModule(*batches))
    return module


@pytest.mark.parametrize("make", [network, conditional])
def test_row_4_micro_batches_of_unequal_counts_equal_one_joint_batch(make):
    """Lightning averages the micro-batches' losses; here they add up to the joint batch's, one without objects too."""
    parts = [draw((4, 0, 1)), draw((0,), first=3), draw((1, 2), first=4)]
    whole = join(join(parts[0], parts[1]), parts[2])._replace(step_images=6)
    several = fitted(of_one_step(*parts), make, accumulate_grad_batches=3).network.state_dict()
    start = make(len(CLASSES)).state_dict()
    for name, value in fitted([whole], make).network.state_dict().items():
        torch.testing.assert_close(several[name], value, atol=2e-5, rtol=1e-4, msg=name)
        assert value.shape == start[name].shape


def test_what_is_logged_of_a_step_cut_in_two(monkeypatch):
    parts = of_one_step(draw((3, 1)), draw((0, 2), first=2))
    logged = {}
    monkeypatch.setattr(DetectionModule, "log", lambda self, name, value, **_: logged.update({name: float(value)}))
    fitted(parts, accumulate_grad_batches=2, log_every_n_steps=1)
    torch.manual_seed(3)
    detector, whole = network(len(CLASSES)), join(*parts)
    with torch.no_grad():
        losses = SetCriterion(len(CLASSES))(detector.train()(whole.images, whole.sizes), whole)
    assert logged.pop("train/loss") == pytest.approx(float(losses.total), rel=1e-5)
    assert (logged.pop("train/images"), logged.pop("train/learning_rate")) == (4.0, 1.0)
    assert {name.removeprefix("train/") for name in logged} == set(losses.parts)
    for name in ("loss_class", "loss_l1", "loss_giou_0"):
        assert logged[f"train/{name}"] == pytest.approx(float(losses.parts[name]), rel=1e-5), name
    assert 0 <= logged["train/no_object_rate"] <= 1 and logged["train/cardinality_error"] > 0


def test_steps_between_those_that_are_logged_keep_nothing(monkeypatch):
    logged = []
    monkeypatch.setattr(DetectionModule, "log", lambda self, name, value, **_: logged.append(name))
    fitted([draw((2,)), draw((1,))], max_steps=4, log_every_n_steps=3)
    assert logged.count("train/loss") == 1


def test_the_backbone_has_its_own_rate_and_everything_is_decayed():
    used = []
    detector = DetectionModule(network, schedule=StepDecay([2]))
    detector.on_before_zero_grad = lambda optimizer: used.append(
        [(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
    )
    trainer(max_steps=3).fit(detector, datamodule=COCODataModule(draw((1,)), draw((2,))))
    count = len(list(detector.network.parameters()))
    for rates, factor in zip(used, (1.0, 1.0, 0.1), strict=True):
        (rate, decay, rest), (own_rate, own_decay, own) = rates
        assert (rate, own_rate) == pytest.approx((1e-4 * factor, 1e-5 * factor))
        assert decay == own_decay == 1e-4 and (rest, own) == (count - 2, 2)


def test_epochs_of_the_schedule_are_compared_with_the_data():
    slow = DetectionModule(network, schedule=StepDecay([3], steps_per_epoch=5))
    with pytest.warns(UserWarning, match="steps_per_epoch is 5, but an epoch of this data has 2 steps"):
        trainer().fit(slow, datamodule=COCODataModule(draw((1,)), draw((2,))))


@pytest.mark.parametrize("make", [network, conditional])
def test_scores_are_cocos_over_all_batches(tmp_path, capsys, make):
    data = COCODataModule(draw((3, 0)), draw((1, 2, 4), first=2))
    detector = DetectionModule(make)
    [found] = trainer(tmp_path).test(detector, datamodule=data, verbose=False)
    scores = CocoScores(data.ground_truth("test"), data.category_ids, "pycocotools")
    kind = "softmax" if make is network else "focal"
    with torch.no_grad():
        for batch in data.batches:
            predictions = detector.network.eval()(batch.images, batch.sizes)
            scores.update(batch.image_ids, detections(predictions, batch.original_sizes, kind))
    expected = scores.compute()
    assert list(found) == [f"test/{name}" for name in NAMES]
    assert list(found.values()) == pytest.approx(list(expected.summary.values()), abs=1e-6)
    assert f"test/AP {expected.summary['AP']:.4f}, test/AP50" in capsys.readouterr().out
    lines = (tmp_path / "test_per_class.tsv").read_text().splitlines()
    assert lines == ["class\tAP", *(f"{name}\t{value:.4f}" for name, value in expected.per_class.items())]


def test_row_9_predictions_are_coco_results_in_pixels_of_the_file():
    data = COCODataModule(draw((1, 2), first=7))
    detector = DetectionModule(network)
    [pairs] = trainer().predict(detector, datamodule=data)
    assert [number for number, _ in pairs] == [7, 8]
    with torch.no_grad():
        logits, boxes = detector.network(data.batches[0].images, data.batches[0].sizes).final
    results = json.loads(f"[{pairs[1][1]}]")
    assert len(results) == 5 and {result["image_id"] for result in results} == {8}
    scores, labels = logits.softmax(-1)[1, :, :-1].max(-1)
    for result, score, label, box in zip(results, scores, labels, boxes[1], strict=True):
        assert result["category_id"] == 10 * (int(label) + 1) and result["score"] == pytest.approx(
            float(score), abs=1e-5
        )
        corner, sides = 48 * (box[:2] - box[2:] / 2), 48 * box[2:]  # files of 48 pixels, a network that saw 24
        assert result["bbox"] == pytest.approx([*corner.tolist(), *sides.tolist()], abs=1e-3)


def test_predictions_that_are_no_numbers_name_their_images(tmp_path):
    data = COCODataModule(draw((1, 2), first=7), draw((1, 1), first=9))
    data.batches[1].images[1, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"predictions for the image ids 10 are NaN or infinite"):
        trainer(tmp_path).test(DetectionModule(network), datamodule=data, verbose=False)


@pytest.mark.parametrize(
    ("make", "steps", "corpus", "warned"),
    [
        (network, 99_999, None, True),
        (network, 100_000, None, False),
        (network, 11, "synthetic", False),
        (conditional, 12, None, False),
    ],
)
def test_too_few_steps_from_scratch(make, steps, corpus, warned, monkeypatch):
    told = []
    monkeypatch.setattr(module, "rank_zero_warn", told.append)
    data = COCODataModule(draw((1,)))
    data.corpus = corpus
    detector = DetectionModule(make)
    monkeypatch.setattr(
        detector, "training_step", lambda batch, batch_idx: setattr(detector.trainer, "should_stop", True)
    )
    trainer(max_steps=steps, min_steps=1).fit(detector, datamodule=data)
    assert any(f"{steps:,} optimiser steps" in text for text in told) == warned


def test_too_few_epochs_from_scratch():
    with pytest.warns(UserWarning, match="a DETR from scratch has 4 optimiser steps ahead of it"):
        data = COCODataModule(draw((1,)), draw((2,)), draw((1,)))
        trainer(max_steps=-1, max_epochs=2, accumulate_grad_batches=2).fit(DetectionModule(network), datamodule=data)


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({}, True),
        ({"frozen_norm": False}, True),
        ({"frozen_norm": False, "trainable_from": "conv1"}, False),
        ({"frozen_norm": False, "group_norm": 8}, True),
    ],
)
def test_a_stem_that_is_frozen_at_random_weights(settings, warned, monkeypatch):
    told = []
    monkeypatch.setattr(module, "rank_zero_warn", told.append)
    detector = network(2)
    detector.backbone = ResNetBackbone("resnet18", **settings)
    module._warn_of_frozen_noise(detector)
    assert bool(told) == warned
    detector.backbone.bn1.weight.data *= 1.1
    told.clear()
    module._warn_of_frozen_noise(detector)
    assert not told, "trained weights were loaded"


def test_the_loss_must_fit_the_network():
    for make, kind in ((network, "focal"), (conditional, "softmax")):
        detector = DetectionModule(make, criterion=partial(SetCriterion, classification=kind))
        with pytest.raises(ValueError, match=f"criterion.classification is {kind}, but the outputs of a "):
            trainer().fit(detector, datamodule=COCODataModule(draw((1,))))
    with pytest.raises(ValueError, match="makes a Linear, which is not a Detector"):
        trainer().fit(DetectionModule(partial(torch.nn.Linear, 3)), datamodule=COCODataModule(draw((1,))))


def small(num_classes, **settings):
    """A detector that the registry can build again."""
    sizes = {"dim": 16, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 2, "feed_forward_dim": 16}
    return DETR(num_classes, **{"backbone": BACKBONE, **sizes, "num_queries": 5, **settings})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint after one step."""
    path = tmp_path_factory.mktemp("saved") / "one.ckpt"
    run = trainer(path.parent, enable_checkpointing=False)
    torch.manual_seed(0)
    run.fit(DetectionModule(small), datamodule=COCODataModule(draw((2, 1))))
    run.save_checkpoint(path)
    return path


def test_a_checkpoint_alone_is_enough(saved):
    loaded = load_checkpoint(saved)
    assert (loaded.class_names, loaded.category_ids) == ([*CLASSES], [10, 20, 30])
    assert loaded.classification == "softmax" and loaded.preprocessing["sizes"] == [24, 24]
    entry = torch.load(saved, weights_only=True)["heddle"]
    assert entry["images_seen"] == 2 and "hyper_parameters" not in loaded.checkpoint
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*none\.ckpt"):
        load_checkpoint(saved.with_name("none.ckpt"))


def test_fine_tuning_for_other_classes_lists_the_new_head(saved, monkeypatch):
    told = []
    monkeypatch.setattr(module, "rank_zero_info", told.append)
    old = load_checkpoint(saved).network.state_dict()
    for classes, fresh in ((CLASSES, False), (("cat", "dog", "cow"), True), (("a", "b"), True)):
        told.clear()
        detector = DetectionModule(small, partial(torch.optim.SGD, lr=0.0), None, init_from=str(saved))
        trainer().fit(detector, datamodule=COCODataModule(draw((1,), classes=2), classes=classes))
        new = detector.network.state_dict()
        left = {name for name in old if old[name].shape != new[name].shape or not torch.equal(old[name], new[name])}
        left -= {name for name in left if "running_" in name or "num_batches" in name}  # one batch was seen
        assert left == ({"class_head.weight", "class_head.bias"} if fresh else set())
        assert ("not loaded: class_head.weight, class_head.bias" in "".join(told)) == fresh


def test_a_start_from_another_network_is_refused(saved):
    for make, text in (
        (partial(small, dim=32), r"network.dim: checkpoint 16, config 32"),
        (conditional, "holds a DETR, the network of the config is a ConditionalDETR"),
    ):
        with pytest.raises(ValueError, match=text):
            trainer().fit(DetectionModule(make, init_from=str(saved)), datamodule=COCODataModule(draw((1,))))
    with pytest.raises(FileNotFoundError, match='init_from: there is no file "no.ckpt"'):
        trainer().fit(DetectionModule(small, init_from="no.ckpt"), datamodule=COCODataModule(draw((1,))))


def test_a_checkpoint_with_other_settings_is_not_resumed(saved):
    other = DetectionModule(small, backbone_learning_rate=1e-4)
    with pytest.raises(ValueError, match=r"backbone_learning_rate: checkpoint 1e-05, config 0.0001"):
        trainer(max_steps=2).fit(other, datamodule=COCODataModule(draw((1,))), ckpt_path=saved, weights_only=True)
    two = COCODataModule(draw((1,), classes=2), classes=("a", "b"))
    with pytest.raises(
        ValueError,
        match=r"differ in their categories \(3 and 2\): only in the checkpoint: 10 cat, 20 dog, 30 hen; only in the",
    ):
        trainer().validate(DetectionModule(small), datamodule=two, ckpt_path=saved, weights_only=True)


def test_a_single_batch_is_overfitted(tmp_path):
    """From files to AP: what is collapsed, misplaced or matched wrongly anywhere ends far below."""
    torch.manual_seed(0)
    directory = write_scenes(tmp_path / "data", train=4, valid=1, side=48)
    data = RealDataModule(
        str(directory), valid_images="train2017", batch_size=4, sizes=(48,), max_size=48, crop_probability=0.0,
        flip_probability=0.0,
    )  # fmt: skip
    settings = {"depth": 8, "width": 8, "stages": 3, "stem_stride": 2}
    make = partial(
        small, backbone={**BACKBONE, "network_settings": settings}, dim=64, num_heads=4, feed_forward_dim=128,
        num_queries=10, dropout=0.0, norm_order="pre",
    )  # fmt: skip
    detector = DetectionModule(
        make, partial(torch.optim.AdamW, lr=1e-3, weight_decay=1e-4), None, StepDecay([160], warmup_steps=10)
    )
    trainer(tmp_path, max_steps=200, gradient_clip_val=0.1).fit(detector, datamodule=data)
    [scores] = trainer(tmp_path, limit_val_batches=1.0).validate(detector, datamodule=data, verbose=False)
    assert scores["val/AP"] > 0.95
