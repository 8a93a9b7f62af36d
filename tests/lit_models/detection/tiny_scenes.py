"""A detector of a few weights and batches without files, for the tests of the LightningModule."""

from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from detection_samples import boxes_in_image
from tiny_detectors import SIZES, Patches
from torch.utils.data import DataLoader

from datamodules.batches import DetectionBatch
from lit_models.detection import DETR, ConditionalDETR, Detector

CLASSES = ("cat", "dog", "hen")
SIDE = 24


def network(num_classes: int, kind: type[DETR] = DETR, **settings: Any) -> Detector:
    """A detector without dropout on patches, which see nothing of other images or of padding."""
    return kind(num_classes, backbone=Patches(), **{**SIZES, "dropout": 0.0, "decoder_layers": 2, **settings})


conditional = partial(network, kind=ConditionalDETR, groups=2)


def draw(counts: tuple[int, ...], first: int = 0, classes: int = len(CLASSES)) -> DetectionBatch:
    """Random images of one size with so many objects each; files were twice as large."""
    most, sizes = max(counts), ((SIDE, SIDE),) * len(counts)
    boxes, labels = boxes_in_image(len(counts), most), torch.randint(classes, (len(counts), most))
    for image, count in enumerate(counts):
        boxes[image, count:], labels[image, count:] = 0.0, -1
    images = torch.randn(len(counts), 3, SIDE, SIDE)
    ids = tuple(range(first, first + len(counts)))
    files = ((2 * SIDE, 2 * SIDE),) * len(counts)
    return DetectionBatch(images, sizes, boxes, labels, counts, ids, files, sum(counts), len(counts))


def of_one_step(*parts: DetectionBatch) -> list[DetectionBatch]:
    """Micro-batches that know the images and objects of the whole step."""
    boxes, images = sum(part.step_boxes for part in parts), sum(part.step_images for part in parts)
    return [part._replace(step_boxes=boxes, step_images=images) for part in parts]


class COCODataModule(pl.LightningDataModule):
    """Hands out the batches it is given; named as the real one, under whose name checkpoints keep the classes."""

    name, mean, std = "tiny", (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)

    def __init__(self, *train: DetectionBatch, classes: tuple[str, ...] = CLASSES) -> None:
        super().__init__()
        self.batches = list(train)
        self.class_names, self.num_classes = list(classes), len(classes)
        self.category_ids = [10 * (number + 1) for number in range(len(classes))]
        self.batch_size = len(train[0].counts)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None, collate_fn=lambda batch: batch)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    def ground_truth(self, split: str) -> dict[str, Any]:
        assert split in ("valid", "test")
        annotations: list[dict[str, Any]] = []
        for batch in self.batches:
            for image, count in enumerate(batch.counts):
                height, width = batch.original_sizes[image]
                for box, label in zip(batch.boxes[image, :count], batch.labels[image, :count].tolist(), strict=True):
                    corner = (box[:2] - box[2:] / 2) * torch.tensor([width, height])
                    sides = box[2:] * torch.tensor([width, height])
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": batch.image_ids[image],
                            "category_id": self.category_ids[label],
                            "bbox": torch.cat((corner, sides)).tolist(),
                        }
                    )
        categories = [{"id": n, "name": name} for n, name in zip(self.category_ids, self.class_names, strict=True)]
        images = [{"id": number} for batch in self.batches for number in batch.image_ids]
        return {"images": images, "annotations": annotations, "categories": categories}

    def state_dict(self) -> dict[str, Any]:
        classes = {"class_names": self.class_names, "category_ids": self.category_ids}
        return {"name": self.name, **classes, "mean": list(self.mean), "std": list(self.std), "sizes": [SIDE, SIDE]}


def trainer(tmp_path: Any = None, **options: Any) -> pl.Trainer:
    """Quiet, on the CPU, one step."""
    defaults = {"max_steps": 1, "max_epochs": -1, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    return pl.Trainer(default_root_dir=tmp_path, **{**defaults, **quiet, "num_sanity_val_steps": 0, **options})
