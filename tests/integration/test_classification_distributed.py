"""Two processes train as one does with twice the batch, and count every image of an evaluation once."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from images import small, write_images

from experiments.__main__ import main


def words_of(data, run_dir, batch_size):
    return [
        *small("synthetic.yaml", data),
        f"--data.init_args.batch_size={batch_size}",
        "--data.init_args.augmentation=datamodules.image.RandAugment",
        "--data.init_args.erasing.probability=0.5",
        "--data.init_args.repeated_augmentation=2",
        # Adam's first step is the sign of a gradient, however small: the order of a sum would decide it.
        "--model.init_args.optimizer=torch.optim.SGD",
        "--model.init_args.schedule=lit_models.optimization.Constant",
        "--model.init_args.schedule.warmup_steps=0",
        "--model.init_args.reference_batch=6",
        "--trainer.callbacks+=record_indices.RecordIndices",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=2",
        "--trainer.log_every_n_steps=1",
        "--test_after_fit=true",
        f"--run_dir={run_dir}",
    ]


def in_two_processes(words):
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "experiments", *words, "--trainer.devices=2", "--trainer.strategy=ddp"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def metrics(run_dir):
    with (run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row.get(name)] for name in rows[0]}


def batches(run_dir, rank, split="train"):
    lines = (run_dir / f"{split}-{rank}.txt").read_text().splitlines()
    return [[int(number) for number in line.split()] for line in lines]


def test_two_processes_equal_one_with_twice_the_batch(tmp_path, capsys):
    data = write_images(tmp_path / "data", valid=4)  # 13 images to validate: 6 in one process, 7 in the other
    two, one = tmp_path / "two", tmp_path / "one"
    done = in_two_processes(["fit", *words_of(data, two, batch_size=6)])
    assert "update" not in done.stderr, "torchmetrics' remark on an empty share"
    assert main(["fit", *words_of(data, one, batch_size=12)]) == 0

    # Row 2 of the list of usual mistakes: the copies of an image go to different processes, in the same step.
    shares, whole = [batches(two, rank) for rank in (0, 1)], batches(one, 0)
    assert shares[0] == shares[1] and all(len({*batch}) == 6 for batch in shares[0])
    assert [sorted(left + right) for left, right in zip(*shares, strict=True)] == [sorted(batch) for batch in whole]

    # Row 3: the rate counts the images of all processes.
    logged, alone = metrics(two), metrics(one)
    assert logged["train/learning_rate"] == alone["train/learning_rate"] == [pytest.approx(2 * 2e-3)] * 2
    assert logged["train/images"] == alone["train/images"] == [12, 24]
    assert logged["train/loss"] == pytest.approx(alone["train/loss"], abs=1e-6)
    states = [torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for path in (one, two)]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-6, rtol=1e-5)

    # Every image counts once, although the shares differ in length.
    evaluated = [sum(batches(two, rank, "val"), []) for rank in (0, 1)]
    assert [len(share) for share in evaluated] == [6, 7] and sorted(sum(evaluated, [])) == [*range(13)]
    capsys.readouterr()
    words = [
        f"--ckpt_path={two / 'checkpoints' / 'last.ckpt'}",
        "--trainer.callbacks=[]",
        f"--run_dir={tmp_path / 'v'}",
    ]
    assert main(["validate", *words, "--trainer.devices=1", "--trainer.strategy=auto"]) == 0
    validated = metrics(tmp_path / "v")
    for name in ("val/accuracy", "val/accuracy_top5"):
        assert validated[name] == [logged[name][-1]] and round(13 * validated[name][0], 4).is_integer()
    assert validated["val/loss"] == pytest.approx([logged["val/loss"][-1]], rel=1e-5)
