"""A folder of small images, and the settings of classifiers that train on it in a second."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

CONFIGS = Path("experiments/configs/classification")
CLASSES = ("circle", "square", "star")
SIDE = 16

# What makes any of the shipped configs small; everything else stays as it is shipped.
SMALL = {
    "--data.init_args.corpus": "directory",
    "--data.init_args.image_size": str(SIDE),
    "--data.init_args.batch_size": "6",
    "--data.init_args.eval_batch_size": "4",
    "--data.init_args.num_workers": "0",
    "--auto_precision": "false",
    "--trainer.accelerator": "cpu",
    "--wandb": "disabled",
}
_SMALL_NETWORK = {
    "lit_models.classification.VisionTransformer": {
        "image_size": SIDE, "patch_size": 8, "dim": 16, "depth": 2, "num_heads": 2,
    },
    "lit_models.classification.ResNet": {"depth": 8, "width": 4},
    # A map of 4 x 4 that is shifted, and one of a single window.
    "lit_models.classification.SwinTransformer": {
        "dim": 16, "depths": [2, 2], "num_heads": [1, 2], "window_size": 2, "patch_size": 4,
    },
}  # fmt: skip


def write_images(directory: Path, train: int = 8, valid: int = 3, classes: tuple[str, ...] = CLASSES) -> Path:
    """Write so many images of each class, and one more of the first to validate; ``test`` is ``val`` by another name.

    Sizes, formats and shapes differ: what the network sees depends on every step of the pipeline.
    """
    for split, count in (("train", train), ("val", valid)):
        for number, name in enumerate(classes):
            for image in range(count + (split == "val" and number == 0)):
                path = directory / split / name / f"{image}.{('png', 'jpg')[image % 2]}"
                write_image(path, seed=100 * number + image + (split == "val") * 50, size=(24 + 3 * image, 40 - image))
    (directory / "test").symlink_to("val")
    return directory


def write_image(path: Path, seed: int, size: tuple[int, int] = (24, 20)) -> Path:
    """Write large blobs that differ from seed to seed."""
    blobs = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blobs).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def settings_of(config: str) -> dict[str, Any]:
    """Return what a shipped config says."""
    return yaml.safe_load((CONFIGS / config).read_text(encoding="utf-8"))


def small(config: str, data_dir: Path, **changes: str) -> list[str]:
    """Return the words that train a shipped config small; ``changes`` are arguments of the model."""
    network = settings_of(config)["model"]["init_args"]["network"]["class_path"]
    values = {**SMALL, "--data.init_args.data_dir": str(data_dir)}
    values |= {f"--model.init_args.network.init_args.{key}": str(n) for key, n in _SMALL_NETWORK[network].items()}
    values |= {f"--model.init_args.{key}": value for key, value in changes.items()}
    return ["-c", str(CONFIGS / config), *(f"{key}={value}" for key, value in values.items())]
