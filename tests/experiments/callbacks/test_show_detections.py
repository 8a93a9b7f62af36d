"""``ShowDetections``: boxes where the objects are, in pixels of what the network saw."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from datamodules.batches import DetectionBatch
from experiments import object_plot
from experiments.callbacks import ShowDetections
from experiments.object_plot import Mark
from lit_models.detection.postprocess import Detections

NAMES = ["Katze", "dog", "goldfish"]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
# (height, width): sides, and what they shrink by, differ, so that none can stand for another.
FILE, SEEN, PADDED = (48, 36), (24, 12), (30, 40)
BOX = (3.0, 9.0, 9.0, 15.0)  # in what the network sees
IN_FILE = (9.0, 18.0, 27.0, 30.0)


def pixels(number):
    height, width = SEEN
    rows = torch.arange(3 * height * width).reshape(3, height, width)
    return ((rows + 40 * number) % 256).to(torch.uint8)


def make_batch(numbers):
    """Padded, normalised images; one of an odd number has an object, the others have none."""
    images = torch.zeros(len(numbers), 3, *PADDED)
    for image, number in zip(images, numbers, strict=True):
        normal = (pixels(number) / 255.0 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        image[:, : SEEN[0], : SEEN[1]] = normal
    counts = tuple(number % 2 for number in numbers)
    filled = torch.tensor(counts)
    boxes = torch.tensor([0.5, 0.5, 0.5, 0.25]) * filled[:, None, None]
    labels = torch.where(filled == 1, 2, -1)[:, None]
    many = len(numbers)
    return DetectionBatch(images, (SEEN,) * many, boxes, labels, counts, tuple(numbers), (FILE,) * many, sum(counts))


def found(*rows):
    """Detections from (score, label, box) in pixels of the file."""
    scores, labels, boxes = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(torch.tensor(scores), torch.tensor(labels).long(), torch.tensor(boxes).reshape(-1, 4))


class Data(LightningDataModule):
    class_names, category_ids, mean, std = NAMES, [1, 2, 3], MEAN, STD

    def train_dataloader(self):
        return DataLoader(range(9), batch_size=3, collate_fn=make_batch)

    def val_dataloader(self):
        return DataLoader(range(11), batch_size=2, collate_fn=make_batch)


class Module(LightningModule):
    """Finds each image's number as a score."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        return {"detections": [found((0.9, 1, IN_FILE), (number / 100, 0, IN_FILE)) for number in batch.image_ids]}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


@pytest.fixture
def fit(tmp_path, monkeypatch, image_logger):
    """Train two epochs; returns what was drawn, title by title, and what was logged."""

    def run(callback, module=None, data=None):
        drawn, draw = [], object_plot.draw_pairs

        def remember(pairs, title):
            drawn.append((title, pairs))
            return draw(pairs, title)

        monkeypatch.setattr(object_plot, "draw_pairs", remember)
        trainer = Trainer(
            max_epochs=2, accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False,
            enable_model_summary=False, enable_progress_bar=False, default_root_dir=tmp_path, num_sanity_val_steps=2,
        )  # fmt: skip
        trainer.loggers = [image_logger]
        trainer.fit(module or Module(), data or Data())
        return drawn, image_logger.logged

    return run


def test_a_pair_is_in_the_pixels_of_what_the_network_sees():
    trainer, batch = SimpleNamespace(datamodule=Data()), make_batch([4, 7])
    detections = found((0.75, 1, IN_FILE), (0.5, 0, (0.0, 0.0, 36.0, 48.0)), (0.49, 2, IN_FILE))
    pair = ShowDetections(threshold=0.5)._pair(trainer, batch, 1, detections)
    assert pair.name == "image 7" and torch.equal(pair.image, pixels(7)), "without the padding, as it was"
    assert pair.truth == [Mark(list(BOX), 2, "goldfish")]
    assert [(mark.label, mark.text) for mark in pair.found] == [(1, "dog 75%"), (0, "Katze 50%")]
    assert pair.found[0].box == pytest.approx(BOX) and pair.found[1].box == pytest.approx((0, 0, 12, 24))


def test_a_pair_of_an_image_without_objects():
    trainer, batch = SimpleNamespace(datamodule=Data()), make_batch([4, 7])
    nothing = ShowDetections(threshold=0.0)._pair(trainer, batch, 0, found())
    assert (nothing.truth, nothing.found, nothing.name) == ([], [], "image 4")
    assert ShowDetections()._pair(trainer, batch, 1, None).found is None, "nobody looked: the image is drawn once"


def test_pictures_of_a_run(fit, tmp_path):
    drawn, logged = fit(ShowDetections(count=4, threshold=0.06))
    assert [title.partition(":")[0] for title, _ in drawn] == [
        "Training images as the network sees them",
        "Validation images after step 3",
        "Validation images after step 6",
    ]
    assert [entry[:2] for entry in logged] == [
        ("train/objects", ["train_objects.png"]),
        *[("val/objects", ["val_objects.png"])] * 2,
    ]
    assert all(start == b"\x89PNG" for *_, start in logged)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train_objects.png", "val_objects.png"]
    training, first, last = (pairs for _, pairs in drawn)
    assert len(training) == 3, "there are no more in the batch"
    assert all(pair.found is None for pair in training)
    assert [pair.name for pair in first] == [pair.name for pair in last] and len({pair.name for pair in last}) == 4
    for pair in last:
        number = int(pair.name.removeprefix("image "))
        assert torch.equal(pair.image, pixels(number))
        assert len(pair.truth) == number % 2 and len(pair.found) == 1 + (number >= 6)


def test_mistakes(fit):
    for arguments, message in (
        ({"count": 0}, "count of at least 1; got 0"),
        ({"threshold": 2}, "between 0 and 1; got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            ShowDetections(**arguments)

    class Other(Module):
        def validation_step(self, batch, batch_idx):
            return None

    with pytest.raises(ValueError, match="goes with lit_models.DetectionModule"):
        fit(ShowDetections(), Other())

    class Sentences(Data):
        class_names = property(lambda self: (_ for _ in ()).throw(AttributeError("no classes")))

    with pytest.raises(ValueError, match=r"goes with datamodules\.COCODataModule"):
        fit(ShowDetections(), data=Sentences())
