"""The set loss against plain loops in float64 and against transformers, and over micro-batches, groups and nothing."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from torchvision import ops
from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

sys.path.insert(0, str(Path(__file__).parent))

from detection_samples import join, make_batch, make_predictions

from lit_models.detection.criterion import SetCriterion
from lit_models.detection.matcher import match
from lit_models.detection.network import Predictions

CLASSES = 5


def by_hand(predictions, batch, classification="softmax"):
    """Every layer's three losses, query by query: {name: [layers]}."""
    class_cost = 1.0 if classification == "softmax" else 2.0
    matched = match(predictions, batch, classification=classification, class_cost=class_cost)
    layers, groups, images, queries = predictions.boxes.shape[:4]
    losses = {"class": [], "l1": [], "giou": []}
    for layer in range(layers):
        class_sum = weight_sum = l1 = giou = 0.0
        for group in range(groups):
            for image in range(images):
                logits, boxes = predictions.logits[layer, group, image], predictions.boxes[layer, group, image]
                of_query = {int(query): row for row, query in enumerate(matched[layer, group, image]) if query >= 0}
                for query in range(queries):
                    row = of_query.get(query)
                    label = CLASSES if row is None else int(batch.labels[image, row])
                    if classification == "softmax":
                        weight = 0.1 if row is None else 1.0
                        class_sum = class_sum - weight * (logits[query].exp() / logits[query].exp().sum()).log()[label]
                        weight_sum += weight
                    else:
                        p = logits[query].sigmoid()
                        loss = 0.75 * p**2 * -(1 - p).log()
                        if row is not None:
                            loss = loss.clone()
                            loss[label] = 0.25 * (1 - p[label]) ** 2 * -p[label].log()
                        class_sum = class_sum + loss.sum()
                    if row is not None:
                        mine, other = boxes[query], batch.boxes[image, row].to(boxes.dtype)
                        l1 = l1 + (mine - other).abs().sum()
                        corners = [ops.box_convert(box[None], "cxcywh", "xyxy") for box in (mine, other)]
                        giou = giou + 1 - ops.generalized_box_iou(*corners)[0, 0]
        objects = max(sum(batch.counts), 1) * groups
        # Notes, row 4: cross-entropy over the sum of weights, L1 over boxes and not over coordinates.
        losses["class"].append(class_sum / (weight_sum if classification == "softmax" else objects))
        losses["l1"].append(l1 / objects)
        losses["giou"].append(giou / objects)
    return losses


