"""``attend --image`` of a detector: the right weights at the right place, files, and one line for every mistake."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent))
import tiny_classifier
from tiny_classifier import write_image
from tiny_detector import NAMES, build, write_checkpoint

from experiments import attend, attend_detection
from experiments.attend_detection import MOST_OBJECTS, choose, look
from experiments.detector import ObjectDetector
from lit_models.detection.conditional import ConditionalDETR
from lit_models.detection.detr import AttentionMaps
from lit_models.detection.postprocess import Detections
from lit_models.pretrained import detector_to_huggingface


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with an image and a checkpoint of each kind."""
    path = tmp_path_factory.mktemp("attend")
    write_image(path / "photo.png", 3, (120, 80))
    write_checkpoint(path / "detr.ckpt")
    write_checkpoint(path / "conditional.ckpt", build(ConditionalDETR))
    tiny_classifier.write_checkpoint(path / "vit.ckpt", tiny_classifier.build())
    return path


@pytest.fixture
def run(place, capsys, tmp_path):
    def call(kind, *options, image="photo.png"):
        arguments = ["--checkpoint", place / f"{kind}.ckpt", "--device", "cpu", "--output", tmp_path / "it"]
        code = attend.main([*map(str, arguments), "--image", str(place / image), *map(str, options)])
        captured = capsys.readouterr()
        return code, [Path(file).name for file in captured.out.split("\n")[:-1]], captured.err

    return call


def names(*parts):
    return [*(f"it_{part}.{suffix}" for part in parts for suffix in ("png", "pdf")), "it_weights.npz"]


@pytest.mark.parametrize("kind", ["detr", "conditional"])
def test_the_weights_are_those_of_the_objects_and_points(run, place, tmp_path, kind):
    """A query's row of the decoder for each object; the encoder's row of the cell that a point lies in."""
    code, files, error = run(kind, "--threshold", 0.3, "--points", "119,79", "0,0", "110,10")
    assert code == 0 and error == "" and files == names("decoder", "encoder")
    detector = ObjectDetector.load(place / f"{kind}.ckpt", "cpu")
    photo = detector.read(place / "photo.png")
    assert photo.size == (64, 96)  # 120 x 80 pixels, 2 rows and 3 columns of features
    images = detector.batch([photo])
    [maps] = detector.network.attention_maps(images, [(64, 96)])
    with torch.no_grad():
        logits = detector.network(images, [(64, 96)]).final[0][0]
    scores = (logits.softmax(-1)[:, :-1] if kind == "detr" else logits.sigmoid()).max(-1).values
    order = [query for query in scores.argsort(descending=True).tolist() if scores[query] >= 0.3]
    with np.load(tmp_path / "it_weights.npz") as arrays:
        assert len(order) > 1
        np.testing.assert_allclose(arrays["scores"], scores[order].numpy(), atol=1e-6)
        assert arrays["decoder"].shape == (len(order), 4, 2, 3)
        np.testing.assert_allclose(arrays["decoder"], maps.decoder[:, order].transpose(0, 1).numpy(), atol=1e-6)
        for row, cell in zip(arrays["encoder"], ((1, 2), (0, 0), (0, 2)), strict=True):
            np.testing.assert_allclose(row, maps.encoder[:, cell[0], cell[1]].numpy(), atol=1e-6)
        np.testing.assert_allclose(arrays["encoder"].sum((-2, -1)), 1.0, atol=1e-5)
        np.testing.assert_array_equal(arrays["image"], photo.pixels.permute(1, 2, 0).numpy())


def test_a_picture_for_each_object_where_heads_are_apart(run):
    code, files, _ = run("detr", "--heads", "all", "--threshold", 1.0, "--points", "5,5", "60,60")
    assert code == 0 and files == names("decoder_1", "encoder_1", "encoder_2")


def found(boxes, scores):
    count = len(scores)
    return Detections(torch.tensor(scores), torch.arange(count) % 4, torch.tensor(boxes))


