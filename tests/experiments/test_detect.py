"""``detect``: COCO's results as an independent computation gives them, ids by the rule, whatever cannot be read."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import tiny_classifier
from tiny_classifier import write_image
from tiny_detector import CATEGORY_IDS, MEAN, NAMES, STD, build, write_checkpoint

from datamodules.image.decode import EncodedImage
from datamodules.image.detection_reader import transform_exactly
from experiments import classify
from experiments.detect import image_ids, main
from experiments.detector import ObjectDetector
from lit_models.detection.conditional import ConditionalDETR
from lit_models.pretrained import detector_to_official


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run's directory with its checkpoint, and three images of different shapes."""
    path = tmp_path_factory.mktemp("run")
    write_checkpoint(path / "checkpoints" / "best.ckpt")
    for number, size in ((139, (120, 80)), (285, (70, 100)), (632, (200, 60))):
        write_image(path / "images" / f"{number:012d}.png", number, size)
    return path


@pytest.fixture
def detect(run_dir, capsys, tmp_path):
    """Run the command; returns exit code, output, standard error and what the JSON files hold."""

    def call(*arguments, model=run_dir, output=tmp_path / "out"):
        words = ["--checkpoint", model, "--device", "cpu", "--output", output, *arguments]
        code = main(list(map(str, words)))
        captured = capsys.readouterr()
        found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in Path(output).glob("*.json")}
        return code, captured.out, captured.err, found

    return call


def images_of(run_dir):
    return sorted((run_dir / "images").iterdir())


def expected(path, network, *, classification="softmax"):
    """Return (category, box, score) of each query, with arrays and Pillow alone around the network."""
    image = Image.open(path)
    scale = 64 / min(image.size)
    if max(image.size) * scale > 96:
        scale = round(96 * min(image.size) / max(image.size)) / min(image.size)
    resized = image.resize(
        (int(image.width * scale + 1e-9), int(image.height * scale + 1e-9)), Image.Resampling.BILINEAR
    )
    pixels = ((np.asarray(resized) / 255.0 - MEAN) / STD).astype(np.float32)
    with torch.no_grad():
        logits, boxes = network(
            torch.from_numpy(pixels).permute(2, 0, 1)[None], [(resized.height, resized.width)]
        ).final
    # Row 9: by the size of the file, not of what the network sees; without the column of no object.
    x, y, w, h = (boxes[0].double().numpy() * np.array([image.width, image.height] * 2)).T
    corners = np.stack([x - w / 2, y - h / 2, w, h], axis=1)
    if classification == "softmax":
        probabilities = np.exp(logits[0].double().numpy())
        probabilities /= probabilities.sum(1, keepdims=True)
        best = probabilities[:, :-1].argmax(1)
        rows = [(CATEGORY_IDS[k], corners[q], probabilities[q, k]) for q, k in enumerate(best)]
    else:
        probabilities = 1 / (1 + np.exp(-logits[0].double().numpy()))
        rows = [(CATEGORY_IDS[k], corners[q], probabilities[q, k]) for q in range(9) for k in range(4)]
    return sorted(rows, key=lambda row: -row[2])


def assert_results(results, rows):
    assert len(results) == len(rows)
    for result, (category, box, score) in zip(results, rows, strict=True):
        assert result["category_id"] == category and result["score"] == pytest.approx(score, abs=2e-6)
        assert result["bbox"] == pytest.approx(box, abs=2e-3)


def test_results_are_those_of_an_independent_computation(detect, run_dir):
    """Rows 9 and 10: scaled by the file's size, nothing left out, resized as DETR resizes."""
    code, _, error, found = detect(run_dir / "images", "--no-pictures")
    assert code == 0 and error == ""
    for path in images_of(run_dir):
        results = [row for row in found["detections"] if row["image_id"] == int(path.stem)]
        assert_results(results, expected(path, build()))
    assert [row["id"] for row in found["images"]] == [139, 285, 632]
    assert (found["images"][2]["width"], found["images"][2]["height"]) == (200, 60)
    assert found["categories"] == [{"id": n, "name": name} for n, name in zip(CATEGORY_IDS, NAMES, strict=True)]


