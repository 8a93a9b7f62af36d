"""What a classifier sees and says, for people to look at: grids of training and of validation images."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from datamodules.batches import ImageBatch

TRAIN_FILE, VAL_FILE = "train_images.png", "val_images.png"


class ShowImages(Callback):
    """Draw a few images as a grid: when training begins, and at each validation.

    ``train_images.png`` shows the first training batch as the network sees it, augmented and mixed, with its targets.
    ``val_images.png`` shows validation images, spread over the split and the same each time, with the true and the
    predicted class; a new validation takes the picture's place. Both lie in the run directory and go to W&B.

    Args:
        count: Images of a grid.

    Raises:
        ValueError: If there is no image to show, or the datamodule is not one of image classes.
    """

    def __init__(self, count: int = 16) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"ShowImages needs a count of at least 1; got {count}")
        self.count = count
        self._began = False
        self._places: dict[int, list[int]] = {}
        self._kept: list[tuple[Tensor, Tensor]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the datamodule has what the pictures need."""
        if not all(hasattr(_datamodule(trainer), name) for name in ("class_names", "mean", "std")):
            raise ValueError("ShowImages goes with datamodules.ImageNetDataModule")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: ImageBatch, batch_idx: int
    ) -> None:
        """Draw the first batch of the run."""
        if self._began or not trainer.is_global_zero:
            return
        self._began = True
        from experiments.image_plot import INK, Thumbnail

        names = _datamodule(trainer).class_names
        images = self._pixels(trainer, batch.images[: self.count])
        targets = [None] * len(images) if batch.targets is None else batch.targets[: self.count].float().cpu()
        labels = batch.labels[: self.count].tolist()
        thumbnails = [
            Thumbnail(image, [(line, INK) for line in target_lines(names, label, target)])
            for image, label, target in zip(images, labels, targets, strict=True)
        ]
        self._write(trainer, thumbnails, "Training images as the network sees them", "train/images", TRAIN_FILE)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the images of this batch that will be shown."""
        if trainer.sanity_checking or not trainer.is_global_zero or dataloader_idx:
            return
        if batch_idx == 0:
            self._kept = []
            # A split is sorted by class: the first images alone would all be of the first one.
            self._places = spread(self.count, int(trainer.num_val_batches[0]), len(batch.images))
        places = sorted({min(place, len(batch.images) - 1) for place in self._places.get(batch_idx, [])})
        if places:
            self._kept.append((batch.images[places], batch.labels[places]))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the images, while the weights that are validated are still in place."""
        if not self._kept:
            return
        images, labels = torch.cat([image for image, _ in self._kept]), torch.cat([label for _, label in self._kept])
        self._kept = []
        network: Any = pl_module.network
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            logits = network(images).float()
        binary = pl_module.hparams.get("loss") == "binary_cross_entropy"
        probabilities = logits.sigmoid() if binary else logits.softmax(-1)
        best = probabilities.max(-1)
        from experiments.image_plot import Thumbnail

        names = _datamodule(trainer).class_names
        thumbnails = [
            Thumbnail(image, verdict_lines(names, label, number, probability))
            for image, label, number, probability in zip(
                self._pixels(trainer, images), labels.tolist(), best.indices.tolist(), best.values.tolist(), strict=True
            )
        ]
        right = int((best.indices == labels).sum())
        title = f"Validation images after step {trainer.global_step}: {right} of {len(labels)} right"
        self._write(trainer, thumbnails, title, "val/images", VAL_FILE)

    @staticmethod
    def _pixels(trainer: Trainer, images: Tensor) -> Tensor:
        """Return normalised images as uint8 on the CPU."""
        datamodule = _datamodule(trainer)
        mean, std = (
            torch.tensor(values, device=images.device)[:, None, None] for values in (datamodule.mean, datamodule.std)
        )
        return (images.float() * std + mean).mul(255.0).round().clamp(0.0, 255.0).byte().cpu()

    @staticmethod
    def _write(trainer: Trainer, thumbnails: list[Any], title: str, key: str, file: str) -> None:
        from experiments.attention_plot import save
        from experiments.image_plot import draw_grid

        path = Path(trainer.default_root_dir) / file
        save(draw_grid(thumbnails, title), path)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image(key, [str(path)])


def spread(count: int, batches: int, batch_size: int) -> dict[int, list[int]]:
    """Return batch number -> places in the batch of ``count`` images spread evenly over the batches."""
    total = batches * batch_size
    places: dict[int, list[int]] = {}
    for number in range(min(count, total)):
        batch, place = divmod((2 * number + 1) * total // (2 * min(count, total)), batch_size)
        places.setdefault(batch, []).append(place)
    return places


def target_lines(names: list[str], label: int, target: Tensor | None) -> list[str]:
    """Return the two lines of a training image: its class, or the two that were mixed with their shares.

    Args:
        names: Of the classes.
        label: The image's class.
        target: Class probabilities ``(classes,)``, or None.
    """
    if target is None:
        return [names[label], ""]
    first = target.argmax()
    # What label smoothing gives to every class is no share in the image.
    numbers = [number for number in target.topk(min(2, len(target))).indices.tolist() if target[number] > target.min()]
    return [*(f"{target[number]:.0%} {names[number]}" for number in numbers or [int(first)]), ""][:2]


def verdict_lines(names: list[str], label: int, number: int, probability: float) -> list[tuple[str, str]]:
    """Return the two lines of a validation image with their colors: the true class and the predicted one."""
    from experiments.image_plot import INK, RIGHT, WRONG

    if label < 0:
        return [("class unknown", INK), (f"{names[number]} {probability:.0%}", INK)]
    mark, color = ("✓", RIGHT) if label == number else ("✗", WRONG)
    return [(names[label], INK), (f"{mark} {probability:.0%} {names[number]}", color)]


def _datamodule(trainer: Any) -> Any:
    return trainer.datamodule
