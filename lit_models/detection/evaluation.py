"""COCO's average precision and recall of boxes (Lin et al. 2014, https://cocodataset.org/#detection-eval)."""

import contextlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from lit_models.detection.postprocess import Detections

Backend = Literal["faster", "pycocotools"]
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The 12 numbers in COCO's order: over IoU 0.50 to 0.95, at 0.50, at 0.75; of small (below 32 x 32 pixels), medium and
large (from 96 x 96) objects; recall with 1, 10 and 100 detections an image; recall of small, medium and large ones."""


class CocoResult(NamedTuple):
    """The scores of an evaluation, in [0, 1]; -1, as in COCO, where the ground truth has no such object.

    Attributes:
        summary: The 12 numbers by name.
        per_class: AP of each category of the ground truth, by its name; if several have the same, by ``name (id)``.
    """

    summary: dict[str, float]
    per_class: dict[str, float]


class CocoScores:
    """Gathers detections and scores them over the images that were seen.

    Each process keeps its detections on the host. :meth:`compute` gathers them once, as objects, and the first process
    scores them for all; an image that several processes saw, as padding samplers make them, counts once.

    Args:
        ground_truth: COCO dictionary with ``images``, ``annotations`` and ``categories``. Crowds belong in it: what
            they cover is neither right nor wrong.
        category_ids: Category of each class number.
        backend: ``faster`` (faster-coco-eval) or ``pycocotools``: equal numbers.
    """

    def __init__(
        self, ground_truth: Mapping[str, Any], category_ids: Sequence[int], backend: Backend = "faster"
    ) -> None:
        self.categories = [{"id": entry["id"], "name": entry["name"]} for entry in ground_truth["categories"]]
        self.annotations: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in ground_truth["images"]}
        for annotation in ground_truth["annotations"]:
            self.annotations[annotation["image_id"]].append(_scored_annotation(annotation))
        self.category_ids, self.backend = np.asarray(category_ids, dtype=np.int64), backend
        self._found: dict[int, np.ndarray] = {}

    def update(self, image_ids: Sequence[int], detections: Sequence[Detections]) -> None:
        """Add images with what was found in them, which may be nothing.

        Args:
            image_ids: Of the ground truth.
            detections: Of each image, on any device.

        Raises:
            ValueError: If an image is not in the ground truth.
        """
        unknown = [number for number in image_ids if number not in self.annotations]
        if unknown:
            raise ValueError(f"image id {unknown[0]} is not among the {len(self.annotations)} of the ground truth")
        # One tensor and one copy for the batch; float64 holds every float32 and class number.
        columns = [torch.cat((found.boxes, found.scores[:, None], found.labels[:, None]), 1) for found in detections]
        rows = torch.cat([column.double() for column in columns]).cpu().numpy() if columns else np.empty((0, 6))
        ends = np.cumsum([len(found.scores) for found in detections])[:-1]
        for number, found in zip(image_ids, np.split(rows, ends), strict=True):
            self._found.setdefault(number, found)

    def compute(self) -> CocoResult:
        """Return the scores over all processes and start anew; every process must call it.

        Raises:
            ValueError: If no image was seen.
        """
        own, self._found = self._found, {}
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return self._score(own)
        gathered: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(gathered, own)
        result: list[Any] = [None]
        if distributed.get_rank() == 0:
            seen = {number: found for part in reversed(gathered) for number, found in part.items()}
            result = [self._score(seen)]
        distributed.broadcast_object_list(result)
        return result[0]

    def _score(self, found: Mapping[int, np.ndarray]) -> CocoResult:
        if not found:
            raise ValueError("no image was evaluated")
        images = sorted(found)
        truth = [annotation for number in images for annotation in self.annotations[number]]
        detected = [row for number in images for row in _scored_detections(number, found[number], self.category_ids)]
        parts = [self._dataset(images, annotations) for annotations in (truth, detected)]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = _evaluate_faster(*parts) if self.backend == "faster" else _evaluate_pycocotools(*parts)
        precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class) of all sizes, 100 detections
        # Without objects of a class all its entries are -1, and only then.
        values = precision.mean((0, 1)).tolist()
        count = Counter(category["name"] for category in self.categories)
        names = {
            number: f"{name} ({number})" if count[name] > 1 else name
            for number, name in ((category["id"], category["name"]) for category in self.categories)
        }
        per_class = {names[number]: value for number, value in zip(sorted(names), values, strict=True)}
        return CocoResult(dict(zip(NAMES, map(float, evaluation.stats[:12]), strict=True)), per_class)

    def _dataset(self, images: Sequence[int], annotations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        # Annotations are numbered from 1: COCO's code takes the number 0 for "matched to nothing".
        numbered = [{**annotation, "id": number} for number, annotation in enumerate(annotations, 1)]
        return {"images": [{"id": n} for n in images], "categories": self.categories, "annotations": numbered}


def _scored_annotation(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """Return what scoring reads; the area of an object without one is that of its box."""
    width, height = annotation["bbox"][2:]
    return {
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "bbox": list(annotation["bbox"]),
        "area": annotation.get("area", width * height),
        "iscrowd": annotation.get("iscrowd", 0),
    }


def _scored_detections(image: int, rows: np.ndarray, category_ids: np.ndarray) -> list[dict[str, Any]]:
    """Return COCO results of rows (left, top, right, bottom, score, class)."""
    sizes = rows[:, 2:4] - rows[:, :2]
    boxes, areas = np.concatenate((rows[:, :2], sizes), 1).tolist(), sizes.prod(1).tolist()
    categories = category_ids[rows[:, 5].astype(np.int64)].tolist()
    return [
        {"image_id": image, "category_id": category, "bbox": box, "area": area, "score": score, "iscrowd": 0}
        for category, box, area, score in zip(categories, boxes, areas, rows[:, 4].tolist(), strict=True)
    ]


def _evaluate_faster(truth: dict[str, Any], detected: dict[str, Any]) -> Any:
    from faster_coco_eval import COCO, COCOeval_faster

    return _run(COCOeval_faster(COCO(truth), COCO(detected), "bbox"))


def _evaluate_pycocotools(truth: dict[str, Any], detected: dict[str, Any]) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    parts = []
    for dataset in (truth, detected):
        part = COCO()
        part.dataset = dataset
        part.createIndex()
        parts.append(part)
    return _run(COCOeval(*parts, "bbox"))


def _run(evaluation: Any) -> Any:
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation
