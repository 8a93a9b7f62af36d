"""COCO's 12 numbers: known ones by both backends, and over processes, duplicates, few batches and nothing."""

import json
import multiprocessing
from pathlib import Path

import pytest
import torch

from lit_models.detection.evaluation import NAMES, CocoScores
from lit_models.detection.postprocess import Detections

FIXTURE = Path(__file__).parents[3] / "data" / "coco_eval_fixture"
BACKENDS = ("faster", "pycocotools")
# Four images of COCO's example, numbers 42, 73, 74 and 133 (cocodataset/cocoapi, CC BY 4.0), with their known scores:
# rows of label, score and (left, top, right, bottom).
FOUND = {
    42: [(4, 0.236, 258.15, 41.29, 606.41, 285.07)],
    73: [(3, 0.318, 61.00, 22.75, 565.00, 632.42), (2, 0.726, 12.66, 3.32, 281.26, 275.23)],
    74: [
        (4, 0.546, 87.87, 276.25, 384.29, 379.43),
        (1, 0.300, 0.00, 3.66, 142.15, 316.06),
        (0, 0.407, 296.55, 93.96, 314.97, 152.79),
        (0, 0.611, 328.94, 97.05, 342.49, 122.98),
        (0, 0.335, 356.62, 95.47, 372.33, 147.55),
        (0, 0.805, 464.08, 105.09, 495.74, 146.99),
        (0, 0.953, 276.11, 103.84, 291.44, 150.72),
    ],
    133: [(5, 0.699, 0.00, 2.87, 601.00, 421.52)],
}
# Label and (left, top, right, bottom).
OBJECTS = {
    42: [(4, 214.15, 41.29, 562.41, 285.07)],
    73: [(2, 13.00, 22.75, 548.98, 632.42), (2, 1.66, 3.32, 270.26, 275.23)],
    74: [
        (4, 61.87, 276.25, 358.29, 379.43),
        (1, 2.75, 3.66, 162.15, 316.06),
        (0, 295.55, 93.96, 313.97, 152.79),
        (0, 326.94, 97.05, 340.49, 122.98),
        (0, 356.62, 95.47, 372.33, 147.55),
        (0, 462.08, 105.09, 493.74, 146.99),
        (0, 277.11, 103.84, 292.44, 150.72),
    ],
    133: [(5, 13.99, 2.87, 640.00, 421.52)],
}
SCORES = (0.706, 0.901, 0.846, 0.689, 0.800, 0.701, 0.592, 0.716, 0.716, 0.767, 0.800, 0.700)
PER_CLASS = (0.725, 0.800, 0.454, -1.0, 0.650, 0.900)
CATEGORY_IDS = [11, 12, 15, 17, 18, 90]  # of class numbers 0 to 5, with gaps as in COCO


def ground_truth():
    annotations = [
        {
            "id": 1000 + 10 * image + row,
            "image_id": image,
            "category_id": CATEGORY_IDS[label],
            "bbox": [left, top, right - left, bottom - top],
            "area": (right - left) * (bottom - top),
            "iscrowd": 0,
        }
        for image, objects in OBJECTS.items()
        for row, (label, left, top, right, bottom) in enumerate(objects)
    ]
    categories = [{"id": number, "name": f"class {label}"} for label, number in enumerate(CATEGORY_IDS)]
    images = [{"id": image, "width": 640, "height": 640} for image in OBJECTS]
    return {"images": images, "annotations": annotations, "categories": categories}


def as_detections(rows):
    rows = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    return Detections(rows[:, 1], rows[:, 0].long(), rows[:, 2:])


def update(scores, images):
    scores.update(images, [as_detections(FOUND[image]) for image in images])


