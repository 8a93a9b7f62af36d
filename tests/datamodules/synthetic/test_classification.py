"""The built-in image corpus: what is on disk, what decides it, and how hard it is."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from datamodules.synthetic import classification
from datamodules.synthetic.classification import CLASS_NAMES, main, render, write_corpus
from datamodules.synthetic.shapes import FIGURES


def contents(directory):
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.*")}


def pixels(directory, split):
    files = sorted((directory / split).glob("*/*.jpg"))
    labels = np.array([CLASS_NAMES.index(file.parent.name) for file in files])
    return np.stack([np.asarray(Image.open(file), dtype=np.float64) for file in files]), labels


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    write_corpus(directory, train=1000, validation=200)
    return directory


def test_it_has_the_layout_of_imagenet_and_is_balanced(corpus):
    assert len(CLASS_NAMES) == 10
    for split, count in (("train", 100), ("val", 20)):
        assert sorted(path.name for path in (corpus / split).iterdir()) == list(CLASS_NAMES)
        assert {len(list(path.glob("*.jpg"))) for path in (corpus / split).iterdir()} == {count}
    image = Image.open(corpus / "val" / "star" / "00000.jpg")
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))


def test_no_image_occurs_twice(corpus):
    files = [data for name, data in contents(corpus).items() if name.endswith(".jpg")]
    assert len(set(files)) == len(files) == 1200


def test_the_same_seed_gives_the_same_bytes_and_splits_do_not_depend_on_their_sizes(tmp_path, corpus):
    write_corpus(tmp_path / "small", train=30, validation=20)
    small, large = contents(tmp_path / "small"), contents(corpus)
    assert len(small) == 51
    assert all(data == large[name] for name, data in small.items() if name != "corpus.json")
    write_corpus(tmp_path / "other", train=30, validation=20, seed=1)
    other = contents(tmp_path / "other")
    assert all(other[name] != data for name, data in small.items())


def test_images_can_have_another_size():
    assert render("ring", Random(0), size=32).size == (32, 32)


def test_edges_are_soft():
    # Without over-sampling, as Pillow draws, no pixel would lie between background and figure.
    image = np.asarray(render("circle", Random(3), size=64)).astype(int)
    hard = np.asarray(render("circle", Random(3), size=256)).astype(int)
    assert np.abs(np.diff(image, axis=1)).max() < np.abs(np.diff(hard, axis=1)).max() + 40
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 1000


def test_colour_says_nothing_about_the_class(corpus):
    images, labels = pixels(corpus, "train")
    colours = images.mean(axis=(1, 2))
    colours -= colours.mean(axis=1, keepdims=True)  # a larger figure makes the image brighter
    between = np.array([colours[labels == label].mean(axis=0) for label in range(10)]).std(axis=0)
    assert (between < 0.25 * colours.std(axis=0)).all()


def test_a_linear_classifier_of_pixels_fails(corpus):
    (images, labels), (unseen, answers) = pixels(corpus, "train"), pixels(corpus, "val")
    images, unseen = (
        values.mean(axis=-1).reshape(len(values), 16, 4, 16, 4).mean(axis=(2, 4)) for values in (images, unseen)
    )
    images, unseen = images.reshape(len(images), -1), unseen.reshape(len(unseen), -1)
    means = np.stack([images[labels == label].mean(axis=0) for label in range(10)])
    nearest = ((unseen[:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
    assert (nearest == answers).mean() < 0.4
    centre = images.mean(axis=0)
    gram = (images - centre).T @ (images - centre) + 1e5 * np.eye(images.shape[1])
    weights = np.linalg.solve(gram, (images - centre).T @ np.eye(10)[labels])
    assert (((unseen - centre) @ weights).argmax(axis=1) == answers).mean() < 0.4


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_no_figure_reaches_beyond_its_frame(name):
    for seed in range(20):
        figure = FIGURES[name](Random(seed))
        radii = [np.hypot(x, y) for x, y in figure.outline]
        assert 0.7 < max(radii) <= 1.0 + 1e-9


def test_a_whole_corpus_is_left_alone(tmp_path, monkeypatch):
    write_corpus(tmp_path, train=20, validation=10)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write_corpus(tmp_path, train=20, validation=10)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_other_settings_or_a_missing_image_replace_it_whole(tmp_path):
    write_corpus(tmp_path, train=20, validation=10)
    first = contents(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "train" / "star" / "00001.jpg").unlink()
    write_corpus(tmp_path, train=20, validation=10)
    assert contents(tmp_path) == first | {"notes.txt": b"mine"}
    write_corpus(tmp_path, train=10, validation=10, seed=2)
    replaced = contents(tmp_path)
    assert len(replaced) == 22 and replaced["train/star/00000.jpg"] != first["train/star/00000.jpg"]


def test_an_older_generator_is_replaced(tmp_path, monkeypatch):
    write_corpus(tmp_path, train=10, validation=10)
    monkeypatch.setattr(classification, "GENERATOR_VERSION", classification.GENERATOR_VERSION + 1)
    write_corpus(tmp_path, train=10, validation=10)
    assert json.loads((tmp_path / "corpus.json").read_text())["generator"] == classification.GENERATOR_VERSION


@pytest.mark.parametrize("earlier", [False, True])
def test_an_interrupted_run_is_made_good(tmp_path, monkeypatch, earlier):
    write_corpus(tmp_path / "whole", train=20, validation=10)
    directory = tmp_path / "broken"
    if earlier:
        write_corpus(directory, train=10, validation=10, seed=5)
    replace, moved = Path.replace, []

    def fail_after_one(self, target):
        if len(moved) == 2:  # the record and one part
            raise OSError("the machine stops here")
        moved.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_after_one)
    with pytest.raises(OSError, match="stops here"):
        write_corpus(directory, train=20, validation=10)
    monkeypatch.undo()
    assert (directory / "train").exists() and contents(directory) != contents(tmp_path / "whole")
    write_corpus(directory, train=20, validation=10)
    assert contents(directory) == contents(tmp_path / "whole")
    assert not (directory / ".unfinished").exists()


def test_files_of_somebody_else_are_kept(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds train, but no corpus\.json of the built-in corpus"):
        write_corpus(tmp_path, train=10, validation=10)
    assert (tmp_path / "train" / "cat").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is not a directory"):
        write_corpus(tmp_path / "file", train=10, validation=10)


@pytest.mark.parametrize("arguments", [{"train": 9}, {"validation": 0}, {"seed": -1}, {"size": 8}])
def test_numbers_that_are_too_small_are_refused(tmp_path, arguments):
    [(name, value)] = arguments.items()
    with pytest.raises(ValueError, match=f"{name} is {value}; give a whole number of at least"):
        write_corpus(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_the_command_line(tmp_path, capsys):
    assert main([str(tmp_path), "--train", "20", "--validation", "10", "--size", "16"]) == 0
    assert "20 + 10 images" in capsys.readouterr().out
    assert main([str(tmp_path), "--train", "2"]) == 2
    assert "error: train is 2" in capsys.readouterr().err


def test_it_needs_neither_torch_nor_lightning():
    code = "import sys, datamodules.synthetic.classification; print({'torch', 'lightning'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(classification.__file__).parents[2],
    )
    assert done.stdout.strip() == "set()"
