"""A classifier of two matrices and images without files, for the tests of the LightningModule."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules.batches import ImageBatch
from lit_models.classification.network import Classifier, HeadLogits
from lit_models.optimization import Schedule

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


class Tiny(Classifier):
    """Pools patches and reads one or two heads from them."""

    num_layers = 2

    def __init__(self, num_classes: int, *, distilled: bool = False, dim: int = 6, drop_path: float = 0.0) -> None:
        super().__init__()
        self.settings = {"distilled": distilled, "dim": dim, "drop_path": drop_path}
        self.num_features, self.distilled = dim, distilled
        self.stem = nn.Conv2d(3, dim, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, dim) * 0.1)
        self.middle = nn.Linear(dim, dim)
        self.modes: list[bool] = []
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes)
        self.head_distillation = nn.Linear(self.num_features, num_classes) if self.distilled else None

    def forward_features(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        return torch.tanh(self.middle(self.stem(images).flatten(2).mean(2)) + self.token[0])

    def forward_head(self, features: Tensor) -> HeadLogits:
        second = None if self.head_distillation is None else self.head_distillation(features)
        return HeadLogits(self.head(features), second)

    def forward_intermediates(self, images: Tensor, layers: Any = None) -> list[Tensor]:
        return []

    def no_weight_decay(self) -> set[str]:
        return {"token"}

    def layer_of(self, name: str) -> int:
        return {"stem": 0, "token": 0, "middle": 1}.get(name.split(".")[0], 3)


class ImageNetDataModule(pl.LightningDataModule):
    """Hands out the batches it is given; named as the real one, under whose name checkpoints keep the classes."""

    mean, std, name, image_size = MEAN, STD, "tiny", 8

    def __init__(self, train: Any = None, valid: Any = None, classes: Any = 7) -> None:
        super().__init__()
        train = train or [draw(4, first=4 * n) for n in range(4)]
        self.train, self.valid = train, train if valid is None else valid
        self.class_names = [f"class {n}" for n in range(classes)] if isinstance(classes, int) else list(classes)
        self.num_classes, self.batch_size = len(self.class_names), len(train[0].images)
        self.steps_per_epoch = len(train)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=None, collate_fn=lambda batch: batch)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.valid, batch_size=None, collate_fn=lambda batch: batch)

    test_dataloader = predict_dataloader = val_dataloader

    def path_of(self, split: str, index: int) -> str:
        return f"{split}/{index}.jpg"

    def state_dict(self) -> dict[str, Any]:
        crop = {"crop": 0.875, "crop_mode": "center", "interpolation": "bicubic"}
        statistics = {"mean": list(self.mean), "std": list(self.std), "image_size": self.image_size}
        return {"name": self.name, "class_names": self.class_names, **crop, **statistics}


class Written(Schedule):
    """Factors that a test writes down."""

    def __init__(self, factors: list[float]) -> None:
        self.factors = factors

    def __call__(self, step: int) -> float:
        return self.factors[min(step, len(self.factors) - 1)]


def draw(size: int, classes: int = 7, mixed: bool = False, first: int = 0, side: int = 8) -> ImageBatch:
    """Random images and labels, with soft targets if they are mixed."""
    targets = torch.rand(size, classes).softmax(1) if mixed else None
    labels = torch.randint(classes, (size,))
    return ImageBatch(torch.randn(size, 3, side, side), labels, torch.arange(first, first + size), targets)


def trainer(tmp_path: Any = None, **options: Any) -> pl.Trainer:
    """Quiet, on the CPU, one step."""
    defaults = {"max_steps": 1, "max_epochs": -1, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    return pl.Trainer(default_root_dir=tmp_path, **{**defaults, **quiet, "num_sanity_val_steps": 0, **options})


def plain_sgd(groups: Any) -> torch.optim.Optimizer:
    """Steps by the gradient itself."""
    return torch.optim.SGD(groups, lr=1.0)
