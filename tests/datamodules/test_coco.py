import json
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from datamodules import COCODataModule, DetectionBatch
from datamodules.image.decode import ImageError

SMALL = {"sizes": (32, 40), "max_size": 64, "crop_from": (40, 48), "crop_sides": (24, 40)}


def write_split(directory: Path, images: str, file: str, count: int, seed: int, categories=((1, "cat"), (5, "dog"))):
    generator = np.random.default_rng(seed)
    (directory / images).mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [{"id": number, "name": name} for number, name in categories]
    for number in range(count):
        height, width = generator.integers(30, 70, 2).tolist()
        pixels = generator.integers(1, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(directory / images / f"{number}.png")
        content["images"].append({"id": 7 * number, "file_name": f"{number}.png", "width": width, "height": height})
        for place in range(number % 4):
            box = [width * 0.2 * place, height * 0.3, width * 0.2, height * 0.5]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]),
                    "image_id": 7 * number,
                    "category_id": categories[place % 2][0],
                    "bbox": box,
                    "area": 10.0,
                    "iscrowd": int(place == 2),
                }
            )
    (directory / file).parent.mkdir(exist_ok=True)
    (directory / file).write_text(json.dumps(content))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """COCO's layout: 11 images for training and 6 for validation, with 0 to 2 objects and a crowd here and there."""
    write_split(tmp_path / "pets", "train2017", "annotations/instances_train2017.json", 11, 0)
    write_split(tmp_path / "pets", "val2017", "annotations/instances_val2017.json", 6, 1)
    return tmp_path / "pets"


def make(directory: Path, stage: str | None = "fit", **settings: Any) -> COCODataModule:
    module = COCODataModule(str(directory), **{"batch_size": 3, **SMALL, **settings})
    if stage:
        module.prepare_data()
        module.setup(stage)
    return module


def plain(batch: DetectionBatch) -> list[Any]:
    return [field.tolist() if isinstance(field, torch.Tensor) else field for field in batch]


def test_the_layout_of_coco_needs_no_settings(pets):
    module = make(pets)
    assert module.class_names == ["cat", "dog"] and module.category_ids == [1, 5] and module.num_classes == 2
    assert module.name == "pets" and module.steps_per_epoch == 3 and module.batch_size == 3
    batches = list(module.train_dataloader())
    assert len(batches) == 3 and all(batch.step_boxes == sum(batch.counts) for batch in batches)
    assert max(max(batch.counts) for batch in batches) == 2  # the crowds are left out
    ids = [image for batch in module.val_dataloader() for image in batch.image_ids]
    assert ids == [0, 7, 14, 21, 28, 35]
    truth = module.ground_truth("valid")
    assert sum(row["iscrowd"] for row in truth["annotations"]) == 1
    assert Path(module.path_of("valid", 14)) == pets / "val2017" / "2.png"


def test_a_json_beside_its_images_is_found(tmp_path):
    for split, count in (("train", 6), ("valid", 4), ("test", 5)):
        write_split(tmp_path, split, f"{split}/_annotations.coco.json", count, count)
    module = make(tmp_path, train_images="train", valid_images="valid", test_images="test")
    module.setup("test")
    assert [len(list(loader)) for loader in (module.val_dataloader(), module.test_dataloader())] == [2, 2]
    with pytest.raises(
        FileNotFoundError, match=r"no annotations of .*/none: neither .*instances_none\.json nor .*none/"
    ):
        make(tmp_path, train_images="none", valid_images="valid")
    elsewhere = make(
        tmp_path, train_images="train", valid_images="test", valid_annotations="valid/_annotations.coco.json"
    )
    assert len(elsewhere.ground_truth("valid")["images"]) == 4


@pytest.mark.parametrize("fast", [False, True])
def test_the_device_normalises_and_padding_stays_zero(pets, fast):
    module = make(pets, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), fast=fast)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    batch = next(iter(module.train_dataloader()))
    assert len(set(batch.sizes)) > 1
    done = module.on_after_batch_transfer(batch, 0)
    assert done.images.dtype == torch.float32 and done.images.is_contiguous() and done.labels is batch.labels
    for before, image, (height, width) in zip(batch.images, done.images, batch.sizes, strict=True):
        expected = (before[:, :height, :width].double() / 255 - mean) / std
        torch.testing.assert_close(image[:, :height, :width].double(), expected, rtol=0, atol=1e-5)
        assert (image[:, height:] == 0).all() and (image[:, :, width:] == 0).all()