@pytest.mark.parametrize("classification", ["softmax", "focal"])
@pytest.mark.parametrize("groups", [1, 3])
def test_terms_and_gradients_are_those_of_plain_loops(classification, groups):
    outputs = CLASSES + (classification == "softmax")
    batch = make_batch([3, 0, 5], CLASSES, dtype=torch.float64)
    predictions = make_predictions(3, groups, 3, 7, outputs, dtype=torch.float64)
    losses = SetCriterion(CLASSES, classification=classification)(predictions, batch)
    expected = by_hand(predictions, batch, classification)
    for name, values in expected.items():
        for layer, value in enumerate(values):
            suffix = f"_{layer}" if layer < 2 else ""
            torch.testing.assert_close(losses.parts[f"loss_{name}{suffix}"], value.detach(), rtol=1e-9, atol=1e-9)
    class_weight = 1.0 if classification == "softmax" else 2.0
    total = class_weight * sum(expected["class"]) + 5.0 * sum(expected["l1"]) + 2.0 * sum(expected["giou"])
    torch.testing.assert_close(losses.total, total, rtol=1e-9, atol=1e-9)
    gradients = torch.autograd.grad(losses.total, predictions)
    for ours, theirs in zip(gradients, torch.autograd.grad(total, predictions), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_terms_and_gradients_are_those_of_transformers():
    batch = make_batch([3, 1, 6, 0], CLASSES)
    predictions = make_predictions(3, 1, 4, 10, CLASSES + 1)
    peer = ImageLoss(HungarianMatcher(1, 5, 2), CLASSES, 0.1, ["labels", "boxes", "cardinality"])
    outputs = [
        {"logits": logits[0], "pred_boxes": boxes[0]}
        for logits, boxes in zip(predictions.logits, predictions.boxes, strict=True)
    ]
    targets = [
        {"class_labels": batch.labels[image, :count], "boxes": batch.boxes[image, :count]}
        for image, count in enumerate(batch.counts)
    ]
    theirs = peer({**outputs[-1], "auxiliary_outputs": outputs[:-1]}, targets)
    ours = SetCriterion(CLASSES)(predictions, batch)
    names = {"loss_ce": "loss_class", "loss_bbox": "loss_l1", "loss_giou": "loss_giou"}
    for suffix in ("", "_0", "_1"):
        for their_name, name in names.items():
            torch.testing.assert_close(ours.parts[name + suffix], theirs[their_name + suffix].detach())
    torch.testing.assert_close(ours.parts["cardinality_error"], theirs["cardinality_error"])
    weights = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    total = sum(weights[key] * theirs[key + suffix] for key in weights for suffix in ("", "_0", "_1"))
    torch.testing.assert_close(ours.total, total)
    for mine, other in zip(
        torch.autograd.grad(ours.total, predictions), torch.autograd.grad(total, predictions), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("classification", ["softmax", "focal"])
@pytest.mark.parametrize("counts", [((4, 0, 1), (7,)), ((0, 0), (3, 2)), ((2,), (0,)), ((0,), (0,))], ids=str)
def test_micro_batches_add_up_to_the_joint_batch(classification, counts):
    outputs = CLASSES + (classification == "softmax")
    parts = [make_batch(list(part), CLASSES) for part in counts]
    joint = join(*parts)
    predictions = make_predictions(2, 2, len(joint.counts), 9, outputs, dtype=torch.float64)
    criterion = SetCriterion(CLASSES, classification=classification)
    expected = criterion(predictions, joint)
    start, total, logged = 0, 0.0, 0.0
    for part in parts:
        own = Predictions(*(values[:, :, start : start + len(part.counts)] for values in predictions))
        share = criterion(own, part._replace(step_boxes=joint.step_boxes), step_images=len(joint.counts))
        total, logged, start = total + share.total, logged + share.parts["loss_class"], start + len(part.counts)
    torch.testing.assert_close(total, expected.total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logged, expected.parts["loss_class"], rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(total, predictions), torch.autograd.grad(expected.total, predictions), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_a_part_of_a_step_without_the_number_of_its_images_is_refused():
    batch = make_batch([3, 2], CLASSES, step_boxes=12)
    with pytest.raises(ValueError, match="the optimiser step has 12 objects, this batch 5: step_images"):
        SetCriterion(CLASSES)(make_predictions(1, 1, 2, 9, CLASSES + 1), batch)


def test_evaluation_divides_by_the_batch_itself():
    batch, predictions = make_batch([3, 2], CLASSES), make_predictions(1, 1, 2, 9, CLASSES + 1)
    criterion = SetCriterion(CLASSES)
    torch.testing.assert_close(
        criterion(predictions, batch._replace(step_boxes=0)).total, criterion(predictions, batch).total
    )


@pytest.mark.parametrize("classification", ["softmax", "focal"])
@pytest.mark.parametrize("counts", [[0, 0], [0, 3]], ids=str)
@pytest.mark.parametrize("no_object_weight", [0.1, 0.0])
def test_empty_images_train(classification, counts, no_object_weight):
    batch = make_batch(counts, CLASSES)
    predictions = make_predictions(2, 1, 2, 6, CLASSES + (classification == "softmax"))
    criterion = SetCriterion(CLASSES, classification=classification, no_object_weight=no_object_weight)
    losses = criterion(predictions, batch)
    gradients = torch.autograd.grad(losses.total, predictions)
    assert all(torch.isfinite(value).all() for value in (losses.total, *losses.parts.values(), *gradients))
    if no_object_weight:
        assert gradients[0][:, :, 0].abs().sum() > 0  # the empty image teaches that there is nothing
    assert gradients[1][:, :, 0].abs().sum() == 0


def test_half_precision_is_computed_in_float32():
    # Notes, row 11: cdist has no half, and a box's area underflows.
    batch = make_batch([3, 2], CLASSES)
    predictions = Predictions(*(values.detach().half() for values in make_predictions(2, 1, 2, 8, CLASSES + 1)))
    predictions.boxes[..., 2:] = 1e-3
    wide = Predictions(*(values.float() for values in predictions))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = SetCriterion(CLASSES)(predictions, batch)
    assert losses.total.dtype == torch.float32 and torch.isfinite(losses.total)
    torch.testing.assert_close(losses.total, SetCriterion(CLASSES)(wide, batch).total, rtol=0, atol=0)


def test_nothing_is_read_from_the_device_beside_the_costs(monkeypatch):
    batch, predictions = make_batch([3, 2], CLASSES), make_predictions(6, 1, 2, 8, CLASSES + 1)

    def refuse(*args, **kwargs):
        raise AssertionError("waits for the device")

    copies = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: copies.append(tensor) or cpu(tensor))
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    losses = SetCriterion(CLASSES)(predictions, batch)
    assert len(copies) == 1
    assert not any(value.requires_grad for value in losses.parts.values())


@pytest.mark.parametrize("classification", ["softmax", "focal"])
def test_what_is_logged_says_what_it_is(classification):
    batch = make_batch([2, 1], CLASSES)
    batch = batch._replace(labels=torch.tensor([[1, 2], [3, -1]]))
    outputs = CLASSES + (classification == "softmax")
    # The first layer and the second group say other things.
    logits, boxes = make_predictions(2, 2, 2, 4, outputs)
    logits, boxes = logits.detach(), boxes.detach()
    logits[-1, 0], boxes[-1, 0] = -5.0, 0.5
    if classification == "softmax":
        logits[-1, 0, ..., CLASSES] = 5.0  # no object
    for image, query, row, label in ((0, 0, 0, 1), (0, 3, 1, 4), (1, 2, 0, 3)):  # the second is of a wrong class
        boxes[-1, 0, image, query] = batch.boxes[image, row]
        logits[-1, 0, image, query, label] = 9.0
    logits[-1, 0, 1, 0, 0] = 9.0  # one too many in the second image
    parts = SetCriterion(CLASSES, classification=classification)(Predictions(logits, boxes), batch).parts
    assert parts["matched_class_accuracy"].item() == pytest.approx(2 / 3)
    assert parts["no_object_rate"].item() == pytest.approx(4 / 8)
    assert parts["cardinality_error"].item() == pytest.approx(0.5)


def test_more_objects_than_queries_train():
    batch, predictions = make_batch([9, 1], CLASSES), make_predictions(2, 1, 2, 4, CLASSES + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = SetCriterion(CLASSES)(predictions, batch)
        expected = by_hand(predictions, batch)
    torch.testing.assert_close(losses.parts["loss_l1"], expected["l1"][-1].detach())
    assert torch.isfinite(losses.total)


def test_wrong_settings_are_refused():
    batch = make_batch([1], CLASSES)
    with pytest.raises(ValueError, match="have 5 outputs, but softmax classification of 5 classes reads 6"):
        SetCriterion(CLASSES)(make_predictions(1, 1, 1, 4, CLASSES), batch)
    with pytest.raises(ValueError, match="giou_cost must be at least 0"):
        SetCriterion(CLASSES, giou_cost=-1.0)
