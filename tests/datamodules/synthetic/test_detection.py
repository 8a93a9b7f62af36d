"""The built-in detection corpus: what is on disk, what decides it, and whether its boxes are where the figures are."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from datamodules.image.detection_annotations import DetectionImages
from datamodules.synthetic import detection
from datamodules.synthetic.detection import CLASS_NAMES, main, render, write_corpus


def contents(directory):
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.*")}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    write_corpus(directory, train=40, validation=8)
    return directory


def test_it_is_what_the_datamodule_reads(corpus):
    images = DetectionImages(corpus / "annotations" / "instances_train.json", corpus / "train")
    assert len(images) == 40 and tuple(images.categories.names) == CLASS_NAMES and len(CLASS_NAMES) == 5
    counts = np.diff(images.starts)
    assert counts.min() == 0 and counts.max() == 8 and (counts == 0).mean() < 0.15
    assert set(images.labels.tolist()) == set(range(5))
    assert images.sizes.min() >= 128 and images.sizes.max() <= 256
    ratios = images.sizes[:, 1] / images.sizes[:, 0]
    assert ratios.min() < 0.7 and ratios.max() > 1.4
    for index in range(40):
        with Image.open(images.path(index)) as image:
            assert (image.format, image.mode, image.size[::-1]) == ("JPEG", "RGB", tuple(images.sizes[index].tolist()))


def test_annotations_are_in_cocos_format(corpus):
    content = json.loads((corpus / "annotations" / "instances_val.json").read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    assert len({row["id"] for row in content["annotations"]}) == len(content["annotations"])
    for row in content["annotations"]:
        left, top, width, height = row["bbox"]
        wide, high = sizes[row["image_id"]]
        assert left >= 0 and top >= 0 and left + width <= wide + 0.01 and top + height <= high + 0.01
        assert 0 < row["area"] <= width * height and row["iscrowd"] == 0 and 1 <= row["category_id"] <= 5


def test_boxes_are_tight_around_the_figures(monkeypatch):
    # Without clutter, noise and light, and with each figure in a colour of its own, pixels say where it is.
    monkeypatch.setattr(detection, "add_clutter", lambda *_: None)
    monkeypatch.setattr(detection, "photograph", lambda image, _: image)
    monkeypatch.setattr(detection, "draw_colors", lambda _: ((0, 0, 0), (255, 255, 255), (255, 255, 255)))
    monkeypatch.setattr(detection, "_MOST", 1)
    alone = cut = 0
    for seed in range(60):
        image, things = render(Random(seed))
        if len(things) != 1:
            continue
        alone += 1
        bright = np.asarray(image)[:, :, 0]
        rows, columns = np.flatnonzero(bright.max(axis=1) > 20), np.flatnonzero(bright.max(axis=0) > 20)
        left, top, width, height = things[0].box
        seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        # A corner's tip may cover too little of its pixel to be counted.
        assert [left, top, left + width, top + height] == pytest.approx(seen, abs=1.6)
        assert things[0].area == pytest.approx(bright.sum() / 255, rel=0.02, abs=2)
        cut += left == 0 or top == 0 or left + width == image.width or top + height == image.height
    assert alone > 40 and cut > 5


def test_figures_cover_one_another_but_a_good_half_is_seen():
    covered = 0
    for seed in range(15):
        _, things = render(Random(seed))
        for place, thing in enumerate(things):
            for other in things[place + 1 :]:
                left, top = (max(a, b) for a, b in zip(thing.box[:2], other.box[:2], strict=True))
                right, bottom = (min(thing.box[k] + thing.box[k + 2], other.box[k] + other.box[k + 2]) for k in (0, 1))
                covered += right > left + 3 and bottom > top + 3
    assert covered > 5


def test_the_same_seed_gives_the_same_bytes_and_splits_do_not_depend_on_their_sizes(tmp_path, corpus):
    write_corpus(tmp_path / "small", train=6, validation=3)
    small, large = contents(tmp_path / "small"), contents(corpus)
    pictures = {name: data for name, data in small.items() if name.endswith(".jpg")}
    assert len(pictures) == 9 and all(data == large[name] for name, data in pictures.items())
    whole = json.loads(large["annotations/instances_train.json"])["annotations"]
    part = json.loads(small["annotations/instances_train.json"])["annotations"]
    assert part == whole[: len(part)]
    write_corpus(tmp_path / "other", train=6, validation=3, seed=1)
    other = contents(tmp_path / "other")
    assert all(other[name] != data for name, data in pictures.items())


def test_a_whole_corpus_is_left_alone_and_another_replaced(tmp_path, monkeypatch):
    write_corpus(tmp_path, train=3, validation=2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write_corpus(tmp_path, train=3, validation=2)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    first = contents(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "train" / "000001.jpg").unlink()
    write_corpus(tmp_path, train=3, validation=2)
    assert contents(tmp_path) == first | {"notes.txt": b"mine"}
    write_corpus(tmp_path, train=2, validation=2, seed=2)
    assert len(contents(tmp_path)) == 8 and contents(tmp_path)["train/000000.jpg"] != first["train/000000.jpg"]
    monkeypatch.setattr(detection, "GENERATOR_VERSION", detection.GENERATOR_VERSION + 1)
    write_corpus(tmp_path, train=2, validation=2, seed=2)
    assert json.loads((tmp_path / "corpus.json").read_text())["generator"] == detection.GENERATOR_VERSION


@pytest.mark.parametrize("earlier", [False, True])
def test_an_interrupted_run_is_made_good(tmp_path, monkeypatch, earlier):
    write_corpus(tmp_path / "whole", train=2, validation=1)
    directory = tmp_path / "broken"
    if earlier:
        write_corpus(directory, train=1, validation=1, seed=5)
    replace, moved = Path.replace, []

    def fail_after_one(self, target):
        if len(moved) == 2:  # the record and one part
            raise OSError("the machine stops here")
        moved.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_after_one)
    with pytest.raises(OSError, match="stops here"):
        write_corpus(directory, train=2, validation=1)
    monkeypatch.undo()
    write_corpus(directory, train=2, validation=1)
    assert contents(directory) == contents(tmp_path / "whole") and not (directory / ".unfinished").exists()


def test_files_of_somebody_else_are_kept(tmp_path):
    (tmp_path / "annotations").mkdir()
    with pytest.raises(ValueError, match=r"holds annotations, but no corpus\.json of the built-in corpus"):
        write_corpus(tmp_path, train=1, validation=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is not a directory"):
        write_corpus(tmp_path / "file", train=1, validation=1)
    with pytest.raises(ValueError, match="train is 0; give a whole number of at least 1"):
        write_corpus(tmp_path, train=0)


def test_the_command_line(tmp_path, capsys):
    assert main([str(tmp_path), "--train", "2", "--validation", "1"]) == 0
    assert "2 + 1 images" in capsys.readouterr().out
    assert main([str(tmp_path), "--train", "0"]) == 2
    assert "error: train is 0" in capsys.readouterr().err


def test_it_needs_neither_torch_nor_lightning():
    code = "import sys, datamodules.synthetic.detection; print({'torch', 'lightning'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(detection.__file__).parents[2],
    )
    assert done.stdout.strip() == "set()"
