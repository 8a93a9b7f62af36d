import os
import pickle
import signal
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from datamodules import ImageBatch, ImageNetDataModule
from datamodules.image import Mixing, RandAugment, RandomErasing, ThreeAugment, TrivialAugment
from datamodules.image.decode import EncodedImage, ImageError
from datamodules.image.evaluation import IMAGENET_MEAN, IMAGENET_STD
from datamodules.image.host_transform import HostTransform
from datamodules.image.shards import write_shards

COLORS = {"blue": (0, 0, 220), "green": (0, 200, 0), "red": (230, 0, 0)}


@pytest.fixture
def colors(tmp_path: Path) -> Path:
    """Three classes of small noisy images, told apart by their colour: 14 each for training, 4 for validation."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 14), ("val", 4)):
        for name, color in COLORS.items():
            (tmp_path / "colors" / split / name).mkdir(parents=True)
            for number in range(count):
                noise = generator.integers(0, 25, (24, 30, 3)) + np.array(color)
                image = Image.fromarray(noise.astype(np.uint8))
                image.save(tmp_path / "colors" / split / name / f"{number:02d}.png")
    return tmp_path / "colors"


def make(directory: Path, stage: str | None = "fit", **settings: Any) -> ImageNetDataModule:
    module = ImageNetDataModule(str(directory), **{"image_size": 16, "batch_size": 8, **settings})
    if stage:
        module.prepare_data()
        module.setup(stage)
    return module


def plain(batch: ImageBatch) -> list[Any]:
    return [field.tolist() if isinstance(field, torch.Tensor) else field for field in batch]


def passes(module: ImageNetDataModule, count: int = 1) -> list[list[Any]]:
    loader = module.train_dataloader()
    return [plain(batch) for _ in range(count) for batch in loader]


def test_a_batch_holds_what_it_promises(colors: Path):
    module = make(colors)
    assert module.class_names == ["blue", "green", "red"] and module.num_classes == 3
    assert module.steps_per_epoch == 42 // 8 and module.name == "colors"
    indices = set()
    for batch in module.train_dataloader():
        assert batch.images.shape == (8, 3, 16, 16) and batch.images.dtype == torch.uint8
        assert batch.labels.dtype == batch.indices.dtype == torch.int64
        assert len(set(batch.seeds)) == 8 and batch.epoch == 0 and batch.targets is None
        for image, label, index in zip(batch.images, batch.labels.tolist(), batch.indices.tolist(), strict=True):
            name = module.class_names[label]
            assert Path(module.path_of("train", index)).parent == colors / "train" / name
            expected = torch.tensor(COLORS[name]) + 12
            assert (image.double().mean((1, 2)) - expected).abs().max() < 6
        indices |= set(batch.indices.tolist())
    assert len(indices) == 40


def test_evaluation_visits_the_files_in_order(colors: Path):
    module = make(colors, eval_batch_size=5, eval_image_size=20, crop=1.0)
    batches = list(module.val_dataloader())
    assert [len(batch.labels) for batch in batches] == [5, 5, 2]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(12))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    image = EncodedImage(Path(module.path_of("valid", 7)), "").image()
    assert torch.equal(batches[1].images[2], module.preprocessing(image))
    assert batches[0].images.shape[2:] == (20, 20) and batches[0].seeds == ()
    loader = module.val_dataloader()
    next(iter(loader))
    assert next(iter(loader)).indices.tolist() == [0, 1, 2, 3, 4]  # a pass that was cut short is not continued
    module.setup("predict")
    assert [plain(batch) for batch in module.predict_dataloader()] == [plain(batch) for batch in batches]


def test_the_device_normalises_erases_and_mixes(colors: Path):
    module = make(colors, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    batch = next(iter(module.train_dataloader()))
    normal = module.on_after_batch_transfer(batch, 0)
    expected = (batch.images.double() / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.2, 0.3, 0.4]
    ).view(3, 1, 1)
    assert normal.images.dtype == torch.float32 and normal.images.is_contiguous() and normal.targets is None
    torch.testing.assert_close(normal.images.double(), expected, rtol=0, atol=1e-5)
    assert normal.labels is batch.labels

    # Row 12: erasing follows normalisation, so that its noise has variance 1. Row 11: targets are mixed once.
    erasing, mixing = RandomErasing(probability=1.0), Mixing(label_smoothing=0.1)
    full = make(colors, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), erasing=erasing, mixing=mixing)
    mixed = full.on_after_batch_transfer(batch, 0)
    images, targets = mixing(erasing(normal.images.clone(), batch.seeds), batch.labels, 3, batch.seeds, 0)
    assert torch.equal(mixed.images, images) and torch.equal(mixed.targets, targets)
    torch.testing.assert_close(mixed.targets.sum(1), torch.ones(8))

    evaluation = next(iter(full.val_dataloader()))
    done = full.on_after_batch_transfer(evaluation, 0)
    assert done.targets is None
    torch.testing.assert_close(done.images, module.on_after_batch_transfer(evaluation, 0).images)


@pytest.mark.parametrize("augmentation", [RandAugment(), TrivialAugment(fill=None), ThreeAugment(), None])
def test_batches_depend_on_seed_and_epoch_alone(colors: Path, augmentation):
    settings = {"augmentation": augmentation, "repeated_augmentation": 3}
    first = passes(make(colors, **settings), 2)
    assert first == passes(make(colors, **settings), 2)
    if augmentation is None or isinstance(augmentation, RandAugment):
        assert first == passes(make(colors, num_workers=2, **settings), 2)
    other = passes(make(colors, seed=1, **settings), 2)
    assert first[0][2] != other[0][2] and first[0][2] != first[5][2]
    torch.manual_seed(1)
    np.random.seed(1)
    assert first == passes(make(colors, **settings), 2)


def test_an_image_differs_from_epoch_to_epoch(colors: Path):
    reader = make(colors).train_dataloader().reader
    first, second = (reader.read_batch(np.arange(8), epoch) for epoch in (0, 1))
    assert first.indices.tolist() == second.indices.tolist() and not set(first.seeds) & set(second.seeds)
    assert (first.images != second.images).any((1, 2, 3)).all()


def test_an_image_does_not_depend_on_its_batch(colors: Path):
    by_seed = [
        {
            seed: image
            for batch in passes(make(colors, batch_size=size))
            for image, seed in zip(batch[0], batch[4], strict=True)
        }
        for size in (4, 6)
    ]
    shared = by_seed[0].keys() & by_seed[1].keys()
    assert len(shared) >= 38 and all(by_seed[0][seed] == by_seed[1][seed] for seed in shared)


# Row 2: copies of an image are seen by the network on one process too, each with its own random numbers.
def test_copies_differ(colors: Path):
    module = make(colors, repeated_augmentation=3, batch_size=6)
    batch = next(iter(module.train_dataloader()))
    assert batch.indices.tolist() == [index for index in batch.indices[::3].tolist() for _ in range(3)]
    assert len(set(batch.seeds)) == 6
    assert len({image.numpy().tobytes() for image in batch.images}) == 6


def test_resuming_in_mid_epoch(colors: Path):
    module = make(colors, repeated_augmentation=3)
    expected = passes(module, 2)
    loader = module.train_dataloader()
    seen = [plain(batch) for _, batch in zip(range(3), loader, strict=False)]
    state = loader.state_dict()
    resumed = make(colors, repeated_augmentation=3).train_dataloader()
    resumed.load_state_dict(state)
    assert seen + [plain(batch) for batch in resumed] == expected[:5]
    assert [plain(batch) for batch in resumed] == expected[5:]


def test_shards_are_read_like_the_folder(colors: Path, tmp_path: Path):
    for split in ("train", "val"):
        write_shards(colors / split, str(tmp_path / "tars" / f"{split}-%04d.tar"), images_per_shard=11)
    sharded = {"train_split": "train-{0000..0003}.tar", "valid_split": "val-{0000..0001}.tar"}
    module = make(tmp_path / "tars", **sharded)
    assert module.class_names == make(colors).class_names
    batches = list(module.train_dataloader())
    assert len(batches) == 5 and len({index for batch in batches for index in batch.indices.tolist()}) == 40
    assert [plain(batch) for batch in batches] == passes(make(tmp_path / "tars", num_workers=1, **sharded))
    labels = torch.cat([batch.labels for batch in module.val_dataloader()])
    assert sorted(labels.tolist()) == [0] * 4 + [1] * 4 + [2] * 4


def test_bad_images_end_the_run(colors: Path):
    (colors / "val" / "red" / "01.png").write_text("no image")
    for workers in (0, 1):
        with pytest.raises(ImageError) as error:
            list(make(colors, num_workers=workers).val_dataloader())
        assert str(error.value) == f"{colors}/val/red/01.png is not an image that Pillow can read"


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_skipped_and_named(colors: Path, workers):
    whole = (colors / "train" / "red" / "05.png").read_bytes()
    (colors / "train" / "red" / "05.png").write_bytes(whole[: len(whole) // 2])
    (colors / "train" / "blue" / "00.png").write_bytes(b"")
    (colors / "val" / "red" / "01.png").write_text("no image")
    module = make(colors, on_bad_image="skip", batch_size=21, eval_batch_size=1, num_workers=workers)
    with pytest.warns(UserWarning, match="2 images were skipped: .*blue/00.png is empty; .*red/05.png cannot be dec"):
        batches = list(module.train_dataloader())
    # Others stand in for them, so that batches keep their size.
    indices = [index for batch in batches for index in batch.indices.tolist()]
    assert len(indices) == 42 and 0 not in indices and 28 + 5 not in indices and len(set(indices)) == 40
    assert all(batch.labels.tolist() == (batch.indices // 14).tolist() for batch in batches)
    again = make(colors, on_bad_image="skip", batch_size=21)
    with pytest.warns(UserWarning, match="2 images were skipped"):
        assert passes(again) == [plain(batch) for batch in batches]
    loader = module.val_dataloader()
    with pytest.warns(UserWarning, match="1 images were skipped: .*red/01.png is not an image"):
        seen = [batch.indices.tolist() for batch in loader]
    assert seen == [[index] for index in range(12) if index != 9]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(loader)) == 11  # reported once


def test_a_split_of_bad_images_is_given_up(colors: Path):
    for path in (colors / "train").glob("*/*"):
        path.write_text("")
    with pytest.raises(ImageError, match="cannot be decoded, nor can 10 other images"):
        next(iter(make(colors, on_bad_image="skip").train_dataloader()))


class Deadly(HostTransform):
    """Kills the worker that augments a certain image."""

    def __call__(self, image: Image.Image, rng: Any) -> Image.Image:
        if np.array(image).mean((0, 1)).argmax() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return image


def test_a_worker_that_dies_is_reported_with_its_file(colors: Path):
    for path in list((colors / "train" / "green").iterdir())[1:]:
        path.unlink()
    (deadly,) = (colors / "train" / "green").iterdir()
    module = make(colors, num_workers=2, augmentation=Deadly(), batch_size=4)
    with pytest.raises(RuntimeError, match=f"a worker process died while it read {deadly}"):
        list(module.train_dataloader())
    # The error may also come up outside of the loader, while the network works on another batch.
    loader = module.train_dataloader()
    loader.reader._in_hand[1] = torch.tensor([4321, 14])
    error = RuntimeError("DataLoader worker (pid 4321) is killed by signal: Killed.")
    module.on_exception(error)
    assert error.__notes__ == [f"the worker was reading {deadly}"]


def test_splits_with_other_classes(colors: Path):
    (colors / "val" / "red").rename(colors / "val" / "pink")
    with pytest.raises(
        ValueError, match=r"train and .*val differ in their classes \(3 and 3\): only in .*train: red; "
    ):
        make(colors)
    with pytest.raises(ValueError, match="only in .*val: pink"):
        make(colors)
    make(colors, "validate")


def test_one_class(tmp_path: Path, colors: Path):
    for split in ("train", "val"):
        for name in ("blue", "green"):
            for path in (colors / split / name).iterdir():
                path.unlink()
            (colors / split / name).rmdir()
    with pytest.raises(ValueError, match="holds the one class red; there must be two or more"):
        make(colors)


def test_missing_splits(colors: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/train is not there. ImageNet needs an account"):
        make(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="colors/test is not there"):
        make(colors, "test", test_split="test")
    assert not (tmp_path / "nowhere").exists()


def test_state(colors: Path):
    module = make(colors, crop=0.95, crop_mode="squash", eval_image_size=18)
    state = module.state_dict()
    assert state == {
        "name": "colors",
        "class_names": ["blue", "green", "red"],
        "image_size": 18,
        "crop": 0.95,
        "crop_mode": "squash",
        "interpolation": "bicubic",
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
    }
    torch.save(state, colors / "state.pt")
    assert torch.load(colors / "state.pt", weights_only=True) == state
    module.load_state_dict(state)
    state["class_names"] = ["blue", "green", "yellow"]
    with pytest.raises(
        ValueError, match=r"the checkpoint and .*colors differ .*: only in the checkpoint: yellow; only"
    ):
        module.load_state_dict(state)
    fresh = make(colors, None, crop_mode="squash")
    fresh.load_state_dict(state)
    with pytest.raises(ValueError, match="only in the checkpoint: yellow"):
        fresh.setup("validate")
    state["class_names"] = ["green", "blue", "red"]
    with pytest.raises(ValueError, match="the same names in another order"):
        module.load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"eval_image_size": 20}, []),
        ({"mean": (0.485, 0.456, 0.4061)}, []),  # rounded elsewhere
        (
            {"mean": (0.5, 0.5, 0.5)},
            [f"mean: the checkpoint was made with {IMAGENET_MEAN}, the data has (0.5, 0.5, 0."],
        ),
        (
            {"std": (0.5, 0.5, 0.5)},
            [f"std: the checkpoint was made with {IMAGENET_STD}, the data has (0.5, 0.5, 0.5); "],
        ),
        ({"crop": 1.0}, ["crop: the checkpoint was made with 0.875, the data has 1.0; see data.crop"]),
        (
            {"crop_mode": "squash", "crop": 1.0},
            ["crop_mode: the checkpoint was made with center, the data has squash;"],
        ),
        ({"interpolation": "bilinear"}, ["interpolation: the checkpoint was made with bicubic, the data has bilinear"]),
    ],
)
def test_a_checkpoint_of_another_preprocessing_is_told(colors: Path, settings: Any, told: list[str]):
    state = make(colors).state_dict()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make(colors, "validate", **settings).load_state_dict(state)
    assert [str(warning.message)[: len(line)] for warning, line in zip(caught, told, strict=True)] == told


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data_dir": None}, "no data_dir"),
        ({"data_dir": "https://host/shards"}, "no cache_dir"),
        # Row 11: an odd batch has an image without a partner.
        ({"mixing": Mixing(), "batch_size": 7}, "batch_size=7 is odd, but mixing takes images in pairs"),
        ({"image_size": 0}, "image_size=0 must be at least 1"),
        ({"eval_image_size": -3}, "image_size=-3 must be at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"scale": (1.0, 0.08)}, r"scale=\(1.0, 0.08\) must be two shares"),
        ({"ratio": (0.0, 1.0)}, r"ratio=\(0.0, 1.0\) must be two ratios"),
        ({"crop": 1.5}, "crop=1.5 must be above 0 and at most 1"),
        ({"std": (0.2, 0.0, 0.2)}, "std above 0"),
    ],
)
def test_arguments_that_contradict(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageNetDataModule(**{"data_dir": "somewhere", **settings})


def test_other_crops(colors: Path):
    for kind in ("padded", "reflected"):
        batch = next(iter(make(colors, train_crop=kind, image_size=24).train_dataloader()))
        black = (batch.images == 0).all(1).any((1, 2))
        assert batch.images.shape == (8, 3, 24, 24) and bool(black.any()) == (kind == "padded")


def test_flips_are_as_frequent_as_configured(tmp_path: Path):
    ramp = np.tile(np.arange(0, 240, 10, dtype=np.uint8)[None, :, None], (24, 1, 3))
    for split in ("train", "val"):
        for number in range(200):
            path = tmp_path / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ramp).save(path)
    for probability, low, high in ((0.0, 0, 0), (0.5, 72, 128), (1.0, 200, 200)):
        module = make(tmp_path, batch_size=200, flip_probability=probability, scale=(0.9, 1.0))
        (batch,) = module.train_dataloader()
        flipped = int((batch.images[:, 0, 8, 0] > batch.images[:, 0, 8, -1]).sum())
        assert low <= flipped <= high


def test_the_command_line_builds_it():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ImageNetDataModule, "data")
    config = parser.parse_object(
        {
            "data": {
                "data_dir": "data/imagenet",
                "repeated_augmentation": 3,
                "scale": [0.2, 1],
                "augmentation": {"class_path": "datamodules.image.RandAugment", "init_args": {"magnitude": 7}},
                "erasing": {"class_path": "datamodules.image.RandomErasing"},
                "mixing": {"class_path": "datamodules.image.Mixing", "init_args": {"mode": "pair"}},
            }
        }
    )
    module = parser.instantiate(config).data
    assert module.transform.augmentation == RandAugment(magnitude=7).with_mean(IMAGENET_MEAN)
    assert module.erasing == RandomErasing() and module.mixing == Mixing(mode="pair")
    assert module.transform.crop.scale == (0.2, 1)
    with pytest.raises(Exception, match="image_size"):
        parser.parse_object({"data": {"data_dir": "x", "image_size": 0}})


class Counter(pl.LightningModule):
    """Trains nothing and notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[int]] = {"train": [], "validate": [], "predict": []}

    def training_step(self, batch: ImageBatch, batch_idx: int) -> torch.Tensor:
        assert batch.images.dtype == torch.float32 and batch.targets.shape == (8, 3)
        self.seen["train"] += batch.indices.tolist()
        return self.weight * batch.images.mean()

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        assert batch.images.dtype == torch.float32 and batch.targets is None
        self.seen["validate"] += batch.indices.tolist()

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self.seen["predict"] += batch.indices.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_trainer_runs_it(colors: Path, tmp_path: Path):
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    model, data = Counter(), make(colors, None, mixing=Mixing(), erasing=RandomErasing())
    trainer.fit(model, data)
    assert len(model.seen["train"]) == 80 and model.seen["validate"] == [*range(12), *range(12)]
    trainer.predict(model, data)
    assert model.seen["predict"] == list(range(12))
    (path,) = (tmp_path / "checkpoints").glob("*.ckpt")
    stored = torch.load(path, weights_only=True)["ImageNetDataModule"]
    assert stored == data.state_dict()


def test_a_reader_goes_to_workers_that_are_spawned(colors: Path):
    reader = make(colors).train_dataloader().reader
    again = pickle.loads(pickle.dumps(reader))
    items = np.arange(4)
    assert plain(again.read_batch(items, 0)) == plain(reader.read_batch(items, 0))
