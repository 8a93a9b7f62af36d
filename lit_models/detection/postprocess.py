"""Predictions as detections: class, score and box in the original image's pixels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_models.detection.boxes import at_least_float32, cxcywh_to_xyxy
from lit_models.detection.matcher import Classification
from lit_models.detection.network import Predictions


class Detections(NamedTuple):
    """What was found in one image.

    Attributes:
        scores: (detections,) in [0, 1].
        labels: (detections,) int64, class numbers.
        boxes: (detections, 4) as (left, top, right, bottom) in pixels of the original image; they may leave it.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor


def detections(
    predictions: Predictions,
    original_sizes: Sequence[tuple[int, int]],
    classification: Classification = "softmax",
    top: int = 100,
) -> list[Detections]:
    """Turn the last layer's predictions into detections, without a threshold: average precision needs the weak ones.

    With a ``softmax`` every query gives one detection, of its best class beside no-object, however probable that is
    (Carion et al. 2020, section 4: 2 AP). With ``focal`` the ``top`` pairs of query and class are taken, best first
    (Zhu et al. 2020).

    Args:
        predictions: Of the network.
        original_sizes: (height, width) of each image in its file, by which boxes are scaled: they are shares of the
            image, whatever size it was resized or padded to.
        classification: What reads the logits.
        top: Detections of an image with ``focal``.

    Returns:
        The detections of each image, on the predictions' device.
    """
    logits, boxes = map(at_least_float32, predictions.final)
    if classification == "softmax":
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
    else:
        flat = logits.sigmoid().flatten(1)
        scores, index = flat.topk(min(top, flat.shape[1]))
        labels = index % logits.shape[-1]
        boxes = boxes.gather(1, (index // logits.shape[-1])[..., None].expand(-1, -1, 4))
    scales = torch.tensor([(width, height, width, height) for height, width in original_sizes], dtype=boxes.dtype)
    boxes = cxcywh_to_xyxy(boxes) * scales.to(boxes.device, non_blocking=True)[:, None]
    return [Detections(*found) for found in zip(scores, labels, boxes, strict=True)]


def coco_results(image_id: int, found: Detections, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return the detections of an image in COCO's result format.

    Args:
        image_id: The image's id in the ground truth.
        found: Its detections.
        category_ids: Ids of the classes in the ground truth, by class number.

    Returns:
        ``image_id``, ``category_id``, ``bbox`` (left, top, width, height in pixels) and ``score`` of each.
    """
    corners = found.boxes.double()
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [round(side, 4) for side in box],
            "score": round(score, 6),
        }
        for label, box, score in zip(found.labels.tolist(), boxes.tolist(), found.scores.tolist(), strict=True)
    ]
