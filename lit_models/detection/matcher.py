"""Which query stands for which object: the cheapest one-to-one assignment (Carion et al. 2020, section 3.1).

https://arxiv.org/abs/2005.12872

The costs of all layers, groups and images are one tensor, padded to the largest number of objects of an image: an
image's queries are never compared with another image's objects. It goes to the host once, where scipy solves the small
problems one after the other, and the matched queries come back once.
"""

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from datamodules.batches import DetectionBatch
from lit_models.detection.boxes import at_least_float32, cxcywh_to_xyxy, generalized_box_iou
from lit_models.detection.network import Predictions

Classification = Literal["softmax", "focal"]
_warned_of: set[int] = set()  # numbers of queries that were once too few


@torch.no_grad()
def match(
    predictions: Predictions,
    batch: DetectionBatch,
    *,
    class_cost: float = 1.0,
    l1_cost: float = 5.0,
    giou_cost: float = 2.0,
    classification: Classification = "softmax",
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
) -> Tensor:
    """Match every object to a query of its image, anew in each layer and group.

    Args:
        predictions: Of the network, in any floating-point type.
        batch: The objects.
        class_cost: Weight of the negative probability of the object's class, the softmax taken over no-object too; or,
            with ``focal``, of the focal loss that being matched adds (Zhu et al. 2020; 2 there).
        l1_cost: Weight of the sum of the absolute differences of centre, width and height.
        giou_cost: Weight of the negative generalised IoU.
        classification: What reads the logits: a ``softmax``, or with ``focal`` a sigmoid for each class.
        focal_alpha: Weight of positives in the focal loss, 1 less it that of negatives.
        focal_gamma: Exponent of the focal loss.

    Returns:
        (layers, groups, batch, most) int64 on the predictions' device: the query of each object. -1 after an image's
        objects, and, where an image has more objects than there are queries, for those left over.

    Raises:
        FloatingPointError: If a prediction is NaN or infinite, with its layer and images. Images without objects are
            not looked at.
    """
    shape = (*predictions.boxes.shape[:3], batch.labels.shape[1])
    if shape[-1] == 0:
        return batch.labels.new_empty(shape)
    boxes, objects = at_least_float32(predictions.boxes), at_least_float32(batch.boxes)
    cost = _class_cost(predictions.logits, batch.labels, classification, focal_alpha, focal_gamma).mul_(class_cost)
    cost.add_(_l1_distance(objects, boxes), alpha=l1_cost)
    cost.sub_(generalized_box_iou(cxcywh_to_xyxy(objects), cxcywh_to_xyxy(boxes)), alpha=giou_cost)
    return _assign(cost, batch).to(cost.device, non_blocking=True)


def _class_cost(logits: Tensor, labels: Tensor, classification: Classification, alpha: float, gamma: float) -> Tensor:
    """Return (layers, groups, batch, most, queries) of logits (layers, groups, batch, queries, outputs)."""
    logits = at_least_float32(logits)
    index = labels.clamp(min=0)[:, None, :].expand(*logits.shape[:-1], -1)
    if classification == "softmax":
        cost = -logits.softmax(-1).gather(-1, index)
    else:
        there = logits.gather(-1, index)
        cost = alpha * focal(-there, gamma) - (1.0 - alpha) * focal(there, gamma)
    return cost.transpose(-1, -2).contiguous()


def focal(logits: Tensor, gamma: float) -> Tensor:
    """Return the focal loss of logits whose class is not there, without its weight; of -logits: whose class is.

    Lin et al. 2017, https://arxiv.org/abs/1708.02002; of the logits' shape.
    """
    return logits.sigmoid() ** gamma * functional.softplus(logits)


def _l1_distance(objects: Tensor, boxes: Tensor) -> Tensor:
    """Return (..., objects, queries): coordinate by coordinate, where torch.cdist is slow and has no half precision."""
    ours, theirs = (values.movedim(-1, 0).contiguous() for values in (boxes, objects))
    distance = (theirs[0][..., :, None] - ours[0][..., None, :]).abs_()
    for axis in (1, 2, 3):
        distance.add_((theirs[axis][..., :, None] - ours[axis][..., None, :]).abs_())
    return distance


def _assign(cost: Tensor, batch: DetectionBatch) -> Tensor:
    """Solve (layers, groups, batch, most, queries) on the host; (layers, groups, batch, most), -1 where unmatched."""
    queries = cost.shape[-1]
    if max(batch.counts) > queries:
        _warn_of_left_over(batch, queries)
    costs = cost.cpu().double().numpy()
    matched = np.full(cost.shape[:-1], -1, dtype=np.int64)
    for layer, group in np.ndindex(cost.shape[:2]):
        for image, count in enumerate(batch.counts):
            if not count:
                continue
            try:
                rows, columns = linear_sum_assignment(costs[layer, group, image, :count])
            except ValueError as error:
                raise FloatingPointError(_bad_predictions(costs, batch)) from error
            matched[layer, group, image, rows] = columns
    return torch.from_numpy(matched)


def _bad_predictions(costs: np.ndarray, batch: DetectionBatch) -> str:
    """Say in which layers and images the costs are no numbers."""
    bad = np.zeros(costs.shape[:3], dtype=bool)
    for image, count in enumerate(batch.counts):
        bad[:, :, image] = ~np.isfinite(costs[:, :, image, :count]).all((-1, -2))
    layer = int(bad.any((1, 2)).argmax())
    images = [batch.image_ids[image] for image in np.flatnonzero(bad[layer].any(0))]
    return (
        f"the predictions are NaN or infinite from layer {layer + 1} of {len(bad)} on, "
        f"there for the image ids {_list(images)} ({len(images)} of the batch's {len(batch.counts)} images)"
    )


def _list(numbers: Sequence[int], shown: int = 8) -> str:
    more = f" and {len(numbers) - shown} more" if len(numbers) > shown else ""
    return ", ".join(map(str, numbers[:shown])) + more


def _warn_of_left_over(batch: DetectionBatch, queries: int) -> None:
    """Say once for a number of queries that it is too small."""
    if queries not in _warned_of:
        _warned_of.add(queries)
        most = max(batch.counts)
        warnings.warn(
            f"image {batch.image_ids[batch.counts.index(most)]} has {most} objects, but the network has {queries} "
            f"queries: {most - queries} of its objects are matched to none; raise num_queries above the data's largest "
            "count (further images are not reported)",
            stacklevel=3,
        )
