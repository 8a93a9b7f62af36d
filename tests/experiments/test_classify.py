"""``classify``: the probabilities of an independent computation, in order, whatever cannot be read on the way."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import tiny_translator
from tiny_classifier import NAMES, PREPROCESSING, build, write_checkpoint, write_image

from experiments import translate
from experiments.classifier import ImageClassifier
from experiments.classify import main
from experiments.predictions import write_predictions


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run's directory with its checkpoint, and six images."""
    path = tmp_path_factory.mktemp("run")
    write_checkpoint(path / "checkpoints" / "best.ckpt", build())
    for seed in range(6):
        write_image(path / "images" / f"{seed}.png", seed)
    return path


@pytest.fixture
def classify(run_dir, capsys):
    """Run the command; returns exit code, output lines and standard error."""

    def call(*arguments, model=run_dir):
        code = main(["--checkpoint", str(model), "--device", "cpu", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out.split("\n")[:-1], captured.err

    return call


def images_of(run_dir):
    return sorted((run_dir / "images").iterdir())


def expected(path, network, *, size=32, crop=PREPROCESSING["crop"], resample=Image.Resampling.BILINEAR):
    """Return the probabilities of one image, with arrays and Pillow alone before the network."""
    image = Image.open(path)
    if crop is None:
        image = image.resize((size, size), resample)
    else:
        scale = int(size / crop) / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), resample)
        left, top = round((image.width - size) / 2), round((image.height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    pixels = (np.asarray(image) / 255.0 - PREPROCESSING["mean"]) / PREPROCESSING["std"]
    with torch.no_grad():
        logits = network(torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None])
    return logits[0].double().softmax(-1).tolist()


def records_of(lines):
    return [json.loads(line) for line in lines]


def test_the_checkpoint_decides_crop_interpolation_and_normalisation(classify, run_dir):
    """Row 14 of the list of usual mistakes: the crop and filter of another recipe."""
    paths = images_of(run_dir)
    code, lines, _ = classify(*paths, "--json", "--top", 6)
    assert code == 0 and len(lines) == len(paths)
    for path, record in zip(paths, records_of(lines), strict=True):
        assert record["image"] == str(path)
        found = {row["index"]: row["probability"] for row in record["predictions"]}
        probabilities = expected(path, build())
        assert [found[number] for number in range(6)] == pytest.approx(probabilities, abs=1e-6)
        assert [row["class"] for row in record["predictions"]] == [
            NAMES[number] for number in np.argsort(probabilities)[::-1]
        ]


@pytest.mark.parametrize(
    ("options", "preparation"),
    [
        (["--crop", 1], {"crop": 1.0}),
        (["--crop-mode", "squash"], {"crop": None}),
        (["--image-size", 48], {"size": 48}),
    ],
)
def test_the_preparation_can_be_changed(classify, run_dir, options, preparation):
    path = images_of(run_dir)[0]
    network = build()
    if "size" in preparation:
        network.set_input_size(preparation["size"])
    [record] = records_of(classify(path, "--json", "--top", 1, *options)[1])
    probabilities = expected(path, network, **preparation)
    assert record["predictions"][0]["index"] == int(np.argmax(probabilities))
    assert record["predictions"][0]["probability"] == pytest.approx(max(probabilities), abs=1e-6)
    assert max(probabilities) != pytest.approx(max(expected(path, build())), abs=1e-4), "it makes a difference"


def test_five_rows_for_people(classify, run_dir):
    path = images_of(run_dir)[0]
    code, lines, _ = classify(path)
    [record] = records_of(classify(path, "--json")[1])
    assert code == 0 and lines[0] == str(path) and len(lines) == 6
    for line, row in zip(lines[1:], record["predictions"], strict=True):
        assert line[11:] == row["class"] and line[9:11] == "  "
        assert float(line[:9].removesuffix("%")) == pytest.approx(100 * row["probability"], abs=0.0051)
    assert "Übergröße" in "".join(classify(path, "--top", 100)[1])


def test_order_is_kept_whatever_the_batches(classify, run_dir):
    paths = images_of(run_dir)[::-1]
    together = classify(*paths)[1]
    assert len(set(together)) > 12, "the images differ, so do their probabilities"
    for size in (1, 4):
        assert classify(*paths, "--batch-size", size)[1] == together
    assert classify(paths[2])[1] == together[12:18]


def test_directories_and_standard_input(classify, run_dir, tmp_path, monkeypatch):
    write_image(tmp_path / "deep" / "b.PNG", 1)
    write_image(tmp_path / "a.png", 2)
    (tmp_path / "notes.txt").write_text("no image")
    lines = "".join(f"{path}\n" for path in images_of(run_dir)[:2]) + "\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    code, output, error = classify("--json", "--top", 1, tmp_path, "-", images_of(run_dir)[5])
    assert code == 0 and error == ""
    assert [record["image"] for record in records_of(output)] == [
        str(path)
        for path in (tmp_path / "a.png", tmp_path / "deep" / "b.PNG", *images_of(run_dir)[:2], images_of(run_dir)[5])
    ]


def test_what_cannot_be_read_is_named_and_the_others_go_on(classify, run_dir, tmp_path):
    good = images_of(run_dir)[0]
    half, text, missing, empty = (tmp_path / name for name in ("half.png", "text.jpg", "missing.jpg", "empty"))
    half.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    text.write_text("no image")
    empty.mkdir()
    code, output, error = classify(half, text, good, missing, empty, good, "--json", "--batch-size", 2)
    assert code == 2
    assert [record["image"] for record in records_of(output)] == [str(good)] * 2
    *lines, last = error.splitlines()
    for line, path in zip(lines, (half, text, missing, empty), strict=True):
        assert line.startswith("error: ") and line.count(str(path)) == 1
    assert last == "error: 4 could not be read (named above), 2 classified"


def test_files(classify, run_dir, tmp_path):
    code, output, _ = classify(run_dir / "images", "--output", tmp_path / "out.txt")
    assert code == 0 and output == []
    assert (tmp_path / "out.txt").read_text(encoding="utf-8").splitlines() == classify(run_dir / "images")[1]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
def test_a_path_that_is_no_utf8(classify, tmp_path):
    path = write_image(tmp_path / "x.png", 1)
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    path.rename(strange)
    for options in ([], ["--json"]):
        code, output, _ = classify(strange, *options)
        assert code == 0 and "\ufffd.png" in output[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.png", "--top", 0], "--top 0: it must be at least 1"),
        (["x.png", "--batch-size", -1], "--batch-size -1: it must be at least 1"),
        (["x.png", "--image-size", 0], "--image-size 0: it must be at least 1"),
        (["x.png", "--crop", 1.5], "--crop 1.5: it must be above 0 and at most 1"),
        (["x.png", "--crop", "nan"], "--crop nan"),
        (["x.png", "--crop", 0.9, "--crop-mode", "squash"], "--crop has no effect with --crop-mode squash"),
        (["x.png", "--topp", 3], 'unknown argument "--topp"; did you mean "--top"?'),
        (["-", "-"], "- is given twice"),
        ([], "the following arguments are required: image"),
        (["x.png", "--image-size", 30], "30"),
    ],
)
def test_mistakes_are_one_line(classify, arguments, message):
    code, output, error = classify(*arguments)
    assert code == 2 and output == []
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_checkpoints_of_other_kinds(classify, run_dir, tmp_path):
    image = images_of(run_dir)[0]
    translator = tiny_translator.write_checkpoint(tmp_path / "translator.ckpt")
    code, _, error = classify(image, model=translator)
    assert code == 2 and error == (
        f'error: "{translator}" is no image classifier, its task is translation; '
        f"use: python -m experiments translate --checkpoint {translator}\n"
    )
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(next((run_dir / "checkpoints").iterdir()).read_bytes()[:3000])
    for model, message in ((broken, str(broken)), (tmp_path / "no.ckpt", "there is no checkpoint"), (tmp_path, "is a")):
        code, output, error = classify(image, model=model)
        assert code == 2 and output == [] and error.startswith("error: ") and error.count("\n") == 1
        assert message in error


