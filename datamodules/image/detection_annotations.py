"""Annotation files in COCO's format: read, checked as a whole, and kept as arrays."""

import json
import os
import reprlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from numpy.typing import NDArray

from datamodules.loading import Indices

Ids = Literal["contiguous", "coco"]
Degenerate = Literal["error", "drop"]
Floats = NDArray[np.float64]
_NAMED = 5  # things that a message names
_TOLERANCE = 2.0  # pixels by which an honest box may leave its image: tools round
_FEW = 0.05  # share of boxes that may leave their image without a word: people draw beyond the border
_ENOUGH = 10  # boxes that are not of one kind by chance


class Categories(NamedTuple):
    """The classes of an annotation file.

    Attributes:
        names: Name of each class, by class number.
        ids: Its number in the file; where ``ids=coco`` leaves a gap, the class number itself.
    """

    names: list[str]
    ids: list[int]


class DetectionImages:
    """The images of a split and the objects in them, as an annotation file in COCO's format lists them.

    Everything is checked before anything is read from an image. What workers need is in arrays, which processes share.

    Args:
        annotations: The json file.
        directory: Where ``file_name`` of its images starts.
        ids: ``contiguous`` numbers the classes from 0 in the order of the file's category ids. ``coco`` keeps the
            category ids as class numbers, as weights of the official DETR need them: COCO's 80 classes are then 91
            numbers, some without a name.
        degenerate: What boxes without an area inside their image, or that are no numbers, do. ``error`` refuses the
            file; ``drop`` leaves them out with a warning.
        labelled: Whether the file must list annotations. Without, a file that has no such list is one of images
            without objects, as COCO's of its test images are.

    Raises:
        FileNotFoundError: If the file, the directory or images are missing.
        ValueError: If the file is not in COCO's format, or contradicts itself.

    Attributes:
        name: What messages call the split: the path of the annotation file.
        labelled: Whether the file lists annotations.
        image_ids: The images' numbers in the file, int64, in its order.
        sizes: (height, width) of each image, of shape ``(images, 2)``, int64.
        boxes: Left, top, right and bottom of the objects in pixels, inside their image, of shape ``(objects, 4)``,
            float64, in the order of the images; crowds are left out.
        labels: Their class numbers, int64.
        starts: The first object of each image, and the number of objects at the end.
        categories: The classes.
    """

    def __init__(
        self,
        annotations: Path,
        directory: Path,
        *,
        ids: Ids = "contiguous",
        degenerate: Degenerate = "error",
        labelled: bool = True,
    ) -> None:
        self.name = str(annotations)
        content = _load(annotations)
        self.labelled = labelled or "annotations" in content
        if not self.labelled:
            content["annotations"] = []
        rows = {key: _rows(content, key, self.name) for key in ("images", "annotations", "categories")}
        for key in ("images", "categories"):
            if not rows[key]:
                raise ValueError(f"{self.name} lists no {key}")
        self._directory = directory
        self._read_images(rows["images"])
        self.categories, numbers = _categories(rows["categories"], ids, self.name)
        self._read_annotations(rows["annotations"], rows["categories"])
        self._refuse_missing_files()
        self._keep_objects(numbers, degenerate)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_ids)

    def path(self, index: int) -> str:
        """Return an image's path."""
        return os.path.join(self._directory, str(self._files[index]))

    def read(self, index: int) -> bytes:
        """Return the content of an image's file."""
        return Path(self.path(index)).read_bytes()

    def index_of(self, image_id: int) -> int:
        """Return an image's place in the file.

        Raises:
            ValueError: If the file has no such image.
        """
        found = np.flatnonzero(self.image_ids == image_id)
        if not len(found):
            raise ValueError(f"{self.name} has no image {image_id}")
        return int(found[0])

    def objects(self, indices: Indices) -> tuple[Indices, Indices]:
        """Return the numbers of all objects of some images, and for each the place of its image in ``indices``."""
        counts = self.starts[indices + 1] - self.starts[indices]
        rows = np.repeat(np.arange(len(indices)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.starts[indices][rows] + within, rows

    def ground_truth(self) -> dict[str, Any]:
        """Return the file's content as evaluation needs it, crowds included, in COCO's format.

        Boxes are as the file has them, in pixels; those that are no numbers or of negative size are left out, and so
        are outlines. A missing area is that of the box, a missing ``iscrowd`` is 0.
        """
        return {
            "info": {},
            "images": [
                {"id": image_id, "file_name": str(file), "height": height, "width": width}
                for image_id, file, (height, width) in zip(
                    self.image_ids.tolist(), self._files, self.sizes.tolist(), strict=True
                )
            ],
            "annotations": [
                {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}
                for number, image, category, box, area, crowd, finite in zip(
                    self._ids.tolist(),
                    self.image_ids[self._image_of].tolist(),
                    self._category_ids.tolist(),
                    self._bboxes.tolist(),
                    self._areas.tolist(),
                    self._crowd.astype(int).tolist(),
                    _is_box(self._bboxes).tolist(),
                    strict=True,
                )
                if finite
            ],
            "categories": self._category_rows,
        }

    def _read_images(self, rows: list[dict[str, Any]]) -> None:
        self.image_ids = _integers(rows, "id", "image", self.name)
        _refuse_twins(self.image_ids, "image", self.name)
        sides = [_integers(rows, side, "image", self.name) for side in ("height", "width")]
        self.sizes = np.stack(sides, axis=1)
        if (wrong := np.flatnonzero((self.sizes < 1).any(axis=1))).size:
            height, width = self.sizes[wrong[0]]
            raise ValueError(f"{self.name}: image {self.image_ids[wrong[0]]} is {width} x {height} pixels")
        for row in rows:
            if not isinstance(row.get("file_name"), str) or not row["file_name"]:
                raise ValueError(f"{self.name}: image {row['id']} has no file_name")
        self._files = np.array([row["file_name"] for row in rows])  # an array: lists are copied into every worker

    def _read_annotations(self, rows: list[dict[str, Any]], categories: list[dict[str, Any]]) -> None:
        self._ids = _integers(rows, "id", "annotation", self.name)
        _refuse_twins(self._ids, "annotation", self.name)
        self._category_ids = _integers(rows, "category_id", "annotation", self.name)
        self._category_rows = [{"id": row["id"], "name": row["name"]} for row in categories]
        image_ids = _integers(rows, "image_id", "annotation", self.name)
        for what, given, known in (
            ("image", image_ids, self.image_ids),
            ("category", self._category_ids, np.array(self.categories.ids)),
        ):
            if (stray := ~np.isin(given, known)).any():
                raise ValueError(
                    f"{self.name}: {stray.sum():,} of {len(rows):,} annotations point to no {what} of the file: "
                    f"annotation {self._ids[stray][0]} to {what} {given[stray][0]}"
                )
        order = np.argsort(self.image_ids)
        self._image_of = order[np.searchsorted(self.image_ids, image_ids, sorter=order)]
        self._read_fields(rows)

    def _read_fields(self, rows: list[dict[str, Any]]) -> None:
        for key, fits, needed in (
            ("bbox", _is_four_numbers, "four numbers are needed: left, top, width, height"),
            ("area", lambda area: area is None or _is_number(area), "a number is needed"),
            ("iscrowd", lambda crowd: crowd in (None, 0, 1), "0 or 1 is needed"),  # 0 and 1 equal false and true
        ):
            _refuse_field(rows, key, fits, needed, self.name)
        self._bboxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
        self._crowd = np.array([bool(row.get("iscrowd")) for row in rows], dtype=bool)
        areas = [float("nan") if row.get("area") is None else row["area"] for row in rows]
        self._areas = np.array(areas, dtype=np.float64)
        self._areas = np.where(np.isnan(self._areas), self._bboxes[:, 2] * self._bboxes[:, 3], self._areas)

    def _refuse_missing_files(self) -> None:
        if not self._directory.is_dir():
            raise FileNotFoundError(f"{self._directory}, the directory of the images of {self.name}, is not there")
        there = set(os.listdir(self._directory))
        missing = [
            file
            for file in self._files.tolist()
            if file not in there and (os.path.basename(file) == file or not (self._directory / file).is_file())
        ]
        if missing:
            raise FileNotFoundError(
                f"{len(missing):,} of {len(self):,} images of {self.name} are not in {self._directory}: "
                f"{_some(missing)}"
            )

    def _keep_objects(self, numbers: dict[int, int], degenerate: Degenerate) -> None:
        """Takes the objects to train on out of the annotations."""
        left, top, width, height = self._bboxes.T
        corners = np.stack([left, top, left + width, top + height], axis=1)
        limits = self.sizes[self._image_of][:, [1, 0, 1, 0]].astype(np.float64)
        self._refuse_other_formats(corners, limits)
        inside = np.clip(corners, 0, limits)
        good = _is_box(self._bboxes) & (inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])
        if (bad := np.flatnonzero(~good & ~self._crowd)).size:
            named = [
                f"annotation {self._ids[row]} of {self._files[self._image_of[row]]} has bbox "
                f"{self._bboxes[row].tolist()}"
                for row in bad
            ]
            message = (
                f"{self.name}: {len(bad):,} of {len(self._ids):,} boxes (left, top, width, height) have no area inside "
                f"their image: {_some(named, '; ')}"
            )
            if degenerate == "error":
                raise ValueError(f"{message}. Correct them, or leave them out with degenerate=drop")
            rank_zero_warn(f"{message}. They are left out")
        kept = np.flatnonzero(good & ~self._crowd)
        kept = kept[np.argsort(self._image_of[kept], kind="stable")]
        self.boxes = inside[kept]
        self.labels = np.array([numbers[category] for category in self._category_ids[kept].tolist()], dtype=np.int64)
        self.starts = np.searchsorted(self._image_of[kept], np.arange(len(self) + 1))

    def _refuse_other_formats(self, corners: Floats, limits: Floats) -> None:
        """Refuses boxes that are plainly not (left, top, width, height) in pixels, and says what they look like.

        It warns where that is not plain, but many boxes leave their image.
        """
        if not len(corners):
            return
        leaves = ((corners < -_TOLERANCE) | (corners > limits + _TOLERANCE)).any(axis=1) & _is_box(self._bboxes)
        share = leaves.mean()
        given = self._bboxes
        corners_given = bool(
            ((given[:, 2:] > given[:, :2]) & (given <= limits + _TOLERANCE).reshape(-1, 2, 2).all(axis=1)).all()
        )
        plain = share > 0.5 or (share > 0 and corners_given and len(given) >= _ENOUGH)
        if plain or share > _FEW:
            guess = (
                "they look like (left, top, right, bottom)"
                if corners_given
                else "they may be of images of another size"
            )
            row = int(np.flatnonzero(leaves)[0])
            image = self._image_of[row]
            message = (
                f"{self.name}: {leaves.sum():,} of {len(leaves):,} boxes leave their image when they are read as "
                f"(left, top, width, height) in pixels; {guess}. Annotation {self._ids[row]} has bbox "
                f"{given[row].tolist()} in {self._files[image]} of {self.sizes[image][1]} x {self.sizes[image][0]}"
            )
            if plain:
                raise ValueError(message)
            rank_zero_warn(f"{message}. What lies outside is cut off")
        if (given <= 1).all() and (limits > 1).all():
            raise ValueError(
                f"{self.name}: no number of any bbox is above 1: they look like shares of the image, but must be pixels"
            )


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"there is no annotation file {file}") from error
    except ValueError as error:
        raise ValueError(f"{file} is not json: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, not an object with images, annotations, categories")
    return content