@pytest.mark.parametrize("settings", [{}, {"aspect_groups": 2, "one_scale": True, "fast": True, "max_size": 400}])
def test_batches_depend_on_seed_and_epoch_alone(pets, settings):
    loader = make(pets, **settings).train_dataloader()
    first = [plain(batch) for _ in range(2) for batch in loader]
    again = make(pets, num_workers=2, **settings).train_dataloader()
    assert first == [plain(batch) for _ in range(2) for batch in again]
    other = make(pets, seed=1, **settings).train_dataloader()
    assert first[:3] != [plain(batch) for batch in other] and first[:3] != first[3:]
    if settings:
        assert all(len({min(size) for size in batch[1]}) == 1 for batch in first)


def test_the_state_says_what_a_checkpoint_needs(pets, tmp_path):
    module = make(pets)
    state = module.state_dict()
    assert state == {
        "name": "pets",
        "class_names": ["cat", "dog"],
        "category_ids": [1, 5],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "sizes": [40, 64],
    }
    torch.save(state, tmp_path / "state.pt")
    make(pets).load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    early = make(pets, stage=None)
    early.load_state_dict(state | {"category_ids": [1, 6]})
    with pytest.raises(ValueError, match=r"the checkpoint and .*pets differ in their categories \(2 and 2\): .*6 dog"):
        early.setup("fit")
    with pytest.raises(ValueError, match=r"differ in their categories \(3 and 2\): only in the checkpoint: 9 cow"):
        module.load_state_dict(state | {"class_names": ["cat", "dog", "cow"], "category_ids": [1, 5, 9]})
    assert make(pets, ids="coco").class_names == ["N/A", "cat", "N/A", "N/A", "N/A", "dog"]


def test_splits_of_other_classes_are_refused(pets):
    write_split(pets, "val2017", "annotations/instances_val2017.json", 6, 1, ((1, "cat"), (5, "hog")))
    with pytest.raises(ValueError, match=r"train2017\.json and .*val2017\.json differ in their categories .*5 hog"):
        make(pets)


