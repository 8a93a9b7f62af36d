"""DETR's matching and set loss, forward and backward, beside the official computation, in one run.

The official computation (Carion et al. 2020; facebookresearch/detr) is written here from its formulae: layer by layer
the costs of all queries of the batch for all objects of the batch, so also across images, with ``torch.cdist``; a copy
to the host and scipy for each layer; losses from concatenated matches, with the diagonal of a pairwise IoU. Its checks
of the boxes' order, which wait for the device, are left out. Both sides get the same batches: images with one object or
more, 7.3 on average as in COCO, at most 63, their number geometrically distributed.
"""

import argparse
import statistics
from collections.abc import Callable
from itertools import cycle

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_convert, generalized_box_iou

from datamodules.batches import DetectionBatch
from experiments.bench.record import record
from experiments.bench.side_by_side import add_options, compare, positive, prepare, print_rows, take_turns
from experiments.command import CommandParser, run
from lit_models.detection.criterion import SetCriterion
from lit_models.detection.matcher import match
from lit_models.detection.network import Predictions

PARTS = ("matching", "matching, losses, gradients")
Pairs = list[tuple[Tensor, Tensor]]


def main(argv: list[str]) -> int:
    """Measure, print and record."""
    return run(_main, argv)


def _main(argv: list[str]) -> None:
    options = _parser().parse_args(argv)
    device = prepare(options)
    work = [make_batch(options, number, device) for number in range(options.batches)]
    rows = []
    for part in options.parts:
        times = take_turns(make_tasks(part, work, options.classes), options.rounds, repeats=len(work), device=device)
        rows += [
            {
                "part": part,
                "layers": options.layers,
                "batch_size": options.batch_size,
                "queries": options.queries,
                "classes": options.classes,
                "objects": sum(batch.step_boxes for _, batch in work),
                "batches": len(work),
                "provider": provider,
                "milliseconds": round(1e3 * statistics.median(taken.wall), 3),
                **compare(taken, times["heddle"], on_gpu=device.type == "cuda"),
            }
            for provider, taken in times.items()
        ]
    print_rows(rows)
    if options.record:
        print(record("matcher", rows, ("torch", "scipy")))


def _parser() -> CommandParser:
    parser = CommandParser("python -m experiments bench matcher", __doc__ or "")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="; ".join(PARTS))
    parser.add_argument("--layers", type=positive, default=6, help="layers of the decoder")
    parser.add_argument("--batch-size", type=positive, default=16, help="images of a batch")
    parser.add_argument("--queries", type=positive, default=100, help="object queries")
    parser.add_argument("--classes", type=positive, default=91, help="classes, no-object not counted")
    parser.add_argument("--batches", type=positive, default=8, help="batches in a round")
    add_options(parser, rounds=15)
    return parser


def make_batch(options: argparse.Namespace, number: int, device: torch.device) -> tuple[Predictions, DetectionBatch]:
    """Return random predictions that want gradients, and random objects."""
    draws = np.random.default_rng((options.seed, number))
    counts = [int(count) for count in draws.geometric(1 / 7.3, options.batch_size).clip(max=63)]
    images, most = options.batch_size, max(counts)
    generator = torch.Generator().manual_seed(options.seed * 1000 + number)
    boxes = random_boxes((images, most), generator)
    labels = torch.randint(options.classes, (images, most), generator=generator)
    for image, count in enumerate(counts):
        boxes[image, count:], labels[image, count:] = 0.0, -1
    shape = (options.layers, 1, images, options.queries)
    logits = torch.randn(*shape, options.classes + 1, generator=generator)
    predictions = Predictions(
        *(values.to(device).requires_grad_() for values in (logits, random_boxes(shape, generator)))
    )
    nothing, sizes = torch.empty(images, 3, 0, 0), ((800, 1333),) * images
    batch = DetectionBatch(
        nothing, sizes, boxes.to(device), labels.to(device), tuple(counts), tuple(range(images)), sizes, sum(counts)
    )
    return predictions, batch


