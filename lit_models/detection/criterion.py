"""The set loss of DETR (Carion et al. 2020, section 3.1) and of its successors.

https://arxiv.org/abs/2005.12872

Every layer's predictions are matched to the objects anew and weigh the same. All layers and groups are computed in one
pass, and nothing is read from the device beside the matcher's costs.

What the sums are divided by belongs to the whole optimiser step, all processes and micro-batches: the box losses by
its number of objects, at least 1; the cross-entropy by the sum of its class weights, which depends on nothing but the
numbers of objects and images. So the losses of the micro-batches *add up* to that of the joint batch, whatever way it
was cut. Whoever averages them (Lightning's accumulation, DistributedDataParallel) must multiply by their number. The
official code divides the cross-entropy by the weights of the process's own batch: equal in one process. An object left
over, because its image has more of them than there are queries, is counted like the others.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from datamodules.batches import DetectionBatch
from lit_models.checks import check_at_least
from lit_models.detection.boxes import at_least_float32, cxcywh_to_xyxy, generalized_box_iou_pairs
from lit_models.detection.matcher import Classification, focal, match
from lit_models.detection.network import Predictions


class Losses(NamedTuple):
    """The loss of a batch.

    Attributes:
        total: What is backpropagated: the weighted sum over terms and layers, a scalar, at least float32.
        parts: Detached scalars on the device. ``loss_class``, ``loss_l1`` and ``loss_giou`` are the last layer's,
            without their weights; with the suffixes ``_0``, ``_1``, ... those of the layers before. Of the last layer,
            first group: ``matched_class_accuracy``, share of the matched queries whose best output is the object's
            class, no-object among the outputs (0 if nothing was matched); ``no_object_rate``, share of the queries
            that predict no object; ``cardinality_error``, by how much the number of the others misses that of the
            objects, mean over the images. With focal loss a query predicts no object where no class reaches 0.5.
    """

    total: Tensor
    parts: dict[str, Tensor]


class SetCriterion:
    """Matches predictions to objects and scores them.

    Groups of queries (Group DETR, Chen et al. 2022, https://arxiv.org/abs/2207.13085) are matched one by one, and
    their losses are averaged.

    Args:
        num_classes: Classes of objects, no-object not counted.
        classification: ``softmax`` over the classes and no-object, with cross-entropy; or ``focal``, a sigmoid for
            each class with focal loss (Deformable and Conditional DETR), divided by the number of objects.
        class_weight: Weight of the classification loss; null for 1 with ``softmax`` and 2 with ``focal``.
        l1_weight: Weight of the sum of absolute differences of centre, width and height.
        giou_weight: Weight of 1 - generalised IoU.
        no_object_weight: Weight of a query without an object in the cross-entropy, beside 1 of a matched one.
        focal_alpha: Weight of positives in the focal loss, 1 less it that of negatives.
        focal_gamma: Exponent of the focal loss.
        class_cost: Weight of the class in matching; null for 1 with ``softmax`` and 2 with ``focal``.
        l1_cost: Weight of the coordinates in matching.
        giou_cost: Weight of the generalised IoU in matching.

    Raises:
        ValueError: If a weight is negative.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        classification: Classification = "softmax",
        class_weight: float | None = None,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        no_object_weight: float = 0.1,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        class_cost: float | None = None,
        l1_cost: float = 5.0,
        giou_cost: float = 2.0,
    ) -> None:
        usual = 1.0 if classification == "softmax" else 2.0
        self.num_classes, self.classification = num_classes, classification
        self.weights = {
            "class_weight": usual if class_weight is None else class_weight,
            "l1_weight": l1_weight,
            "giou_weight": giou_weight,
        }
        self.costs = {
            "class_cost": usual if class_cost is None else class_cost,
            "l1_cost": l1_cost,
            "giou_cost": giou_cost,
        }
        self.no_object_weight = no_object_weight
        self.focal = {"focal_alpha": focal_alpha, "focal_gamma": focal_gamma}
        for name, value in (self.weights | self.costs | self.focal | {"no_object_weight": no_object_weight}).items():
            check_at_least(name, value, 0.0)

    def __call__(self, predictions: Predictions, batch: DetectionBatch, step_images: int | None = None) -> Losses:
        """Return the loss of a batch: its share of the loss of the whole optimiser step.

        Args:
            predictions: Of the network; half precision is computed in float32.
            batch: The objects, on the same device.
            step_images: Images of all processes and micro-batches of the optimiser step, whose objects
                ``batch.step_boxes`` counts; by default the batch is the whole step.

        Raises:
            FloatingPointError: If a prediction is NaN or infinite.
            ValueError: If the predictions have another number of outputs, or ``step_images`` is missing.
        """
        predictions = Predictions(*map(at_least_float32, predictions))
        images, objects = self._step(predictions, batch, step_images)
        matched = match(predictions, batch, classification=self.classification, **self.costs, **self.focal)
        if self.classification == "softmax":
            sums = {"class": self._cross_entropy(predictions.logits, matched, batch.labels)}
            counts = {"class": self._sum_of_weights(objects, images * predictions.boxes.shape[3])}
        else:
            sums = {"class": self._focal_loss(predictions.logits, matched, batch.labels)}
            counts = {"class": objects}
        sums["l1"], sums["giou"] = _box_losses(predictions.boxes, matched, batch.boxes)
        groups = predictions.boxes.shape[1]
        layers = {name: sums[name] / (groups * counts.get(name, objects)) for name in sums}
        total = torch.stack([self.weights[f"{name}_weight"] * values for name, values in layers.items()]).sum()
        parts = {}
        for name, values in layers.items():
            *earlier, parts[f"loss_{name}"] = values.detach().unbind()
            parts |= {f"loss_{name}_{layer}": value for layer, value in enumerate(earlier)}
        return Losses(total, parts | self._described(predictions.final[0].detach(), matched[-1, 0], batch.labels))

    def _step(self, predictions: Predictions, batch: DetectionBatch, step_images: int | None) -> tuple[int, int]:
        """Return how many images and objects, at least 1, the optimiser step has; refuse what does not fit."""
        outputs = self.num_classes + (self.classification == "softmax")
        if predictions.logits.shape[-1] != outputs:
            raise ValueError(
                f"the predictions have {predictions.logits.shape[-1]} outputs, but {self.classification} "
                f"classification of {self.num_classes} classes reads {outputs}"
            )
        own = sum(batch.counts)
        if step_images is None and batch.step_boxes not in (0, own):
            raise ValueError(
                f"the optimiser step has {batch.step_boxes} objects, this batch {own}: step_images, the number of the "
                "step's images, is missing"
            )
        return step_images or len(batch.counts), max(batch.step_boxes or own, 1)

    def _sum_of_weights(self, objects: int, queries: int) -> float:
        """Return the sum of the class weights of a step's queries, of which each object has one."""
        matched = min(objects, queries)
        return matched + self.no_object_weight * (queries - matched) or 1.0

    def _cross_entropy(self, logits: Tensor, matched: Tensor, labels: Tensor) -> Tensor:
        """Return each layer's sum of the weighted cross-entropy over groups, images and queries."""
        # What is matched to no query goes to a place behind the last one, and away with it.
        targets = torch.full((*logits.shape[:3], logits.shape[3] + 1), self.num_classes, device=logits.device)
        unmatched = matched < 0
        targets.scatter_(3, matched.masked_fill(unmatched, logits.shape[3]), labels.expand_as(matched))
        weights = logits.new_ones(self.num_classes + 1)
        weights[-1] = self.no_object_weight
        losses = functional.cross_entropy(logits.flatten(0, 3), targets[..., :-1].flatten(), weights, reduction="none")
        return losses.view(len(logits), -1).sum(1)

    def _focal_loss(self, logits: Tensor, matched: Tensor, labels: Tensor) -> Tensor:
        """Return each layer's sum of the focal loss over groups, images, queries and classes."""
        alpha, gamma = self.focal["focal_alpha"], self.focal["focal_gamma"]
        index = matched.clamp(min=0) * self.num_classes + labels.clamp(min=0)
        there = logits.flatten(3).gather(3, index)
        # Every logit as if its class were not there, and the difference for those whose class is.
        differences = alpha * focal(-there, gamma) - (1.0 - alpha) * focal(there, gamma)
        absent = (1.0 - alpha) * focal(logits, gamma).flatten(1).sum(1)
        return absent + differences.masked_fill(matched < 0, 0.0).flatten(1).sum(1)

    def _described(self, logits: Tensor, matched: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return what is logged beside the losses, of logits (batch, queries, outputs) and matches (batch, most)."""
        best, classes = logits.max(-1)
        empty = classes == self.num_classes if self.classification == "softmax" else best < 0.0
        is_matched = matched >= 0
        right = (classes.gather(1, matched.clamp(min=0)) == labels) & is_matched
        found, there = (~empty).sum(1), (labels >= 0).sum(1)
        return {
            "matched_class_accuracy": right.sum() / is_matched.sum().clamp(min=1),
            "no_object_rate": empty.float().mean(),
            "cardinality_error": (found - there).abs().float().mean(),
        }


def _box_losses(boxes: Tensor, matched: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """Return each layer's sums of |difference| over the four coordinates and of 1 - generalised IoU, over all matches.

    Args:
        boxes: (layers, groups, batch, queries, 4).
        matched: (layers, groups, batch, most).
        objects: (batch, most, 4).
    """
    unmatched = (matched < 0)[..., None]
    ours = boxes.gather(3, matched.clamp(min=0)[..., None].expand(-1, -1, -1, -1, 4))
    objects = at_least_float32(objects)
    l1 = (ours - objects).abs()
    giou = 1.0 - generalized_box_iou_pairs(cxcywh_to_xyxy(ours), cxcywh_to_xyxy(objects))[..., None]
    first, second = (loss.masked_fill(unmatched, 0.0).flatten(1).sum(1) for loss in (l1, giou))
    return first, second