def test_it_is_light(run_dir):
    """Neither the start nor the images of a directory need what training needs."""
    unwanted = ["lightning", "wandb", "matplotlib", "timm", "transformers", "webdataset", "torchmetrics"]
    unwanted += ["sentencepiece", "torchvision"]
    words = ["--checkpoint", str(run_dir), "--device", "cpu", str(run_dir / "images")]
    code = "import sys; from experiments.classify import main; assert main(sys.argv[1:]) == 0; "
    code += f"print([name for name in {unwanted!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_public_weights(classify, run_dir, tmp_path):
    """timm's layout: its own crop, filter and normalisation come along, and what was not loaded is said."""
    from lit_models.pretrained import to_timm

    network = build(dim=64, num_heads=1)
    path = tmp_path / "vit.pth"
    torch.save({"model": {**to_timm(network), "relics.weight": torch.ones(2)}}, path)
    images = images_of(run_dir)
    code, lines, error = classify(*images, "--json", "--top", 6, model=path)
    assert code == 0 and "relics.weight" in error and "not used" in error
    assert records_of(classify(*images, "--json", "--top", 6, model=path)[1]) == records_of(lines)
    expected_names = {f"class {number}" for number in range(6)}
    settings = ImageClassifier.load(path, "cpu").preprocessing
    assert settings.image_size == 32 and settings.mean != tuple(PREPROCESSING["mean"])
    for image, record in zip(images, records_of(lines), strict=True):
        assert {row["class"] for row in record["predictions"]} == expected_names
        found = {row["index"]: row["probability"] for row in record["predictions"]}
        pixels = settings(Image.open(image)).double() / 255.0
        mean, std = (torch.tensor(values).double()[:, None, None] for values in (settings.mean, settings.std))
        with torch.no_grad():
            probabilities = network(((pixels - mean) / std).float()[None])[0].softmax(-1).tolist()
        assert [found[number] for number in range(6)] == pytest.approx(probabilities, abs=1e-5)


