import copy
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from datamodules.image.detection_annotations import DetectionImages

IMAGES = [
    {"id": 30, "file_name": "c.jpg", "width": 100, "height": 50},
    {"id": 10, "file_name": "a.jpg", "width": 80, "height": 60},
    {"id": 20, "file_name": "deep/b.jpg", "width": 64, "height": 64},
]
CONTENT = {
    "images": IMAGES,
    "annotations": [
        {"id": 1, "image_id": 10, "category_id": 7, "bbox": [10, 20, 30, 40], "area": 900.5, "iscrowd": 0},
        {"id": 2, "image_id": 30, "category_id": 3, "bbox": [90.5, -1, 12, 20], "area": 5.0, "iscrowd": 0},
        {"id": 3, "image_id": 10, "category_id": 3, "bbox": [0, 0, 80, 60], "area": 4000, "iscrowd": 1},
        {"id": 4, "image_id": 10, "category_id": 3, "bbox": [1, 2, 3, 4]},
    ],
    "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat", "supercategory": "pet"}],
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    for image in IMAGES:
        (tmp_path / image["file_name"]).write_bytes(b"")
    return tmp_path


def write(directory, content):
    (directory / "x.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return directory / "x.json"


def read(directory, content, **settings):
    return DetectionImages(write(directory, content), directory, **settings)


def changed(**changes):
    """The content with a field of a row replaced: ``annotations_0_bbox=[...]``; None removes it."""
    content = copy.deepcopy(CONTENT)
    for key, value in changes.items():
        table, row, field = key.split("_", 2)
        if value is None:
            del content[table][int(row)][field]
        else:
            content[table][int(row)][field] = value
    return content


def test_objects_come_in_the_order_of_the_images_without_crowds(directory):
    images = read(directory, CONTENT)
    assert images.image_ids.tolist() == [30, 10, 20] and len(images) == 3
    assert images.sizes.tolist() == [[50, 100], [60, 80], [64, 64]]
    # Annotation 2 is cut off at the image's border; image 20 is empty.
    assert images.boxes.tolist() == [[90.5, 0, 100, 19], [10, 20, 40, 60], [1, 2, 4, 6]]
    assert images.labels.tolist() == [0, 1, 0] and images.starts.tolist() == [0, 1, 3, 3]
    assert images.categories == (["cat", "dog"], [3, 7])
    objects, rows = images.objects(np.array([1, 2, 0, 1]))
    assert objects.tolist() == [1, 2, 0, 1, 2] and rows.tolist() == [0, 0, 2, 3, 3]
    assert images.path(2) == str(directory / "deep/b.jpg") and images.index_of(20) == 2
    with pytest.raises(ValueError, match="has no image 5"):
        images.index_of(5)


def test_cocos_own_ids_stay_class_numbers_if_wanted(directory):
    images = read(directory, CONTENT, ids="coco")
    assert images.categories.names == ["N/A", "N/A", "N/A", "cat", "N/A", "N/A", "N/A", "dog"]
    assert images.categories.ids == list(range(8)) and images.labels.tolist() == [3, 7, 3]
    with pytest.raises(ValueError, match="they go from -1 to 7; take ids=contiguous"):
        read(directory, changed(categories_1_id=-1, annotations_1_category_id=7) | {"annotations": []}, ids="coco")


def test_ground_truth_is_the_file_with_its_crowds(directory):
    truth = read(directory, CONTENT).ground_truth()
    assert truth["images"] == [{key: image[key] for key in sorted(image)} for image in IMAGES]
    assert truth["categories"] == [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    expected = copy.deepcopy(CONTENT["annotations"])
    expected[3] |= {"area": 12, "iscrowd": 0}
    assert truth["annotations"] == expected
    json.dumps(truth)


@pytest.mark.parametrize("box", [[10, 10, 0, 5], [10, 10, -4, 5], [float("nan"), 1, 2, 3], [1, 1, float("inf"), 3]])
def test_degenerate_boxes_are_named_and_dropped_only_if_asked(directory, box):
    content = changed(annotations_0_bbox=box)
    named = r"1 of 4 boxes .* have no area inside their image: annotation 1 of a\.jpg has bbox "
    with pytest.raises(ValueError, match=named + r".*leave them out with degenerate=drop"):
        read(directory, content)
    with pytest.warns(UserWarning, match=named + ".*They are left out"):
        images = read(directory, content, degenerate="drop")
    assert images.boxes.tolist() == [[90.5, 0, 100, 19], [1, 2, 4, 6]] and images.starts.tolist() == [0, 1, 2, 2]
    kept = [row["id"] for row in images.ground_truth()["annotations"]]
    assert kept == ([1, 2, 3, 4] if box[2] == 0 else [2, 3, 4])


def test_a_crowd_may_be_degenerate(directory):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read(directory, changed(annotations_2_bbox=[5, 5, 0, 0])).labels) == 3


def test_corners_given_for_sizes_are_guessed(directory):
    boxes = [[20, 10, 70, 50], [60, 30, 80, 50], [5, 5, 79, 59], [40, 20, 60, 50]]
    content = CONTENT | {
        "annotations": [{"id": n, "image_id": 10, "category_id": 3, "bbox": box} for n, box in enumerate(boxes)]
    }
    with pytest.raises(
        ValueError,
        match=r"x\.json: 4 of 4 boxes leave their image when .*look like \(left, top, right, "
        r"bottom\). Annotation 0 has bbox .* in a\.jpg of 80 x 60",
    ):
        read(directory, content)
    content["annotations"][0]["bbox"] = [200, 100, 300, 300]
    with pytest.raises(ValueError, match="they may be of images of another size"):
        read(directory, content)
    for row, box in zip(content["annotations"], boxes, strict=True):
        row["bbox"] = [side / 100 for side in box]
    with pytest.raises(ValueError, match="look like shares of the image, but must be pixels"):
        read(directory, content)


FAULTS = {
    "not json": ("{", r"x\.json is not json: .*line 1 column 2"),
    "a list": ("[]", "holds a list, not an object with images"),
    "no images": ({**CONTENT, "images": []}, "lists no images"),
    "images missing": ({key: CONTENT[key] for key in ("annotations", "categories")}, "has no list of images"),
    "categories missing": ({key: CONTENT[key] for key in ("images", "annotations")}, "has no list of categories; COCO"),
    "no categories": ({**CONTENT, "categories": []}, "lists no categories"),
    "no annotations": ({key: CONTENT[key] for key in ("images", "categories")}, "has no list of annotations"),
    "stray image": (
        changed(annotations_1_image_id=99),
        "1 of 4 .*point to no image of the file: annotation 2 to image 99",
    ),
    "stray category": (
        changed(annotations_3_category_id=5),
        "point to no category of the file: annotation 4 to category 5",
    ),
    "twin images": (changed(images_1_id=30), "1 image ids occur more than once: 30"),
    "twin annotations": (changed(annotations_3_id=2), "1 annotation ids occur more than once: 2"),
    "twin categories": (changed(categories_1_id=7), "1 category ids occur more than once: 7"),
    "no bbox": (changed(annotations_0_bbox=None), "annotation 1 has no bbox; four numbers are needed"),
    "short bbox": (changed(annotations_0_bbox=[1, 2, 3]), r"annotation 1 has bbox \[1, 2, 3\]; four numbers"),
    "text id": (changed(annotations_0_image_id="10"), "annotation 1 has image_id='10'; a whole number is needed"),
    "no id": (changed(annotations_1_id=None), "annotation at place 1 has no id"),
    "no width": (changed(images_2_width=None), "image 20 has no width"),
    "flat": (changed(images_2_height=0), "image 20 is 64 x 0 pixels"),
    "no file": (changed(images_0_file_name=None), "image 30 has no file_name"),
    "nameless": (changed(categories_0_name=None), "category 7 has no name"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(directory, fault):
    content, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        read(directory, content)


def test_missing_files_are_counted_and_named(directory):
    (directory / "a.jpg").unlink()
    (directory / "deep" / "b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 3 images of .*x\.json are not in .*: a\.jpg, deep/b\.jpg$"):
        read(directory, CONTENT)
    file = write(directory, CONTENT)
    with pytest.raises(FileNotFoundError, match=re.escape(f"{directory / 'other'}, the directory of the images of")):
        DetectionImages(file, directory / "other")
    with pytest.raises(FileNotFoundError, match=r"there is no annotation file .*none\.json"):
        DetectionImages(directory / "none.json", directory)


def test_a_file_without_objects_is_allowed(directory):
    images = read(directory, {**CONTENT, "annotations": []})
    assert images.boxes.shape == (0, 4) and images.starts.tolist() == [0, 0, 0, 0]
    assert images.ground_truth()["annotations"] == []