def test_points_are_the_centres_of_the_best_objects(place):
    detector = ObjectDetector.load(place / "detr.ckpt", "cpu")
    photo = detector.read(place / "photo.png")
    boxes = [[0.0, 0, 20, 10], [100, 60, 140, 100], [100, 5, 120, 15], [-9, -9, 1, 1], [0, 0, 9, 9]]
    maps = AttentionMaps(torch.rand(4, 2, 3, 2, 3), torch.rand(4, 9, 2, 3))
    drawn = look(photo, found(boxes, [0.9] * 5), torch.tensor([2, 0, 1, 4, 8]), maps, None)
    # The second and the fourth leave the image: the nearest pixel inside counts.
    assert drawn.points == [(10.0, 5.0), (119.0, 79.0), (110.0, 10.0), (0.0, 0.0)]
    assert torch.equal(drawn.encoder[1], maps.encoder[:, 1, 2]) and torch.equal(drawn.encoder[2], maps.encoder[:, 0, 2])
    assert torch.equal(drawn.decoder[3], maps.decoder[:, 4])


def test_how_many_objects_are_drawn(capsys):
    scores = torch.linspace(0.1, 0.9, 20).tolist()
    many = found([[0.0, 0, 1, 1]] * 20, scores)
    kept, queries = choose(many, 0.7)
    assert queries.tolist() == [19, 18, 17, 16, 15] and kept.scores.tolist() == pytest.approx(scores[:14:-1])
    assert len(choose(many, 0.0)[1]) == MOST_OBJECTS and "20 objects have a score of 0%" in capsys.readouterr().err
    assert choose(many, 0.95)[1].tolist() == [19]
    assert "no object has a score of 95%; the best, 90.0%, is drawn" in capsys.readouterr().err


def test_boxes_and_points_are_drawn_where_they_are(run, place, monkeypatch):
    """In pixels of the image that is shown, which is resized: 120 x 80 becomes 96 x 64."""
    figures: dict[str, Figure] = {}

    def keep(figure, prefix, name):
        figures[name] = figure
        return []

    monkeypatch.setattr(attend_detection, "save_figure", keep)
    run("detr", "--points", "60,40", "--threshold", 1.0)
    detector = ObjectDetector.load(place / "detr.ckpt", "cpu")
    objects = detector.by_query(detector.read(place / "photo.png"))
    best = int(objects.scores.argmax())
    first, overlay, *_ = figures["decoder"].axes
    left, top, right, bottom = (objects.boxes[best] * 0.8).clamp(min=0).tolist()
    for axes in (first, overlay):
        [patch] = axes.patches
        x0, y0 = patch.get_xy()
        corners = (x0 + 0.5, y0 + 0.5, x0 + 0.5 + patch.get_width(), y0 + 0.5 + patch.get_height())
        assert corners == pytest.approx((left, top, min(right, 96), min(bottom, 64)), abs=1e-3)
        assert axes.get_xlim() == (-0.5, 95.5) and axes.get_ylim() == (63.5, -0.5)
    name = f"1 {NAMES[objects.labels[best]]} {objects.scores[best]:.0%}"
    assert [text.get_text() for text in first.texts] == ["1"] and overlay.get_title(loc="left") == name
    for axes in figures["encoder"].axes[:2]:
        assert axes.lines[0].get_xydata().tolist() == [pytest.approx([48.0, 32.0])]
    assert figures["encoder"].axes[1].get_title(loc="left") == "from (60, 40)"


def test_public_weights_are_recognised(place, capsys, tmp_path):
    from safetensors.torch import save_file

    state, _ = detector_to_huggingface(build(encoder_layers=1, dim=256, num_heads=8))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    words = ["--checkpoint", tmp_path, "--image", place / "photo.png", "--image-size", 64, "--output", tmp_path / "it"]
    assert attend.main(["--device", "cpu", *map(str, words)]) == 0
    captured = capsys.readouterr()
    assert "Hugging Face DETR" in captured.err and "it_decoder.png" in captured.out


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("detr", ["--points", "5;5"], '--points "5;5": it must be x,y in pixels'),
        ("detr", ["--points", "5,80"], "--points 5,80 is not in the image of 120 x 80 pixels"),
        ("detr", ["--layer", 1], "--layer 1: of a detector the last layers are drawn"),
        ("detr", ["--crop", 0.5], "--crop is for image classifiers"),
        ("detr", ["--threshold", 7], "--threshold 7.0: it must be between 0 and 1"),
        ("vit", ["--points", "5,5"], "--points is for detectors"),
        ("vit", ["--threshold", 0.5], "--threshold is for detectors"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, kind, options, message):
    code, files, error = run(kind, *options)
    assert code == 2 and files == [] and not list(tmp_path.iterdir())
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_text_is_for_translators(place, capsys):
    assert attend.main(["--checkpoint", str(place / "detr.ckpt"), "--text", "x"]) == 2
    assert "is detection: give --image instead of --text" in capsys.readouterr().err
