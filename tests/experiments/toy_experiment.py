"""A module and its data, small enough to train within a second, for the tests of the command line."""

import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True)
class ToyConfig:
    dim: int = 4
    norm_order: Literal["pre", "post"] = "pre"
    dropout: float = 0.25
    sizes: tuple[int, ...] = (1, 2)


class ToyBatch(NamedTuple):
    values: Tensor
    indices: Tensor


class ToyModule(LightningModule):
    def __init__(
        self,
        network: ToyConfig = ToyConfig(),
        learning_rate: float = 0.1,
        warmup_steps: int | None = None,
        nan_at_step: int | None = None,
        signal_at_step: int | None = None,
        signal_in_validation: bool = False,
        signal_name: str = "SIGTERM",
        signals: int = 1,
        fail: str | None = None,
    ) -> None:
        super().__init__()
        if learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive; got {learning_rate}")
        self.config = network
        self.learning_rate = learning_rate
        self.nan_at_step, self.signal_at_step, self.fail = nan_at_step, signal_at_step, fail
        self.signals = signals
        self.signal_in_validation, self.signal_name = signal_in_validation, signal_name
        self.network = nn.Module()
        self.tokens_seen = 0
        self.seen: list[list[int]] = []
        self.validated_with: list[Tensor] = []

    def configure_model(self) -> None:
        if not list(self.network.parameters()):
            dim = self.config.dim
            self.network = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(self.config.dropout), nn.Linear(dim, 1))

    def training_step(self, batch: ToyBatch, batch_idx: int) -> Tensor:
        if self.fail == "step":
            raise ValueError("a defect of the code")
        step = self.global_step + 1
        self.seen.append(batch.indices.tolist())
        self.tokens_seen += batch.values.numel()
        loss = self.network(batch.values).square().mean()
        for _ in range(self.signals if step == self.signal_at_step and not self.signal_in_validation else 0):
            os.kill(os.getpid(), getattr(signal, self.signal_name))
        if step == self.nan_at_step:
            loss = loss * torch.nan
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: ToyBatch, batch_idx: int) -> None:
        self.validated_with.append(next(self.network.parameters()).detach().clone())
        if self.signal_in_validation and self.global_step == self.signal_at_step:
            os.kill(os.getpid(), getattr(signal, self.signal_name))
        torch.rand(1)  # a search that draws numbers of its own
        self.log("val/loss", self.network(batch.values).square().mean(), batch_size=1)

    def test_step(self, batch: ToyBatch, batch_idx: int) -> None:
        self.log("test/loss", self.network(batch.values).square().mean(), batch_size=1)

    def predict_step(self, batch: ToyBatch, batch_idx: int) -> list[str]:
        return [f"line {index}" for index in batch.indices.tolist()]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["heddle"] = {"settings": {"network": asdict(self.config)}, "tokens_seen": self.tokens_seen}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        stored = checkpoint["heddle"]["settings"]["network"]["dim"]
        if stored != self.config.dim:
            raise ValueError(f"the checkpoint has network.dim={stored}, the config {self.config.dim}")


class ToyItems(Dataset):
    def __init__(self, size: int, dim: int) -> None:
        self.values = torch.randn(size, dim, generator=torch.Generator().manual_seed(7))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.values[index], index


class ResumableLoader:
    """Batches in the order of (seed, epoch); its state is the position."""

    def __init__(self, items: ToyItems, batch_size: int) -> None:
        self.items, self.batch_size = items, batch_size
        self.epoch = self.position = 0

    def __len__(self) -> int:
        return len(self.items) // self.batch_size

    def __iter__(self):
        order = torch.randperm(len(self.items), generator=torch.Generator().manual_seed(self.epoch)).tolist()
        while self.position < len(self):
            rows = order[self.position * self.batch_size : (self.position + 1) * self.batch_size]
            self.position += 1
            yield collate([self.items[row] for row in rows])
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


class ToyData(LightningDataModule):
    def __init__(self, batch_size: int = 4, size: int = 40, dim: int = 4, root: str | None = None) -> None:
        super().__init__()
        self.batch_size, self.size, self.dim, self.root = batch_size, size, dim, root

    def setup(self, stage: str) -> None:
        if self.root is not None:
            with open(self.root, encoding="utf-8"):
                pass
        self.items = ToyItems(self.size, self.dim)

    def train_dataloader(self) -> ResumableLoader:
        return ResumableLoader(self.items, self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.items, batch_size=self.size // 2, collate_fn=collate)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader


def collate(rows: list[tuple[Tensor, int]]) -> ToyBatch:
    return ToyBatch(torch.stack([row[0] for row in rows]), torch.tensor([row[1] for row in rows]))


def write_config(path: Path, **changes: Any) -> Path:
    """Write a config; ``changes`` are laid over it, with ``__`` for a dot."""
    config: dict[str, Any] = {
        "model": {"class_path": "toy_experiment.ToyModule", "init_args": {"network": {"dim": 4}}},
        "data": {"class_path": "toy_experiment.ToyData", "init_args": {"batch_size": 4}},
        "trainer": {
            "max_steps": 12,
            "val_check_interval": 5,
            "log_every_n_steps": 2,
            "accelerator": "cpu",
            "enable_model_summary": False,
        },
        "wandb": "disabled",
    }
    for key, value in changes.items():
        *sections, last = key.split("__")
        section = config
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


class Diverge(Callback):
    """Makes the weights worse with each step."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.add_(1.0)