def test_the_preparation_is_that_of_the_data(run_dir):
    """The pixels are those that the datamodule makes, the padding zeros after normalisation."""
    detector = ObjectDetector.load(run_dir / "checkpoints" / "best.ckpt", "cpu")
    photos = [detector.read(path) for path in images_of(run_dir)]
    for photo, path in zip(photos, images_of(run_dir), strict=True):
        image = EncodedImage(path, "x")
        originals = np.array([[image.height, image.width]])
        pixels = transform_exactly(image, detector.geometry.regions(originals, np.zeros(1, dtype=int), 0))
        assert torch.equal(photo.pixels, pixels.permute(2, 0, 1))
    batch = detector.batch(photos)
    assert batch.shape == (3, 3, 91, 96) and [photo.size for photo in photos] == [(64, 96), (91, 64), (29, 96)]
    assert not batch[0, :, 64:].any() and not batch[1, :, :, 64:].any() and not batch[2, :, 29:].any()
    pixel = (photos[1].pixels[:, 90, 63] / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(batch[1, :, 90, 63], pixel)


def test_batches_change_nothing_but_the_padding(detect, run_dir):
    alone = detect(run_dir / "images", "--no-pictures")[3]
    together = detect(run_dir / "images", "--no-pictures", "--batch-size", 3)[3]
    assert together["images"] == alone["images"]
    assert len(together["detections"]) == len(alone["detections"]) == 27


def test_a_sigmoid_has_pairs_of_query_and_class(detect, run_dir, tmp_path):
    network = build(ConditionalDETR)
    model = write_checkpoint(tmp_path / "conditional.ckpt", network)
    path = images_of(run_dir)[0]
    code, _, _, found = detect(path, "--no-pictures", model=model)
    assert code == 0
    assert_results(found["detections"], expected(path, network, classification="focal"))


def test_threshold_pictures_and_table(detect, run_dir, tmp_path):
    scores = [row["score"] for row in detect(run_dir / "images", "--no-pictures")[3]["detections"]]
    threshold = sorted(scores)[-5]
    code, output, _, found = detect(
        run_dir / "images", "--threshold", threshold - 1e-5, output=tmp_path / "new" / "deep"
    )
    assert code == 0 and len(found["detections"]) == 5
    assert sum(line.startswith("  ") for line in output.splitlines()) == 5
    best = max(found["detections"], key=lambda row: row["score"])
    assert f"{best['score']:.1%}  {NAMES[CATEGORY_IDS.index(best['category_id'])]}" in output
    for path in images_of(run_dir):
        with Image.open(tmp_path / "new" / "deep" / f"{path.stem}.jpg") as picture, Image.open(path) as image:
            assert max(picture.size) == 1200
            assert picture.width / picture.height == pytest.approx(image.width / image.height, rel=0.01)


def test_numbers_of_images():
    names = ["a/000000039769.jpg", "b/COCO_val2014_000000000042.jpg", "7.png"]
    assert image_ids(names) == ([39769, 42, 7], None)
    ids, notice = image_ids([*names, "cat 3.jpg"])
    assert ids == [1, 2, 3, 4] and "the name cat 3.jpg is no number" in notice
    assert image_ids(["a/1.jpg", "b/01.jpg"])[0] == [1, 2] and "same number" in image_ids(["a/1.jpg", "b/01.jpg"])[1]


def test_names_of_pictures_and_running_numbers(detect, run_dir, tmp_path):
    for place in ("a", "b"):
        write_image(tmp_path / place / "cat.png", 3, (40, 40))
    code, output, _, found = detect(tmp_path / "a", tmp_path / "b")
    assert code == 0 and "note: images are numbered from 1, see images.json" in output
    assert [(row["id"], row["file_name"]) for row in found["images"]] == [
        (1, str(tmp_path / "a" / "cat.png")), (2, str(tmp_path / "b" / "cat.png")),
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out").glob("*.jpg")) == ["cat.jpg", "cat_2.jpg"]


def test_what_cannot_be_read_is_named_and_the_others_go_on(detect, run_dir, tmp_path):
    good = images_of(run_dir)[0]
    half, missing, empty = (tmp_path / name for name in ("5.png", "6.jpg", "empty"))
    half.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    empty.mkdir()
    code, _, error, found = detect(half, good, missing, empty, "--no-pictures", "--batch-size", 2)
    assert code == 2 and [row["id"] for row in found["images"]] == [139]
    *lines, last = error.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
    assert last == "error: 3 could not be read (named above), 1 searched"


def test_public_weights(detect, run_dir, tmp_path):
    """The official layout: its classes and sizes come along, and what was decided is said."""
    network = build()
    torch.save({"model": detector_to_official(network)}, tmp_path / "detr-dc5.pth")
    path = images_of(run_dir)[0]
    options = ("--num-heads", 4, "--no-dilation", "--no-pictures", "--image-size", 64, "--max-size", 96)
    code, _, error, found = detect(path, *options, model=tmp_path / "detr-dc5.pth")
    assert code == 0 and "official DETR" in error and "DC5" not in error
    assert found["categories"] == [{"id": number, "name": f"class {number}"} for number in range(4)]
    detector = ObjectDetector.load(tmp_path / "detr-dc5.pth", "cpu", {"num_heads": 4, "dilation": False})
    assert (detector.geometry.size, detector.geometry.max_size) == (800, 1333)
    assert detector.mean == (0.485, 0.456, 0.406)
    code, _, error, _ = detect(path, "--num-heads", 4)
    assert code == 2 and "--num-heads: for public weights alone" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.png", "--threshold", 1.5], "--threshold 1.5: it must be between 0 and 1"),
        (["x.png", "--threshold", "nan"], "--threshold nan: it must be between 0 and 1"),
        (["x.png", "--batch-size", 0], "--batch-size 0: it must be at least 1"),
        (["x.png", "--image-size", 0], "--image-size 0: it must be at least 1"),
        (["x.png", "--image-size", 100, "--max-size", 50], "--max-size 50: it must be at least the shorter side, 100"),
        (["x.png", "--treshold", 0.5], 'did you mean "--threshold"?'),
        ([], "the following arguments are required: image"),
    ],
)
def test_mistakes_are_one_line(detect, arguments, message):
    code, output, error, _ = detect(*arguments)
    assert code == 2 and output == "" and error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_checkpoints_of_other_kinds(detect, run_dir, tmp_path, capsys):
    image = images_of(run_dir)[0]
    model = tiny_classifier.write_checkpoint(tmp_path / "vit.ckpt", tiny_classifier.build())
    code, _, error, _ = detect(image, model=model)
    assert code == 2 and error == (
        f'error: "{model}" is no detector, its task is classification; '
        f"use: python -m experiments classify --checkpoint {model}\n"
    )
    assert classify.main(["--checkpoint", str(run_dir), "--device", "cpu", str(image)]) == 2
    assert "python -m experiments detect --checkpoint" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    code, _, error, _ = detect(image, output=tmp_path / "file")
    assert code == 2 and "is a file, not a directory" in error


def test_it_is_light(run_dir, tmp_path):
    """The JSON needs nothing of what training and drawing need."""
    unwanted = ["lightning", "wandb", "matplotlib", "timm", "transformers", "pycocotools", "faster_coco_eval"]
    words = ["--checkpoint", run_dir, "--device", "cpu", "--no-pictures", "--output", tmp_path, run_dir / "images"]
    code = "import sys; from experiments.detect import main; assert main(sys.argv[1:]) == 0; "
    code += f"print([name for name in {unwanted!r} if name in sys.modules])"
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
