"""Mistakes in images, classes, checkpoints and settings: one line that names the file or the key, and exit code 2."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from images import CLASSES, small, write_images

from experiments.__main__ import main

# Training ends before an epoch does: the second batch of validation is the last of three.
STEPS = ["--trainer.max_steps=3", "--trainer.val_check_interval=3", "--trainer.accumulate_grad_batches=1"]
STEPS += ["--test_after_fit=false"]
BAD = "val/star/2.png"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    assert main(["fit", *small("synthetic.yaml", data), *STEPS, f"--run_dir={run_dir}"]) == 0
    return run_dir / "checkpoints" / "last.ckpt"


@pytest.fixture
def damaged(data, tmp_path):
    """A copy of the images to spoil."""
    return Path(shutil.copytree(data, tmp_path / "images", symlinks=True))


@pytest.fixture
def call(tmp_path, capsys):
    """Run a command; returns exit code and the lines on standard error that are not remarks of this project."""

    def run(command, *words):
        capsys.readouterr()
        code = main([command, *map(str, words), f"--run_dir={tmp_path / 'run'}"])
        errors = capsys.readouterr().err.splitlines()
        return code, [line for line in errors if re.match("error: |warning: |resume|Traceback|  ", line)]

    return run


def cut(path):
    path.write_bytes(path.read_bytes()[:60])


def replaced(path):
    path.write_text("no image")


@pytest.mark.parametrize(("spoil", "message"), [(cut, "cannot be decoded"), (replaced, "is not an image")])
def test_files_that_are_no_images(damaged, checkpoint, call, spoil, message):
    """In the last batch of an evaluation, long after the run began."""
    spoil(damaged / BAD)
    words = [f"--ckpt_path={checkpoint}", f"--data.init_args.data_dir={damaged}"]
    code, lines = call("validate", *words)
    assert code == 2 and len(lines) == 1
    assert lines[0].startswith(f"error: {damaged / BAD} {message}") and "on_bad_image=skip" in lines[0]
    with pytest.warns(UserWarning, match=rf"1 images were skipped: \S*{BAD} {message}"):
        assert call("validate", *words, "--data.init_args.on_bad_image=skip")[0] == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_training_images_that_were_skipped_are_named_at_its_end(damaged, call, workers):
    bad = [damaged / "train" / name / "0.png" for name in CLASSES]
    for path in bad:
        replaced(path)
    words = [*small("synthetic.yaml", damaged), *STEPS, f"--data.init_args.num_workers={workers}"]
    code, lines = call("fit", *words)
    assert code == 2 and len([line for line in lines if line.startswith("error: ")]) == 1
    assert any(str(path) in lines[0] + lines[-1] for path in bad) and "Traceback" not in "".join(lines)
    with pytest.warns(UserWarning, match="images were skipped: "):
        assert call("fit", *words, "--data.init_args.on_bad_image=skip")[0] == 0


def test_images_of_every_kind(damaged, checkpoint, call, capsys):
    """Grey, CMYK, palette, alpha and 16 bits are read; EXIF turns an image as a viewer does."""
    image = Image.open(damaged / "val" / "star" / "1.jpg").convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    for split in ("train", "val"):
        for name in ("L.png", "CMYK.jpg", "P.gif", "RGBA.png", "LA.png"):
            image.convert(name[:-4]).save(damaged / split / "star" / name)
        Image.new("I;16", (20, 30), 40000).save(damaged / split / "star" / "sixteen.png")
        image.save(damaged / split / "star" / "turned.png", exif=turned)
        image.transpose(Image.Transpose.ROTATE_270).save(damaged / split / "star" / "upright.png")
    assert call("fit", *small("synthetic.yaml", damaged), *STEPS)[0] == 0
    star = damaged / "val" / "star"
    words = ["--checkpoint", str(checkpoint), "--top", "3", str(star / "turned.png"), str(star / "upright.png")]
    assert main(["classify", *words]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1:4] == shown[5:8]


def without(path):
    shutil.rmtree(path)


def empty(path):
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "place", "message"),
    [
        (empty, "train/void", "1 class folders without images: void"),
        (without, "val/star", "differ in their classes (3 and 2): only in {data}/train: star"),
        (empty, "val/void", "1 class folders without images: void"),
        (without, "train", "{data}/train is not there. ImageNet needs an account"),
    ],
)
def test_folders(damaged, call, spoil, place, message):
    spoil(damaged / place)
    code, lines = call("fit", *small("synthetic.yaml", damaged), *STEPS)
    assert code == 2 and len(lines) == 1 and message.format(data=damaged) in lines[0]


def test_one_class_only(tmp_path, call):
    code, lines = call("fit", *small("synthetic.yaml", write_images(tmp_path / "one", classes=("star",))), *STEPS)
    assert code == 2 and len(lines) == 1 and "one/train holds the one class star" in lines[0]


MODEL = "--model.init_args."


@pytest.mark.parametrize(
    ("config", "words", "message"),
    [
        ("deit_small_imagenet.yaml", ["--data.init_args.batch_size=5"], "data: batch_size=5 is odd, but mixing takes"),
        (
            "synthetic.yaml",
            [f"{MODEL}network.init_args.patch_size=7"],
            "model.init_args.network: image_size 16x16 must be a multiple of patch_size 7x7",
        ),
        ("synthetic.yaml", ["--data.init_args.image_size=32"], "image_size is (16, 16), but data.image_size is 32"),
        ("synthetic.yaml", [f"{MODEL}init_from=no.pth"], 'init_from: there is no file "no.pth"'),
        ("resnet_cifar10.yaml", [f"{MODEL}init_from=CHECKPOINT"], "holds a VisionTransformer, the network of the"),
        ("resnet_cifar10.yaml", ["--ckpt_path=CHECKPOINT"], "network: checkpoint 'VisionTransformer', config 'ResNet'"),
        ("vit_lite_distilled_cifar10.yaml", [], "distillation.teacher.source: there is no file"),
        (
            "vit_lite_distilled_cifar10.yaml",
            [f"{MODEL}distillation.teacher.source=OTHER"],
            "has 3 classes, the data 2; they must be the same in the same order; the first that differ are 'circle'",
        ),
        (
            "deit3_small_imagenet.yaml",
            ["--data.init_args.mixing.label_smoothing=0.1"],
            "set data.mixing.label_smoothing to 0",
        ),
        ("synthetic.yaml", ["--model.network=VisionTransfomer"], 'did you mean "VisionTransformer"?'),
        ("synthetic.yaml", ["--data.augmentation=RandAugmnt"], 'did you mean "RandAugment"?'),
    ],
)
def test_settings(data, checkpoint, call, tmp_path, config, words, message):
    other = "OTHER" in "".join(words)
    folder = write_images(tmp_path / "two", classes=("a", "b")) if other else data
    named = [word.replace("CHECKPOINT", str(checkpoint)).replace("OTHER", str(checkpoint)) for word in words]
    more = ["--trainer.max_steps=9"] if "--ckpt_path=CHECKPOINT" in words else []
    code, lines = call("fit", *small(config, folder), *STEPS, *named, *more)
    errors = [line for line in lines if not line.startswith("warning")]
    assert code == 2 and errors[0].startswith("error: ") and message in "\n".join(errors)
    assert len(errors) == 1 + ("ckpt_path" in "".join(words))


def test_classes_may_be_named_without_their_modules(data, call):
    words = ["--model.network=VisionTransformer", "--data.augmentation=RandAugment"]
    assert call("fit", *small("synthetic.yaml", data), *STEPS, *words, "--trainer.max_steps=1")[0] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads the children of a process from /proc")
def test_a_worker_that_is_killed(data, tmp_path):
    words = [*small("synthetic.yaml", data), "--trainer.max_steps=1000000", "--trainer.val_check_interval=1000000"]
    words += ["--data.init_args.num_workers=1", f"--run_dir={tmp_path / 'run'}"]
    with (tmp_path / "errors").open("w") as errors, (tmp_path / "output").open("w") as output:
        process = subprocess.Popen([sys.executable, "-m", "experiments", "fit", *words], stdout=output, stderr=errors)
        deadline = time.monotonic() + 120
        while "step 1/" not in (tmp_path / "output").read_text() and time.monotonic() < deadline:
            time.sleep(0.2)
        [worker, *_] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(worker), signal.SIGKILL)
        code = process.wait(60)
    assert code == 2, (tmp_path / "errors").read_text()
    lines = [line for line in (tmp_path / "errors").read_text().splitlines() if re.match("error: |Traceback|  ", line)]
    assert len(lines) == 1 and lines[0].startswith("error: ") and "worker" in lines[0] and "num_workers" in lines[0]