def test_public_swin_weights(classify, run_dir, tmp_path):
    """A Swin V2 whose file does not tell its windows, in others; three of its classes are kept."""
    from lit_models.classification import SwinTransformer
    from lit_models.pretrained import to_timm

    network = SwinTransformer(6, version=2, dim=24, depths=(1, 1), num_heads=(2, 4), window_size=4)
    torch.save(to_timm(network), tmp_path / "swin.pth")
    (tmp_path / "rows.txt").write_text("5\n0\n3\n")
    image, options = images_of(run_dir)[0], ("--window-size", 4, "--head-rows", tmp_path / "rows.txt")
    code, lines, error = classify(image, "--json", *options, model=tmp_path / "swin.pth")
    assert code == 0 and "window_size 4 is taken as the one it was trained with" in error
    assert {row["index"] for row in records_of(lines)[0]["predictions"]} == {0, 1, 2}
    code, _, error = classify(image, *options)
    assert code == 2 and "--window-size, --head-rows: for public weights alone" in error
    code, _, error = classify(image, "--window-size", 0, model=tmp_path / "swin.pth")
    assert code == 2 and "--window-size 0: it must be at least 1" in error


def test_translate_says_that_the_checkpoint_is_a_classifier(run_dir, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the cat\n")))
    assert translate.main(["--checkpoint", str(run_dir), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "is not a translation checkpoint" in error and "classification" in error and error.count("\n") == 1


def test_classes_that_were_trained_each_by_itself(run_dir, tmp_path):
    """Binary cross-entropy: the share of a class is a sigmoid, as ``predict`` writes it, not a softmax."""
    checkpoint = torch.load(run_dir / "checkpoints" / "best.ckpt")
    checkpoint["heddle"]["settings"] = {"loss": "binary_cross_entropy"}
    torch.save(checkpoint, tmp_path / "x.ckpt")
    image = ImageClassifier.load(run_dir / "checkpoints" / "best.ckpt", "cpu").read(images_of(run_dir)[0])[None]
    first, second = (
        ImageClassifier.load(path, "cpu") for path in (run_dir / "checkpoints" / "best.ckpt", tmp_path / "x.ckpt")
    )
    torch.testing.assert_close(second.probabilities(image).logit().softmax(-1), first.probabilities(image))
    assert second.probabilities(image).sum() != pytest.approx(1.0, abs=1e-3)


def test_predictions_of_a_run(tmp_path):
    """``predict`` hands over pairs of an image's number and a row; they are written in the order of the numbers."""
    batches = [[(2, "c.png\tdog\t0.5000"), (0, "a.png\tcat\t0.9000")], [(1, "b.png\tcat\t0.7000")]]
    path = write_predictions(batches, tmp_path, ("path", "class", "probability"))
    assert path == tmp_path / "predictions.tsv"
    assert path.read_text().splitlines() == [
        "path\tclass\tprobability", "a.png\tcat\t0.9000", "b.png\tcat\t0.7000", "c.png\tdog\t0.5000",
    ]  # fmt: skip
    path = write_predictions([[(1, "zwei"), (0, "eins")]], tmp_path)
    assert path == tmp_path / "predictions.txt" and path.read_text() == "eins\nzwei\n"