@pytest.mark.parametrize("backend", BACKENDS)
def test_known_scores_of_four_images(backend, capfd):
    scores = CocoScores(ground_truth(), CATEGORY_IDS, backend)
    update(scores, [42, 73])
    update(scores, [74, 133])
    result = scores.compute()
    assert tuple(result.summary) == NAMES
    assert [round(value, 3) for value in result.summary.values()] == list(SCORES)
    assert {name: round(value, 3) for name, value in result.per_class.items()} == {
        f"class {label}": value for label, value in enumerate(PER_CLASS)
    }
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_numbers_of_the_hundred_images(backend):
    if not FIXTURE.exists():
        pytest.skip(f"{FIXTURE} is not there")
    truth = json.loads((FIXTURE / "instances_val2014_100.json").read_text())
    rows = {image["id"]: [] for image in truth["images"]}
    category_ids = sorted(category["id"] for category in truth["categories"])
    for found in json.loads((FIXTURE / "instances_val2014_fakebbox100_results.json").read_text()):
        left, top, width, height = found["bbox"]
        label = category_ids.index(found["category_id"])
        rows[found["image_id"]].append((label, found["score"], left, top, left + width, top + height))
    scores = CocoScores(truth, category_ids, backend)
    # Of all 100 images, one has no detections (notes, 6).
    scores.update(list(rows), [as_detections(of_image) for of_image in rows.values()])
    expected = (
        *(0.5045806987249628, 0.6969727247299577, 0.5729816669904824),
        *(0.5856257209410443, 0.5193996948036719, 0.5013978986347466),
        *(0.3868127796457805, 0.5936795762842003, 0.595352982877607),
        *(0.6398109626113442, 0.5664205978994309, 0.5642905982905982),
    )
    assert list(scores.compute().summary.values()) == pytest.approx(expected, abs=1e-12, rel=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_counts_once_and_only_what_was_seen_is_scored(backend):
    scores = CocoScores(ground_truth(), CATEGORY_IDS, backend)
    update(scores, [74])
    expected = scores.compute()
    assert expected.per_class["class 5"] == -1.0  # its only object is in an image that was not seen
    update(scores, [74, 74])
    update(scores, [74])
    assert scores.compute() == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_detections_score_zero(backend):
    scores = CocoScores(ground_truth(), CATEGORY_IDS, backend)
    scores.update(list(OBJECTS), [as_detections([])] * 4)
    result = scores.compute()
    assert set(result.summary.values()) == {0.0}
    assert set(result.per_class.values()) == {0.0, -1.0}


@pytest.mark.parametrize("backend", BACKENDS)
def test_crowds_are_neither_right_nor_wrong_and_missing_areas_are_the_boxes(backend):
    truth = ground_truth()
    update(plain := CocoScores(truth, CATEGORY_IDS, backend), list(OBJECTS))
    expected = plain.compute()
    for annotation in truth["annotations"]:
        del annotation["area"]
    crowd = {"id": 7, "image_id": 42, "category_id": 11, "bbox": [0, 300, 200, 200], "area": 40000, "iscrowd": 1}
    truth["annotations"].append(crowd)
    update(scores := CocoScores(truth, CATEGORY_IDS, backend), [73, 74, 133])
    inside = as_detections([(0, 0.99, 10.0, 310.0, 60.0, 360.0), *FOUND[42]])
    scores.update([42], [inside])
    assert scores.compute() == expected
    assert crowd["iscrowd"] == 1 and "ignore" not in crowd  # the datamodule's dictionary is as it was


def test_categories_of_one_name_are_told_apart():
    truth = ground_truth()
    for place in (0, 2):
        truth["categories"][place]["name"] = "cat"
    update(scores := CocoScores(truth, CATEGORY_IDS), list(OBJECTS))
    names = ("cat (11)", "class 1", "cat (15)", "class 3", "class 4", "class 5")
    per_class = scores.compute().per_class
    assert {name: round(value, 3) for name, value in per_class.items()} == dict(zip(names, PER_CLASS, strict=True))


def test_backends_agree_on_random_detections():
    generator = torch.Generator().manual_seed(0)
    truth = ground_truth()
    random = {
        image: torch.cat(
            (
                torch.randint(6, (60, 1), generator=generator).double(),
                torch.randint(1, 20, (60, 1), generator=generator).double() / 20,  # ties
                *(600 * torch.rand(60, 4, generator=generator, dtype=torch.float64))
                .sort(1)
                .values.split((1, 1, 1, 1), 1),
            ),
            1,
        )
        for image in OBJECTS
    }
    results = []
    for backend in BACKENDS:
        scores = CocoScores(truth, CATEGORY_IDS, backend)
        scores.update(list(random), [as_detections(rows.tolist()) for rows in random.values()])
        results.append(scores.compute())
    for ours, theirs in zip(*results, strict=True):
        assert list(ours.values()) == pytest.approx(list(theirs.values()), abs=1e-12, rel=0)


def test_mistakes_are_named():
    scores = CocoScores(ground_truth(), CATEGORY_IDS)
    with pytest.raises(ValueError, match="image id 5 is not among the 4 of the ground truth"):
        scores.update([42, 5], [as_detections([])] * 2)
    with pytest.raises(ValueError, match="no image was evaluated"):
        scores.compute()


def in_a_process(rank, address, queue):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    scores = CocoScores(ground_truth(), CATEGORY_IDS)
    update(scores, ([42, 74], [73, 133, 42])[rank])  # a padding sampler repeats the first image
    queue.put((rank, scores.compute()))
    torch.distributed.destroy_process_group()


def test_processes_gather_once_and_get_the_same_scores(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    processes = [
        context.Process(target=in_a_process, args=(rank, f"file://{tmp_path}/store", queue)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    results = dict(queue.get() for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    update(alone := CocoScores(ground_truth(), CATEGORY_IDS), list(OBJECTS))
    assert results[0] == results[1] == alone.compute()
