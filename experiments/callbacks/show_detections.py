"""What a detector sees and finds, for people to look at: validation images with their objects and what was found."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from datamodules.batches import DetectionBatch
from experiments.callbacks.show_images import spread
from lit_models.detection.boxes import cxcywh_to_xyxy

TRAIN_FILE, VAL_FILE = "train_objects.png", "val_objects.png"


class ShowDetections(Callback):
    """Draw a few validation images, each with its objects and again with what was found, at each validation.

    ``val_objects.png`` shows images that are spread over the split and the same each time; a new validation takes the
    picture's place. Detections below the threshold are left out. ``train_objects.png`` shows images of the first
    training batch as the network sees them, with the boxes it learns. Both lie in the run directory and go to W&B.

    Args:
        count: Images to show.
        threshold: Least score of a detection that is drawn, in [0, 1].

    Raises:
        ValueError: If a number is impossible, or module and data are not those of detection.
    """

    def __init__(self, count: int = 8, threshold: float = 0.5) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"ShowDetections needs a count of at least 1; got {count}")
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"ShowDetections needs a threshold between 0 and 1; got {threshold}")
        self.count, self.threshold = count, threshold
        self._began = False
        self._places: dict[int, list[int]] = {}
        self._kept: list[Any] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the datamodule has what the pictures need."""
        if not all(hasattr(_datamodule(trainer), name) for name in ("category_ids", "class_names", "mean", "std")):
            raise ValueError("ShowDetections goes with datamodules.COCODataModule")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: DetectionBatch, batch_idx: int
    ) -> None:
        """Draw the first batch of the run."""
        if self._began or not trainer.is_global_zero:
            return
        self._began = True
        places = range(min(self.count, len(batch.counts)))
        pairs = [self._pair(trainer, batch, place, None) for place in places]
        self._write(trainer, pairs, "Training images as the network sees them", "train/objects", TRAIN_FILE)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: DetectionBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the images of this batch that will be shown, and what was found in them."""
        if trainer.sanity_checking or not trainer.is_global_zero or dataloader_idx:
            return
        if not isinstance(outputs, dict) or "detections" not in outputs:
            raise ValueError("ShowDetections goes with lit_models.DetectionModule")
        if batch_idx == 0:
            self._kept = []
            self._places = spread(self.count, int(trainer.num_val_batches[0]), len(batch.counts))
        for place in sorted({min(place, len(batch.counts) - 1) for place in self._places.get(batch_idx, [])}):
            self._kept.append(self._pair(trainer, batch, place, outputs["detections"][place]))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the images."""
        pairs, self._kept = self._kept, []
        if pairs:
            title = f"Validation images after step {trainer.global_step}: what is there, and what was found"
            self._write(trainer, pairs, title, "val/objects", VAL_FILE)

    def _pair(self, trainer: Trainer, batch: DetectionBatch, place: int, found: Any) -> Any:
        """Return an image of a batch with its objects and, if there are any, detections."""
        from experiments.object_plot import Mark, Pair

        names = _datamodule(trainer).class_names
        height, width = batch.sizes[place]
        count = batch.counts[place]
        corners = cxcywh_to_xyxy(batch.boxes[place, :count]).cpu() * torch.tensor([width, height] * 2)
        labels = batch.labels[place, :count].tolist()
        truth = [Mark(box, label, names[label]) for box, label in zip(corners.tolist(), labels, strict=True)]
        marks = []
        if found is not None:
            rows, columns = batch.original_sizes[place]
            boxes = found.boxes.float().cpu() * torch.tensor([width / columns, height / rows] * 2)
            for score, label, box in zip(found.scores.tolist(), found.labels.tolist(), boxes.tolist(), strict=True):
                if score >= self.threshold:
                    marks.append(Mark(box, label, f"{names[label]} {score:.0%}"))
        image = self._pixels(trainer, batch.images[place, :, :height, :width])
        return Pair(image, truth, None if found is None else marks, f"image {batch.image_ids[place]}")

    @staticmethod
    def _pixels(trainer: Trainer, image: Tensor) -> Tensor:
        """Return a normalised image as uint8 on the CPU."""
        datamodule = _datamodule(trainer)
        mean, std = (torch.tensor(values)[:, None, None] for values in (datamodule.mean, datamodule.std))
        return (image.float().cpu() * std + mean).mul(255.0).round().clamp(0.0, 255.0).byte()

    @staticmethod
    def _write(trainer: Trainer, pairs: list[Any], title: str, key: str, file: str) -> None:
        from experiments.attention_plot import save
        from experiments.object_plot import draw_pairs

        path = Path(trainer.default_root_dir) / file
        save(draw_pairs(pairs, title), path)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image(key, [str(path)])


def _datamodule(trainer: Any) -> Any:
    return trainer.datamodule
