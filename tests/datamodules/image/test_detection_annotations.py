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
        {"id": 2, "image_id": 30, "category_id": 3, "bbox": [90.5, -1, 11, 20], "area": 5.0, "iscrowd": 0},
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


def many(boxes):
    """The content with these boxes, all in the image of 80 x 60."""
    rows = [{"id": n, "image_id": 10, "category_id": 3, "bbox": box} for n, box in enumerate(boxes, start=50)]
    return CONTENT | {"annotations": rows}


def test_corners_given_for_sizes_are_seen_if_only_some_leave(directory):
    # As (left, top, right, bottom) all ten are inside; as (left, top, width, height) one of them leaves.
    boxes = [[3 * n, 2 * n, 3 * n + 9, 2 * n + 9] for n in range(9)] + [[60, 30, 70, 40]]
    with pytest.raises(
        ValueError, match=r"1 of 10 boxes leave .*look like \(left, top, right, bottom\)\. Annotation 59 has bbox"
    ):
        read(directory, many(boxes))
    for others in (boxes[:8] + boxes[9:], [*boxes, [50, 40, 10, 10]]):  # too few to be sure; one that is no corners
        with pytest.warns(
            UserWarning, match=rf"1 of {len(others)} boxes leave .* Annotation \d+ has bbox .* is cut off"
        ):
            assert read(directory, many(others)).boxes.max() <= 80


def test_boxes_that_leave_by_rounding_or_rarely_are_left_alone(directory):
    inside = [[50, 40, 10, 10]] * 38
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(directory, many([*inside, [10, 10, 90, 10], [10, 10, 10, 90]]))  # 2 of 40
        read(directory, many([[-1.5, 0, 80, 61]] * 12))
    with pytest.warns(
        UserWarning, match=r"x\.json: 3 of 41 boxes .* of another size\. Annotation 88 has .* of 80 x 60"
    ):
        read(directory, many([*inside, [10, 10, 90, 10], [10, 10, 10, 90], [40, 10, 60, 10]]))


@pytest.mark.parametrize("file", ["coco_tiny/annotations/instances_*2017.json", "bccd/annotations/instances_*.json"])
def test_real_annotations_pass_without_a_word(file):
    data = Path(__file__).parents[3] / "data"
    for annotations in sorted(data.glob(file)) or pytest.skip(f"{data / file} is not there"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            images = annotations.parents[1] / annotations.stem.removeprefix("instances_")
            assert len(DetectionImages(annotations, images, degenerate="drop").labels) > 500


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
    "true bbox": (changed(annotations_0_bbox=[True, 2, True, 3]), r"annotation 1 has bbox \[True, 2, True, 3\]; four"),
    "huge bbox": (
        changed(annotations_0_bbox=[1, 2, 3, 10**400]),
        r"annotation 1 has bbox \[1, 2, 3, 10+\.\.\.0+\]; four",
    ),
    "text area": (changed(annotations_1_area="big"), r"x\.json: annotation 2 has area 'big'; a number is needed"),
    "list area": (changed(annotations_1_area=[1]), r"annotation 2 has area \[1\]; a number is needed"),
    "huge area": (changed(annotations_1_area=10**400), r"annotation 2 has area 10+\.\.\.0+; a number is needed"),
    "true area": (changed(annotations_1_area=True), "annotation 2 has area True; a number is needed"),
    "text crowd": (changed(annotations_2_iscrowd="0"), "annotation 3 has iscrowd '0'; 0 or 1 is needed"),
    "two crowds": (changed(annotations_2_iscrowd=2), "annotation 3 has iscrowd 2; 0 or 1 is needed"),
    "huge id": (changed(annotations_0_image_id=10**400), r"annotation 1 has image_id=10+\.\.\.0+; a whole number"),
    "endless number": (json.dumps(CONTENT)[:-1] + ', "info": ' + "1" * 5000 + "}", r"x\.json is not json: .*digit"),
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


def test_a_crowd_may_be_true_and_what_is_unknown_null(directory):
    content = changed(annotations_0_iscrowd=False, annotations_2_iscrowd=True)
    assert read(directory, content).ground_truth() == read(directory, CONTENT).ground_truth()
    content["annotations"][3] |= {"area": None, "iscrowd": None}
    assert read(directory, content).ground_truth() == read(directory, CONTENT).ground_truth()


def test_a_file_without_annotations_is_read_only_if_asked(directory):
    content = {key: CONTENT[key] for key in ("images", "categories")}
    images = read(directory, content, labelled=False)
    assert not images.labelled and len(images) == 3 and images.starts.tolist() == [0, 0, 0, 0]
    labelled = read(directory, CONTENT, labelled=False)
    assert labelled.labelled and len(labelled.labels) == 3
    with pytest.raises(ValueError, match="has no list of annotations"):
        read(directory, content | {"annotations": None}, labelled=False)


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
