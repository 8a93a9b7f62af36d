"""Random predictions and objects, for the tests of matching, losses and evaluation."""

import torch

from datamodules.batches import DetectionBatch
from lit_models.detection.network import Predictions


def boxes_in_image(*shape, dtype=torch.float32):
    """Return (*shape, 4) boxes as (centre x, centre y, width, height) inside the image."""
    sizes = 0.05 + 0.4 * torch.rand(*shape, 2, dtype=dtype)
    return torch.cat((sizes / 2 + torch.rand(*shape, 2, dtype=dtype) * (1 - sizes), sizes), -1)


def make_predictions(layers, groups, images, queries, outputs, dtype=torch.float32):
    shape = (layers, groups, images, queries)
    logits = 2 * torch.randn(*shape, outputs, dtype=dtype)
    return Predictions(logits.requires_grad_(), boxes_in_image(*shape, dtype=dtype).requires_grad_())


def make_batch(counts, classes, dtype=torch.float32, first_id=100, step_boxes=None):
    images, most = len(counts), max(counts)
    boxes, labels = boxes_in_image(images, most, dtype=dtype), torch.randint(classes, (images, most))
    for image, count in enumerate(counts):
        boxes[image, count:], labels[image, count:] = 0.0, -1
    sizes = ((32, 48),) * images
    return DetectionBatch(
        torch.zeros(images, 3, 32, 48),
        sizes,
        boxes,
        labels,
        tuple(counts),
        tuple(range(first_id, first_id + images)),
        sizes,
        sum(counts) if step_boxes is None else step_boxes,
    )


def join(first, second):
    """Return the batch of two batches' images."""
    most = max(first.boxes.shape[1], second.boxes.shape[1])
    boxes, labels = [], []
    for batch in (first, second):
        missing = most - batch.boxes.shape[1]
        boxes.append(torch.nn.functional.pad(batch.boxes, (0, 0, 0, missing)))
        labels.append(torch.nn.functional.pad(batch.labels, (0, missing), value=-1))
    return DetectionBatch(
        torch.cat((first.images, second.images)),
        first.sizes + second.sizes,
        torch.cat(boxes),
        torch.cat(labels),
        first.counts + second.counts,
        first.image_ids + second.image_ids,
        first.original_sizes + second.original_sizes,
        sum(first.counts) + sum(second.counts),
    )
