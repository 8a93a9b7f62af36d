"""A directory of small scenes in COCO's format, and the settings of detectors that train on it in a second."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

CONFIGS = Path("experiments/configs/detection")
CATEGORIES = {2: "red", 5: "blue"}
_COLORS = {2: (220, 40, 40), 5: (40, 60, 220)}

# What makes any of the shipped configs small; everything else stays as it is shipped.
SMALL = {
    "--data.init_args.corpus": "directory",
    "--data.init_args.train_images": "train2017",
    "--data.init_args.valid_images": "val2017",
    "--data.init_args.test_images": "val2017",
    "--data.init_args.sizes": "[32, 40]",
    "--data.init_args.eval_size": "32",
    "--data.init_args.max_size": "56",
    "--data.init_args.crop_from": "[40, 48]",
    "--data.init_args.crop_sides": "[32, 44]",
    "--data.init_args.batch_size": "4",
    "--data.init_args.eval_batch_size": "3",
    "--data.init_args.num_workers": "0",
    "--auto_precision": "false",
    "--trainer.accelerator": "cpu",
    "--wandb": "disabled",
}
BACKBONE = {
    "type": "ClassifierBackbone",
    "network": "ResNet",
    "network_settings": {"depth": 8, "width": 4, "stages": 3, "stem_stride": 2},
}
_NETWORK = {
    "backbone": json.dumps(BACKBONE),
    "dim": "16",
    "num_heads": "2",
    "encoder_layers": "1",
    "decoder_layers": "2",
    "feed_forward_dim": "16",
    "num_queries": "5",
}


def write_scenes(
    directory: Path, train: int = 17, valid: int = 7, categories: dict[int, str] | None = None, side: int | None = None
) -> Path:
    """Write scenes of none to three rectangles; sizes differ unless ``side`` is given.

    The first image of each split has no objects, and every fifth has a crowd beside its own.
    """
    for split, count in (("train2017", train), ("val2017", valid)):
        _write_split(directory, split, count, categories or CATEGORIES, side)
    return directory


def _write_split(directory: Path, split: str, count: int, categories: dict[int, str], side: int | None) -> None:
    random = np.random.default_rng(len(split))
    content: dict[str, list[Any]] = {"images": [], "annotations": []}
    content["categories"] = [{"id": number, "name": name} for number, name in categories.items()]
    (directory / split).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        height, width = (side, side) if side else random.integers(36, 56, 2).tolist()
        pixels = random.integers(90, 120, (height, width, 3), dtype=np.uint8)
        for place in range(number % 4):
            kind = list(categories)[(number + place) % len(categories)]
            left, top = place * width // 3 + int(random.integers(0, 3)), int(random.integers(0, height // 2))
            right, bottom = left + width // 4, top + height // 3
            pixels[top:bottom, left:right] = _COLORS.get(kind, (200, 200, 40))
            box = [left, top, right - left, bottom - top]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": 3 * number + 1,
                    "category_id": kind,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(number % 5 == 2 and place == 1),
                }
            )
        Image.fromarray(pixels).save(directory / split / f"{number}.png")
        content["images"].append({"id": 3 * number + 1, "file_name": f"{number}.png", "width": width, "height": height})
    (directory / "annotations").mkdir(exist_ok=True)
    (directory / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def settings_of(config: str) -> dict[str, Any]:
    """Return what a shipped config says."""
    return yaml.safe_load((CONFIGS / config).read_text(encoding="utf-8"))


def small(config: str, data_dir: Path, **changes: str) -> list[str]:
    """Return the words that train a shipped config small; ``changes`` are arguments of the model."""
    values = {**SMALL, "--data.init_args.data_dir": str(data_dir)}
    values |= {f"--model.init_args.network.init_args.{key}": value for key, value in _NETWORK.items()}
    values |= {f"--model.init_args.{key}": value for key, value in changes.items()}
    return ["-c", str(CONFIGS / config), *(f"{key}={value}" for key, value in values.items())]