class Steps(pl.LightningModule):
    """Compares ``step_boxes`` with what the micro-batches of each optimiser step really held."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.held, self.said, self.steps, self.ids = 0, set(), [], []

    def training_step(self, batch, batch_idx):
        assert batch.images.dtype == torch.float32
        self.held += sum(batch.counts)
        self.said.add(batch.step_boxes)
        self.ids.append(batch.image_ids)
        return self.weight * 1.0

    def on_before_optimizer_step(self, optimizer):
        self.steps.append((self.held, self.said))
        self.held, self.said = 0, set()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data, directory, checkpoint=None, **settings):
    module = Steps()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        default_root_dir=directory,
        **settings,
    )
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False if checkpoint else None)
    return module, trainer


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("limit", "steps"), [(1.0, 8), (3, 8)])
def test_a_trainer_gets_the_boxes_of_each_optimiser_step(pets, tmp_path, limit, steps):
    data = make(pets, stage=None, batch_size=2)  # 5 batches an epoch
    module, _ = fit(data, tmp_path, max_steps=steps, accumulate_grad_batches=2, limit_train_batches=limit)
    assert len(module.steps) == steps
    assert all(said == {held} for held, said in module.steps), module.steps
    assert len({held for held, _ in module.steps}) > 2


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_training_resumes_in_mid_epoch_exactly(pets, tmp_path):
    settings = {"accumulate_grad_batches": 2}
    whole, _ = fit(make(pets, stage=None, batch_size=2), tmp_path, max_steps=6, **settings)
    first, trainer = fit(make(pets, stage=None, batch_size=2), tmp_path, max_steps=4, **settings)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    second, _ = fit(make(pets, stage=None, batch_size=2), tmp_path, tmp_path / "it.ckpt", max_steps=6, **settings)
    assert first.ids + second.ids == whole.ids
    assert first.steps + second.steps == whole.steps


def test_bad_images_are_named_or_skipped(pets):
    (pets / "val2017" / "3.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"^[^\n]*3\.png is not an image that Pillow can read$"):
        list(make(pets, num_workers=1).val_dataloader())
    module = make(pets, on_bad_image="skip")
    with pytest.warns(UserWarning, match=r"1 images were skipped: .*3\.png is not an image"):
        ids = [image for batch in module.val_dataloader() for image in batch.image_ids]
    assert ids == [0, 7, 14, 28, 35]


def test_images_without_annotations_can_be_predicted_only(pets):
    json_file = pets / "annotations" / "instances_val2017.json"
    content = json.loads(json_file.read_text())
    del content["annotations"]
    (pets / "annotations" / "image_info_val2017.json").write_text(json.dumps(content))
    module = make(pets, "predict", test_annotations="annotations/image_info_val2017.json")
    batches = list(module.predict_dataloader())
    assert [image for batch in batches for image in batch.image_ids] == [0, 7, 14, 21, 28, 35]
    assert not any(sum(batch.counts) for batch in batches) and module.class_names == ["cat", "dog"]
    with pytest.raises(ValueError, match=r"image_info_val2017\.json has no list of annotations"):
        module.setup("test")
    module.setup("fit")
    assert len(module.ground_truth("valid")["annotations"]) > 0


def test_training_without_any_object_is_said(pets):
    json_file = pets / "annotations" / "instances_train2017.json"
    json_file.write_text(json.dumps(json.loads(json_file.read_text()) | {"annotations": []}))
    with pytest.warns(UserWarning, match=r"instances_train2017\.json has no object to train on"):
        make(pets)


def test_missing_files_are_named_before_training(pets):
    (pets / "train2017" / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 11 images of .*train2017\.json are not in .*train2017: 3\.png"):
        make(pets)


def test_the_built_in_corpus(tmp_path, monkeypatch):
    from datamodules.synthetic import detection

    write = detection.write_corpus
    monkeypatch.setattr(detection, "write_corpus", lambda directory: write(directory, train=5, validation=2))
    module = COCODataModule(str(tmp_path / "it"), corpus="synthetic", sizes=(64,), max_size=96)
    module.prepare_data()
    module.setup("fit")
    assert module.class_names == list(detection.CLASS_NAMES) and module.name == "synthetic"
    assert [len(list(loader)) for loader in (module.train_dataloader(), module.val_dataloader())] == [2, 1]


def test_coco_is_fetched_for_the_stage(tmp_path, monkeypatch):
    from datamodules import coco_download

    asked = []
    monkeypatch.setattr(coco_download, "fetch_coco", lambda directory, parts: asked.append((directory, list(parts))))
    COCODataModule(str(tmp_path), corpus="coco2017").prepare_data()
    assert asked == [(tmp_path, ["train2017", "val2017", "annotations"])]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data_dir": None}, "no data_dir: name the directory"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"max_size": 30}, "max_size=30 must be at least 40"),
        ({"eval_size": 100}, "max_size=64 must be at least 100"),
        ({"sizes": ()}, r"sizes=\[\] must be one or more"),
    ],
)
def test_contradictions_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        COCODataModule(**{"data_dir": "x", **SMALL, **settings})


def test_the_command_line_reads_it():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(COCODataModule, "data")
    parsed = parser.parse_args(["--data.data_dir=x", "--data.sizes=[64, 96]", "--data.crop_sides=[48, 64]"])
    module = parser.instantiate(parsed).data
    assert module.training_geometry.sizes == (64, 96) and module.evaluation_geometry.size == 96
    assert module.training_geometry.crop_sides == (48, 64)


def test_readers_can_be_sent_to_other_processes(pets):
    reader = make(pets).train_dataloader().reader
    copy = pickle.loads(pickle.dumps(reader))
    assert plain(copy.read_batch(np.arange(3), 1)) == plain(reader.read_batch(np.arange(3), 1))
