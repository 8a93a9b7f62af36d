"""An image classifier without training, with the checkpoint that a run would have written, and images for it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lit_models.classification.cait import CaiT
from lit_models.classification.network import Classifier
from lit_models.classification.vit import VisionTransformer

NAMES = ["Katze", "dog, hound", "goldfish", "tree frog", "Übergröße", "jack-o'-lantern"]
PREPROCESSING = {
    "image_size": 32,
    "crop": 0.8,
    "crop_mode": "center",
    "interpolation": "bilinear",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.3],
}
SIZES = {"image_size": 32, "patch_size": 8, "dim": 16, "depth": 2, "num_heads": 2}


def build(kind: str = "vit", **settings) -> Classifier:
    """Build ``vit``, ``deit`` (distilled) or ``cait`` with weights that are nowhere neutral."""
    torch.manual_seed(5)
    if kind == "cait":
        network: Classifier = CaiT(len(NAMES), **(SIZES | settings))
    else:
        network = VisionTransformer(len(NAMES), **(SIZES | {"distilled": kind == "deit"} | settings))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return network.eval()


def write_checkpoint(path: Path, network: Classifier, **changes) -> Path:
    """Write a checkpoint; ``changes`` replace its entries, None removes one."""
    checkpoint = {
        "state_dict": {f"network.{name}": weight for name, weight in network.state_dict().items()},
        "heddle": {
            "format": 1,
            "task": "classification",
            "network": type(network).__name__,
            "num_classes": network.num_classes,
            "network_settings": dict(network.settings),
        },
        "ImageNetDataModule": {"name": "tiny", "class_names": NAMES, **PREPROCESSING},
    } | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({key: value for key, value in checkpoint.items() if value is not None}, path)
    return path


def write_image(path: Path, seed: int, size: tuple[int, int] = (60, 48)) -> Path:
    """Write a PNG, width and height ``size``, of large blobs that differ from seed to seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path
