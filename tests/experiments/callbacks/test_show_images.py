"""``ShowImages``: the pictures that the network saw, under the right classes."""

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from datamodules.batches import ImageBatch
from experiments import image_plot
from experiments.callbacks import ShowImages
from experiments.callbacks.show_images import spread, target_lines, verdict_lines

NAMES = ["Katze", "dog", "goldfish"]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def pixels(index):
    return torch.full((3, 8, 8), 10 * index + 5, dtype=torch.uint8)


def collate(indices, mixed):
    images = torch.stack([pixels(index) for index in indices]).float() / 255.0
    images = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    labels = torch.tensor([index // 8 for index in indices])
    targets = torch.full((len(indices), 3), 0.1).scatter(1, labels[:, None], 0.8) if mixed else None
    return ImageBatch(images, labels, torch.tensor(indices), targets)


class Data(LightningDataModule):
    class_names, mean, std = NAMES, MEAN, STD

    def train_dataloader(self):
        return DataLoader(range(24), batch_size=6, collate_fn=lambda indices: collate(indices, mixed=True))

    def val_dataloader(self):
        return DataLoader(range(23), batch_size=5, collate_fn=lambda indices: collate(indices, mixed=False))


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))

    def training_step(self, batch, batch_idx):
        return self.network(batch.images).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


@pytest.fixture
def fit(tmp_path, monkeypatch, image_logger):
    """Train two epochs; returns what was drawn, title by title, and the logger."""

    def run(callback, data=None):
        drawn = []
        draw = image_plot.draw_grid

        def remember(thumbnails, title, *rest):
            drawn.append((title, thumbnails))
            return draw(thumbnails, title, *rest)

        monkeypatch.setattr(image_plot, "draw_grid", remember)
        trainer = Trainer(
            max_epochs=2, accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False,
            enable_model_summary=False, enable_progress_bar=False, default_root_dir=tmp_path, num_sanity_val_steps=2,
        )  # fmt: skip
        trainer.loggers = [image_logger]
        module = Module()
        trainer.fit(module, data or Data())
        return drawn, image_logger.logged, module

    return run


def test_grids_of_a_run(fit, tmp_path):
    drawn, logged, module = fit(ShowImages(count=7))
    assert [title.partition(":")[0] for title, _ in drawn] == [
        "Training images as the network sees them",
        "Validation images after step 4",
        "Validation images after step 8",
    ]
    assert [entry[:2] for entry in logged] == [
        ("train/images", ["train_images.png"]),
        *[("val/images", ["val_images.png"])] * 2,
    ]
    assert all(start == b"\x89PNG" for *_, start in logged)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train_images.png", "val_images.png"]
    training, first, last = (thumbnails for _, thumbnails in drawn)
    assert len(training) == 6, "there are no more in the batch"
    for index, thumbnail in enumerate(training):
        assert torch.equal(thumbnail.image, pixels(index)), "normalisation is taken back exactly"
        assert [text for text, _ in thumbnail.lines] == ["80% Katze", ""]
    assert [thumbnail.image[0, 0, 0].item() for thumbnail in first] == [
        thumbnail.image[0, 0, 0].item() for thumbnail in last
    ]
    shown = [(thumbnail.image[0, 0, 0].item() - 5) // 10 for thumbnail in last]
    assert len(set(shown)) == 7 and {index // 8 for index in shown} == {0, 1, 2}, "all classes of the sorted split"
    batch = collate(shown, mixed=False)
    probabilities = module.network(batch.images).softmax(-1)
    for thumbnail, label, row in zip(last, batch.labels.tolist(), probabilities, strict=True):
        number = int(row.argmax())
        assert thumbnail.lines[0][0] == NAMES[label]
        mark = "✓" if number == label else "✗"
        assert thumbnail.lines[1][0] == f"{mark} {row.max():.0%} {NAMES[number]}"
    right = int((probabilities.argmax(-1) == batch.labels).sum())
    assert drawn[-1][0].endswith(f": {right} of 7 right")


def test_training_is_not_disturbed(fit):
    weights = []
    for callback in (ShowImages(4), ShowImages(1)):
        torch.manual_seed(3)
        weights.append((fit(callback)[2].network[1].weight, torch.rand(2)))
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))


@pytest.mark.parametrize(("count", "batches", "size"), [(16, 40, 64), (16, 3, 4), (5, 1, 100), (1, 9, 9), (7, 7, 1)])
def test_images_are_spread_evenly(count, batches, size):
    places = spread(count, batches, size)
    flat = [batch * size + place for batch, inside in sorted(places.items()) for place in inside]
    assert len(flat) == len(set(flat)) == min(count, batches * size)
    assert all(0 <= number < batches * size for number in flat)
    gaps = [later - earlier for earlier, later in zip(flat, flat[1:], strict=False)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_lines():
    assert target_lines(NAMES, 1, None) == ["dog", ""]
    assert target_lines(NAMES, 1, torch.tensor([0.05, 0.65, 0.30])) == ["65% dog", "30% goldfish"]
    assert target_lines(NAMES, 1, torch.tensor([0.05, 0.90, 0.05])) == ["90% dog", ""]
    assert [text for text, _ in verdict_lines(NAMES, 0, 2, 0.5)] == ["Katze", "✗ 50% goldfish"]
    assert verdict_lines(NAMES, -1, 2, 0.5)[0][0] == "class unknown"


def test_mistakes(fit):
    with pytest.raises(ValueError, match="count of at least 1; got 0"):
        ShowImages(0)

    class Sentences(Data):
        class_names = property(lambda self: (_ for _ in ()).throw(AttributeError("no classes")))

    with pytest.raises(ValueError, match="ShowImages goes with datamodules.ImageNetDataModule"):
        fit(ShowImages(), Sentences())
