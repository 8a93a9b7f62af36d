"""A detector without training, with the checkpoint that a run would have written."""

from pathlib import Path

import torch

from lit_models.detection.checkpoint import describe_network
from lit_models.detection.detr import DETR

NAMES = ["Katze", "dog, hound", "Übergröße", "tree frog"]
CATEGORY_IDS = [3, 17, 18, 44]
MEAN, STD, SIZES = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3], [64, 96]
SETTINGS = {
    "backbone": "resnet18",
    "dim": 32,
    "num_heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "feed_forward_dim": 48,
    "num_queries": 9,
}


def build(kind: type[DETR] = DETR, **settings) -> DETR:
    """Build a detector whose queries find different things."""
    torch.manual_seed(3)
    network = kind(len(NAMES), **(SETTINGS | settings))
    with torch.no_grad():
        network.class_head.weight.normal_(std=0.6)
        network.class_head.bias.normal_()
        network.box_head.layers[-1].weight.normal_(std=0.3)
    return network.eval()


def write_checkpoint(path: Path, network: DETR | None = None, **changes) -> Path:
    """Write a checkpoint; ``changes`` replace its entries."""
    network = network or build()
    checkpoint = {
        "state_dict": {f"network.{name}": weight for name, weight in network.state_dict().items()},
        "heddle": describe_network(network) | {"class_names": NAMES, "category_ids": CATEGORY_IDS},
        "COCODataModule": {
            "class_names": NAMES, "category_ids": CATEGORY_IDS, "mean": MEAN, "std": STD, "sizes": SIZES,
        },
    } | changes  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)
    return path