def _rows(content: dict[str, Any], key: str, file: str) -> list[dict[str, Any]]:
    rows = content.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(
            f"{file} has no list of {key}; COCO's format is images, annotations and categories, and the file has "
            f"{', '.join(content) or 'nothing'}"
        )
    return rows


def _categories(rows: list[dict[str, Any]], ids: Ids, file: str) -> tuple[Categories, dict[int, int]]:
    """Returns the classes, and the class number of each category id."""
    numbers = _integers(rows, "id", "category", file)
    _refuse_twins(numbers, "category", file)
    names = {}
    for row in rows:
        if not isinstance(row.get("name"), str):
            raise ValueError(f"{file}: category {row['id']} has no name")
        names[row["id"]] = row["name"]
    known = sorted(names)
    if ids == "contiguous":
        return Categories([names[number] for number in known], known), {number: k for k, number in enumerate(known)}
    if known[0] < 0 or known[-1] > 10_000:
        raise ValueError(
            f"{file}: ids=coco makes category ids class numbers, but they go from {known[0]} to {known[-1]}; take "
            "ids=contiguous"
        )
    every = list(range(known[-1] + 1))
    return Categories([names.get(number, "N/A") for number in every], every), {number: number for number in known}


def _integers(rows: Sequence[dict[str, Any]], key: str, what: str, file: str) -> Indices:
    for place, row in enumerate(rows):
        if type(row.get(key)) is not int or not -(2**63) <= row[key] < 2**63:
            name = f"{what} {reprlib.repr(row['id'])}" if key != "id" and "id" in row else f"{what} at place {place}"
            given = f"{key}={reprlib.repr(row[key])}" if key in row else f"no {key}"
            raise ValueError(f"{file}: {name} has {given}; a whole number is needed")
    return np.array([row[key] for row in rows], dtype=np.int64)


def _refuse_field(
    rows: Sequence[dict[str, Any]], key: str, fits: Callable[[Any], bool], needed: str, file: str
) -> None:
    for row in rows:
        if not fits(row.get(key)):
            given = f"{key} {reprlib.repr(row[key])}" if key in row else f"no {key}"
            raise ValueError(f"{file}: annotation {row['id']} has {given}; {needed}")


def _is_four_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    """Says whether float64 can hold a value; true and false are no numbers."""
    return type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)


def _is_box(boxes: Floats) -> NDArray[np.bool_]:
    """Says which boxes (left, top, width, height) are numbers, and not of negative size."""
    return np.asarray(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] >= 0).all(axis=1))


def _refuse_twins(ids: Indices, what: str, file: str) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if (twins := values[counts > 1]).size:
        raise ValueError(
            f"{file}: {len(twins):,} {what} ids occur more than once: {_some([str(twin) for twin in twins])}"
        )


def _some(names: Sequence[str], between: str = ", ") -> str:
    more = f"{between}and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return between.join(names[:_NAMED]) + more
