"""The comparisons of image augmentation and mixing with timm: rows, what both sides do, and what is refused."""

import csv
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment

from datamodules.image.folder import ImageFolder
from experiments.__main__ import main as dispatch
from experiments.bench import image_mixing, image_pipeline, record
from experiments.bench.image_mixing import PARTS


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    return tmp_path


@pytest.fixture
def scenes(tmp_path):
    image_pipeline.write_scenes(tmp_path / "scenes", images=6, size=(60, 40))
    return tmp_path / "scenes"


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_prints_and_records_every_part(results, scenes, capsys):
    words = ["bench", "image_pipeline", "--data", str(scenes), "--image-size", "32", "--rounds", "2", "--record"]
    assert dispatch([*words, "--batch-size", "4"]) == 0
    printed = capsys.readouterr().out
    assert "posterising to 0 bits gives black" in printed
    rows = rows_of(results / "image_pipeline.csv")
    assert [(row["part"], row["provider"]) for row in rows] == [
        (part, provider) for part in image_pipeline.PARTS for provider in ("heddle", "timm")
    ]
    assert {(row["data"], row["images"]) for row in rows} == {("scenes", "6")}
    assert all(float(row["images_per_cpu_second"]) > 0 for row in rows)


def test_scenes_are_rendered_where_there_is_no_data(results, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(image_pipeline, "DEFAULT_DATA", tmp_path / "none")
    write = image_pipeline.write_scenes
    monkeypatch.setattr(image_pipeline, "write_scenes", lambda directory: write(directory, 4, (40, 30)))
    assert dispatch(["bench", "image_pipeline", "--parts", "uint8", "--image-size", "16", "--rounds", "1"]) == 0
    assert "rendered scenes of 500x375 are measured in place of photographs" in capsys.readouterr().out


def test_every_pass_visits_all_images_with_new_draws(scenes, monkeypatch):
    seen = []
    read = image_pipeline.ImageReader.read_batch

    def reading(reader, indices, epoch):
        batch = read(reader, indices, epoch)
        seen.append((epoch, indices.tolist(), batch.images.float().mean().item()))
        return batch

    monkeypatch.setattr(image_pipeline.ImageReader, "read_batch", reading)
    with image_pipeline.timms_posterize_to_no_bits():
        tasks = image_pipeline.make_tasks(ImageFolder(scenes), scenes, 16, 4, 0)
        for _ in range(2):
            tasks["uint8"]["heddle"]()
    assert [(epoch, indices) for epoch, indices, _ in seen] == [
        (epoch, part) for epoch in (0, 1) for part in ([0, 1, 2, 3], [4, 5])
    ]
    assert seen[0][2] != seen[2][2]


def test_timm_is_as_it_was_afterwards():
    before = dict(auto_augment.NAME_TO_OP)
    image = Image.fromarray(np.full((4, 4, 3), 200, np.uint8))
    with image_pipeline.timms_posterize_to_no_bits():
        assert np.asarray(auto_augment.NAME_TO_OP["PosterizeIncreasing"](image, 0)).max() == 0
        assert np.asarray(auto_augment.NAME_TO_OP["PosterizeIncreasing"](image, 1)).max() == 128
    assert before == auto_augment.NAME_TO_OP


def test_scenes_are_jpegs_of_their_size(scenes):
    source = ImageFolder(scenes)
    assert len(source) == 6 and source.class_names == ["class_0", "class_1"]
    assert Image.open(BytesIO(source.read(0))).size == (60, 40)


def test_mixing_prints_and_records_every_part(results, capsys):
    words = ["bench", "image_mixing", "--batch-size", "4", "--image-size", "16", "--batches", "1", "--rounds", "2"]
    assert dispatch([*words, "--record"]) == 0
    rows = rows_of(results / "image_mixing.csv")
    assert [row["part"] for row in rows[::2]] == list(PARTS) and {row["provider"] for row in rows[1::2]} == {"timm"}


@pytest.mark.parametrize("part", PARTS)
def test_both_sides_do_what_the_part_says(part):
    options = image_mixing._parser().parse_args(["--batch-size", "64", "--image-size", "24"])
    tasks = image_mixing.make_tasks(part, options, image_mixing.torch.device("cpu"))
    for name, task in tasks.items():
        images = next(cell.cell_contents for cell in task.__closure__ if hasattr(cell.cell_contents, "shape"))
        before = images.clone()
        for _ in range(3):
            task()
        changed = (images != before).flatten(1).any(1).float().mean()
        # A quarter of the images is erased in each of three steps; a share of 1 or an empty box mixes nothing.
        assert (0.3 < changed < 0.8) if part == "erasing" else changed > 0.8, name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["image_mixing", "--batch-size", "5"], "--batch-size 5 is odd"),
        (["image_mixing", "--parts", "blur"], "blur"),
        (["image_pipeline", "--data", "/no/such/directory"], "/no/such/directory"),
        (["image_pipeline", "--rounds", "0"], "'0' must be a whole number of 1 or more"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, message, capsys):
    assert dispatch(["bench", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]
