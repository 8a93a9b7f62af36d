"""Matching against scipy on each image's full matrix, and what must not happen on the way."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torchvision import ops
from transformers.loss.loss_for_object_detection import HungarianMatcher

sys.path.insert(0, str(Path(__file__).parent))

from detection_samples import make_batch, make_predictions

from lit_models.detection import matcher
from lit_models.detection.matcher import match
from lit_models.detection.network import Predictions


def full_cost(logits, boxes, labels, objects, classification="softmax"):
    """The cost (queries, objects) of one image, entry by entry in float64 from the paper's formulae."""
    logits, boxes, objects = logits.detach().double(), boxes.detach().double(), objects.double()
    if classification == "softmax":
        class_cost = -logits.softmax(-1)[:, labels]
    else:  # Deformable DETR
        p = logits.sigmoid()[:, labels]
        class_cost = 0.25 * (1 - p) ** 2 * -p.log() - 0.75 * p**2 * -(1 - p).log()
    l1 = (boxes[:, None] - objects[None]).abs().sum(-1)
    corners = [ops.box_convert(values, "cxcywh", "xyxy") for values in (boxes, objects)]
    return class_cost * (1 if classification == "softmax" else 2) + 5 * l1 - 2 * ops.generalized_box_iou(*corners)


def costs_of(predictions, batch, classification="softmax"):
    """Yield the place, count and full cost of each problem."""
    for layer, group, image in np.ndindex(predictions.boxes.shape[:3]):
        count = batch.counts[image]
        yield (
            (layer, group, image),
            count,
            full_cost(
                predictions.logits[layer, group, image],
                predictions.boxes[layer, group, image],
                batch.labels[image, :count],
                batch.boxes[image, :count],
                classification,
            ).numpy(),
        )


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    queries=st.integers(1, 8),
    layers=st.integers(1, 3),
    groups=st.integers(1, 2),
    ties=st.booleans(),
    classification=st.sampled_from(["softmax", "focal"]),
    seed=st.integers(0, 1000),
)
def test_total_cost_is_scipys_and_matches_are_an_assignment(
    counts, queries, layers, groups, ties, classification, seed
):
    torch.manual_seed(seed)
    batch = make_batch(counts, classes=3)
    predictions = make_predictions(layers, groups, len(counts), queries, 3 + (classification == "softmax"))
    if ties:  # all queries say the same
        predictions = Predictions(*(values[..., :1, :].expand_as(values) for values in predictions))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more objects than queries
        matched = match(
            predictions, batch, classification=classification, class_cost=1.0 if classification == "softmax" else 2.0
        )
    assert matched.shape == (layers, groups, len(counts), max(counts)) and matched.dtype == torch.int64
    for place, count, cost in costs_of(predictions, batch, classification):
        queries_of = matched[place].numpy()
        assert (queries_of[count:] == -1).all()
        rows = np.flatnonzero(queries_of >= 0)
        assert len(rows) == min(count, queries) and len(set(queries_of[rows])) == len(rows)
        best = cost[linear_sum_assignment(cost)].sum()
        # float32 costs of at most 20: near ties may be resolved otherwise, at the price of their rounding.
        assert cost[queries_of[rows], rows].sum() == pytest.approx(best, abs=1e-5 * max(count, 1))


def test_matches_are_those_of_transformers():
    batch = make_batch([3, 0, 7, 1], classes=5)
    predictions = make_predictions(2, 1, 4, 12, 6)
    peer = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    targets = [
        {"class_labels": batch.labels[image, :count], "boxes": batch.boxes[image, :count]}
        for image, count in enumerate(batch.counts)
    ]
    matched = match(predictions, batch)
    for layer in range(2):
        outputs = {"logits": predictions.logits[layer, 0], "pred_boxes": predictions.boxes[layer, 0]}
        for image, (queries, rows) in enumerate(peer(outputs, targets)):
            assert matched[layer, 0, image, rows].tolist() == queries.tolist()


def test_one_transfer_each_way_whatever_the_number_of_layers(monkeypatch):
    # Notes, 1.2 and 4.1: the official code copies each layer's costs, of all pairs of images.
    batch, sizes = make_batch([3, 6], classes=5), []
    original = torch.Tensor.cpu

    def counting(tensor, *args):
        sizes.append(tuple(tensor.shape))
        return original(tensor, *args)

    def refuse(*args, **kwargs):
        raise AssertionError("reads a value or compares all pairs of the batch")

    returned = []
    assign = matcher._assign
    monkeypatch.setattr(torch.Tensor, "cpu", counting)
    monkeypatch.setattr(matcher, "_assign", lambda *args: returned.append(assign(*args)) or returned[-1])
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    monkeypatch.setattr(torch, "cdist", refuse)
    match(make_predictions(6, 2, 2, 10, 6), batch)
    assert sizes == [(6, 2, 2, 6, 10)] and len(returned) == 1


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_matched_in_float32(dtype, autocast, monkeypatch):
    # Notes, row 11: costs in half precision fail, or resolve near ties at random.
    costs, assign = [], matcher._assign
    monkeypatch.setattr(matcher, "_assign", lambda cost, batch: costs.append(cost) or assign(cost, batch))
    batch = make_batch([4, 2], classes=5)
    half = Predictions(*(values.detach().to(dtype) for values in make_predictions(2, 1, 2, 30, 6)))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        matched = match(half, batch._replace(boxes=batch.boxes.to(dtype)))
    wide = batch._replace(boxes=batch.boxes.to(dtype).float())
    assert torch.equal(matched, match(Predictions(*(values.float() for values in half)), wide))
    assert costs[0].dtype == torch.float32 and torch.equal(*costs)


def test_images_without_objects_need_no_transfer():
    batch = make_batch([0, 0], classes=5)
    assert match(make_predictions(3, 1, 2, 10, 6), batch).shape == (3, 1, 2, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["logits", "boxes"])
def test_predictions_that_are_no_numbers_are_named(field, value):
    batch = make_batch([2, 3, 0, 1], classes=5)
    predictions = make_predictions(4, 1, 4, 10, 6)
    with torch.no_grad():
        getattr(predictions, field)[2:, :, [1, 2]] = value  # image 2 has no objects to match
    said = r"from layer 3 of 4 on, there for the image ids 101 \(1 of the batch's 4 images\)"
    with pytest.raises(FloatingPointError, match=said):
        match(predictions, batch)


def test_more_objects_than_queries_are_matched_as_far_as_they_go_with_one_warning(monkeypatch):
    monkeypatch.setattr(matcher, "_warned_of", set())
    batch = make_batch([2, 7], classes=5)
    predictions = make_predictions(2, 1, 2, 4, 6)
    with pytest.warns(UserWarning, match="image 101 has 7 objects, but the network has 4 queries: 3 of its") as told:
        matched = match(predictions, batch)
        match(predictions, batch)
    assert len(told) == 1
    assert ((matched >= 0).sum(-1) == torch.tensor([2, 4])).all()