def random_boxes(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return boxes of a shape (and 4) inside the image, as (centre x, centre y, width, height) in shares of it."""
    sizes = 0.02 + 0.4 * torch.rand(*shape, 2, generator=generator)
    return torch.cat((sizes / 2 + torch.rand(*shape, 2, generator=generator) * (1 - sizes), sizes), dim=-1)


def make_tasks(
    part: str, work: list[tuple[Predictions, DetectionBatch]], classes: int
) -> dict[str, Callable[[], object]]:
    """Return what each provider does with the next batch."""
    criterion = SetCriterion(classes)
    # The official code is given lists of objects, which its data loader makes.
    official = [(predictions, targets_of(batch)) for predictions, batch in work]
    ours, theirs = cycle(work), cycle(official)
    if part == "matching":
        return {"heddle": lambda: match(*next(ours)), "official": lambda: official_match(*next(theirs))}

    def step_of_ours() -> object:
        predictions, batch = next(ours)
        return torch.autograd.grad(criterion(predictions, batch).total, predictions)

    def step_of_theirs() -> object:
        predictions, targets = next(theirs)
        return torch.autograd.grad(official_loss(predictions, targets, classes), predictions)

    return {"heddle": step_of_ours, "official": step_of_theirs}


def targets_of(batch: DetectionBatch) -> list[dict[str, Tensor]]:
    """Return a batch's labels and boxes as the official code has them, a dictionary for each image."""
    return [
        {"labels": batch.labels[image, :count], "boxes": batch.boxes[image, :count]}
        for image, count in enumerate(batch.counts)
    ]


def official_match(predictions: Predictions, targets: list[dict[str, Tensor]]) -> list[Pairs]:
    """Return for each layer and image which queries are matched to which objects."""
    layers = zip(predictions.logits[:, 0], predictions.boxes[:, 0], strict=True)
    return [_match_layer(logits, boxes, targets) for logits, boxes in layers]


@torch.no_grad()
def _match_layer(logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]]) -> Pairs:
    probabilities, flat = logits.flatten(0, 1).softmax(-1), boxes.flatten(0, 1)
    labels = torch.cat([target["labels"] for target in targets])
    objects = torch.cat([target["boxes"] for target in targets])
    cost = 5.0 * torch.cdist(flat, objects, p=1) - probabilities[:, labels]
    cost = cost - 2.0 * generalized_box_iou(_corners(flat), _corners(objects))
    parts = cost.view(*logits.shape[:2], -1).cpu().split([len(target["labels"]) for target in targets], -1)
    pairs = [linear_sum_assignment(part[image]) for image, part in enumerate(parts)]
    return [(torch.as_tensor(queries), torch.as_tensor(rows)) for queries, rows in pairs]


def official_loss(predictions: Predictions, targets: list[dict[str, Tensor]], classes: int) -> Tensor:
    """Return the weighted sum of the losses of all layers, with what the official code computes for the log."""
    device = predictions.logits.device
    number = torch.as_tensor([sum(len(target["labels"]) for target in targets)], dtype=torch.float, device=device)
    number_of_boxes = torch.clamp(number, min=1).item()
    weights = torch.ones(classes + 1, device=device)
    weights[-1] = 0.1
    total = torch.zeros((), device=device)
    for logits, boxes in zip(predictions.logits[:, 0], predictions.boxes[:, 0], strict=True):
        pairs = _match_layer(logits, boxes, targets)
        image = torch.cat([torch.full_like(queries, number) for number, (queries, _) in enumerate(pairs)])
        place = image, torch.cat([queries for queries, _ in pairs])
        labels = torch.cat([target["labels"][rows] for target, (_, rows) in zip(targets, pairs, strict=True)])
        objects = torch.cat([target["boxes"][rows] for target, (_, rows) in zip(targets, pairs, strict=True)])
        classes_of = torch.full(logits.shape[:2], classes, dtype=torch.int64, device=device)
        classes_of[place] = labels
        total = total + functional.cross_entropy(logits.transpose(1, 2), classes_of, weights)
        matched = boxes[place]
        total = total + 5.0 * functional.l1_loss(matched, objects, reduction="none").sum() / number_of_boxes
        overlap = torch.diag(generalized_box_iou(_corners(matched), _corners(objects)))
        total = total + 2.0 * (1 - overlap).sum() / number_of_boxes
        _log_cardinality(logits, targets)
    return total


def _log_cardinality(logits: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
    counts = torch.as_tensor([len(target["labels"]) for target in targets], device=logits.device)
    found = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
    return functional.l1_loss(found.float(), counts.float())


def _corners(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")
