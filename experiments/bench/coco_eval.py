"""COCO's evaluation of boxes with faster-coco-eval, our default, beside pycocotools, in one run.

The objects and detections are random, as many as in COCO's val2017: 7.3 objects an image of 80 classes, and 100
detections, of which the first are near the objects. Both sides get the same detections and must give equal numbers,
to 1e-12: the twelve and those of every class.
"""

import argparse
import statistics
from functools import partial
from typing import Any, get_args

import numpy as np
import torch

from experiments.bench.record import record
from experiments.bench.side_by_side import add_options, compare, positive, prepare, print_rows, take_turns
from experiments.command import CommandParser, run
from lit_models.detection.evaluation import Backend, CocoResult, CocoScores
from lit_models.detection.postprocess import Detections

PACKAGES = {"faster": "faster-coco-eval", "pycocotools": "pycocotools"}
CLASSES, WIDTH, HEIGHT = 80, 640, 480


def main(argv: list[str]) -> int:
    """Measure, print and record."""
    return run(_main, argv)


def _main(argv: list[str]) -> None:
    options = _parser().parse_args(argv)
    prepare(options)
    truth, found = make_work(options)
    results: dict[str, CocoResult] = {}

    def score(backend: Backend) -> None:
        scores = CocoScores(truth, range(1, CLASSES + 1), backend)
        scores.update(range(len(found)), found)
        results[backend] = scores.compute()

    times = take_turns({name: partial(score, name) for name in get_args(Backend)}, options.rounds)
    difference = largest_difference(results["faster"], results["pycocotools"])
    rows = [
        {
            "images": options.images,
            "detections": options.images * options.detections,
            "objects": len(truth["annotations"]),
            "provider": PACKAGES[name],
            "seconds": round(statistics.median(taken.wall), 3),
            **compare(taken, times["faster"]),
            "AP": round(results[name].summary["AP"], 6),
            "largest_difference": difference,
        }
        for name, taken in times.items()
    ]
    print_rows(rows)
    if not difference <= 1e-12:
        raise ValueError(f"the two evaluations differ by {difference}")
    if options.record:
        print(record("coco_eval", rows, tuple(PACKAGES.values())))


def _parser() -> CommandParser:
    parser = CommandParser("python -m experiments bench coco_eval", __doc__ or "")
    parser.add_argument("--images", type=positive, default=5000, help="images; pycocotools takes a minute for 5,000")
    parser.add_argument("--detections", type=positive, default=100, help="detections of an image")
    add_options(parser, rounds=3)
    return parser


def make_work(options: argparse.Namespace) -> tuple[dict[str, Any], list[Detections]]:
    """Return a COCO ground truth, one object in a hundred a crowd, and the detections of each image."""
    draws = np.random.default_rng(options.seed)
    annotations: list[dict[str, Any]] = []
    found = []
    for image in range(options.images):
        count = int(draws.geometric(1 / 7.3))
        boxes, labels = _boxes(draws, count), draws.integers(CLASSES, size=count)
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            width, height = box[2] - box[0], box[3] - box[1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": label + 1,
                    "bbox": [box[0], box[1], width, height],
                    "area": 0.7 * width * height,
                    "iscrowd": int(draws.random() < 0.01),
                }
            )
        found.append(_detections(draws, boxes, labels, options.detections))
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)]
    return {
        "images": [{"id": n} for n in range(options.images)],
        "annotations": annotations,
        "categories": categories,
    }, found


def _boxes(draws: np.random.Generator, count: int) -> np.ndarray:
    """Return (left, top, right, bottom) with sides from 8 pixels, small ones as frequent as large ones."""
    sizes = np.exp(draws.uniform(np.log(8), np.log(HEIGHT), (count, 2)))
    first = draws.random((count, 2)) * ((WIDTH, HEIGHT) - sizes)
    return np.concatenate((first, first + sizes), 1)


def _detections(draws: np.random.Generator, boxes: np.ndarray, labels: np.ndarray, count: int) -> Detections:
    """Return the objects, each a little off and three in four of the right class, and boxes from nowhere."""
    near = boxes[:count] * draws.normal(1.0, 0.03, boxes[:count].shape)
    right = draws.random(len(near)) < 0.75
    classes = np.where(right, labels[:count], draws.integers(CLASSES, size=len(near)))
    rest = count - len(near)
    scores = np.concatenate((draws.beta(4, 2, len(near)), draws.beta(1, 6, rest)))
    classes = np.concatenate((classes, draws.integers(CLASSES, size=rest)))
    return Detections(*map(torch.from_numpy, (scores, classes, np.concatenate((near, _boxes(draws, rest))))))


def largest_difference(ours: CocoResult, theirs: CocoResult) -> float:
    """Return the largest difference between two results, over all their numbers."""
    pairs = zip(ours, theirs, strict=True)
    return max(abs(one[name] - other[name]) for one, other in pairs for name in one)
