"""Image classification data: folders of images in classes, tar shards, and the built-in corpus."""

from pathlib import Path
from typing import Any, Literal
from weakref import WeakSet

import lightning.pytorch as pl
import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from datamodules.batches import ImageBatch, preprocessing_differences, refuse_other_classes
from datamodules.image.crops import Crop, PaddedCrop, RandomResizedCrop
from datamodules.image.erasing import RandomErasing
from datamodules.image.evaluation import IMAGENET_MEAN, IMAGENET_STD, CropMode, Interpolation, Preprocessing, triple
from datamodules.image.folder import ImageFolder, ImageSource
from datamodules.image.host_transform import HostTransform
from datamodules.image.mixing import Mixing
from datamodules.image.normalization import normalize
from datamodules.image.orders import EvaluationOrder, TrainingOrder
from datamodules.image.reader import ImageLoader, ImageReader, OnBadImage, TrainingTransform
from datamodules.image.shards import ShardedImages
from datamodules.loading import NEEDED_SPLITS, keyed_seed, place

Split = Literal["train", "valid", "test"]


class ImageNetDataModule(pl.LightningDataModule):
    """Reads images in class folders, ``<split>/<class>/*``, and makes batches.

    ImageNet, Tiny-ImageNet, CIFAR-10 as folders and the built-in corpus share this layout; WebDataset shards
    (``datamodules.image.shards``) are for data that outgrows a folder or a disk. The host decodes, crops,
    flips and augments; uint8 leaves the workers; normalisation, random erasing and mixing run on the device. Training
    batches depend on (seed, epoch) alone and not on ``num_workers``, and the loaders resume in mid-epoch. Create the
    Trainer with ``use_distributed_sampler=False``: each process takes its share of the same order.

    Args:
        data_dir: Directory of the splits, or address of shards; the built-in corpus defaults to
            ``data/synthetic_classification``.
        corpus: ``directory`` reads what is in ``data_dir``; ``synthetic`` writes the built-in corpus there first.
        train_split: Directory of the training images in ``data_dir``, or WebDataset shards there, as a pattern with
            braces such as ``train-{000000..000146}.tar``.
        valid_split: Likewise of the validation images.
        test_split: Likewise of the test images, which are also those to predict; default: the validation images.
        image_size: Side of the square that the network sees in training.
        eval_image_size: Likewise in evaluation; default ``image_size``.
        batch_size: Training images of a batch of one process.
        eval_batch_size: Likewise in evaluation; default ``batch_size``.
        train_crop: ``resized`` is the random-resized crop of ``scale`` and ``ratio``; ``padded`` resizes the shorter
            side, adds 4 black pixels on each side and cuts a random square, as is usual for CIFAR; ``reflected`` does
            the same with reflected pixels (DeiT III's simple random crop).
        scale: Smallest and largest area of the random-resized crop, as shares of the image.
        ratio: Its smallest and largest width / height.
        flip_probability: How often a training image is mirrored.
        augmentation: Further augmentation on the host: RandAugment, TrivialAugment or ThreeAugment.
        erasing: Random erasing on the device, after normalisation.
        mixing: Mixup and cutmix on the device; they make soft targets.
        repeated_augmentation: Copies of each image that is visited, see ``TrainingOrder``; DeiT takes 3.
        crop: Share of the shorter side that evaluation sees: 0.875 for DeiT, 1.0 for DeiT III and most at 384 pixels.
        crop_mode: ``center`` cuts the middle out, ``squash`` resizes the whole image to a square.
        interpolation: Filter of the resizing in training and evaluation.
        mean: Mean of each colour, between 0 and 1, that normalisation subtracts.
        std: Standard deviation of each colour that it divides by.
        on_bad_image: What a file that cannot be decoded does. ``error`` ends the run. ``skip`` puts another image in
            its place in training and leaves it out of evaluation; a warning names such files at the end of the epoch.
        num_workers: Processes that read ahead; 0 reads in the training process.
        seed: Decides order, crops, augmentation, erasing and mixing.
        cache_dir: Where lists of files and remote shards are kept; default ``prepared`` in ``data_dir``.
        shard_cache_gb: Gigabytes of remote shards that are kept, about, on each machine.

    Attributes:
        name: Name of the data, for logs and tables.
        class_names: Names of the classes, in the order of their numbers, after ``setup``.

    Raises:
        ValueError: If an argument is not what it may be, or contradicts another.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        corpus: Literal["directory", "synthetic"] = "directory",
        train_split: str = "train",
        valid_split: str = "val",
        test_split: str | None = None,
        image_size: PositiveInt = 224,
        eval_image_size: PositiveInt | None = None,
        batch_size: PositiveInt = 256,
        eval_batch_size: PositiveInt | None = None,
        train_crop: Literal["resized", "padded", "reflected"] = "resized",
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip_probability: ClosedUnitInterval = 0.5,
        augmentation: HostTransform | None = None,
        erasing: RandomErasing | None = None,
        mixing: Mixing | None = None,
        repeated_augmentation: PositiveInt = 1,
        crop: float = 0.875,
        crop_mode: CropMode = "center",
        interpolation: Interpolation = "bicubic",
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        on_bad_image: OnBadImage = "error",
        num_workers: NonNegativeInt = 0,
        seed: NonNegativeInt = 0,
        cache_dir: str | None = None,
        shard_cache_gb: PositiveFloat = 100.0,
    ) -> None:
        super().__init__()
        if data_dir is None and corpus == "directory":
            raise ValueError(
                "no data_dir: name the directory that holds <split>/<class>/*, or choose corpus=synthetic, which "
                "brings its own images"
            )
        for argument, value in (("image_size", image_size), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{argument}={value} must be at least 1")
        if mixing is not None and batch_size % 2:
            raise ValueError(
                f"batch_size={batch_size} is odd, but mixing takes images in pairs; choose an even batch_size"
            )
        self.data_dir = data_dir if data_dir is not None else "data/synthetic_classification"
        if "://" in self.data_dir and cache_dir is None:
            raise ValueError(f"no cache_dir: shards of {self.data_dir} are kept there")
        self.cache_dir = Path(cache_dir) if cache_dir is not None else Path(self.data_dir) / "prepared"
        self.shard_cache_bytes = int(shard_cache_gb * 1e9)
        self.corpus = corpus
        self.name = corpus if corpus != "directory" else Path(self.data_dir).name
        self.splits = {"train": train_split, "valid": valid_split, "test": test_split or valid_split}
        self.image_size = image_size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.repeated_augmentation = repeated_augmentation
        self.mean, self.std = triple(mean), triple(std)
        self.erasing, self.mixing = erasing, mixing
        self.on_bad_image = on_bad_image
        self.num_workers = num_workers
        self.seed = seed
        self.preprocessing = Preprocessing(
            eval_image_size or image_size, crop, crop_mode, interpolation, self.mean, self.std
        )
        if augmentation is not None:
            augmentation = augmentation.with_mean(self.mean)
        self.transform = TrainingTransform(
            image_size, _training_crop(train_crop, scale, ratio), flip_probability, augmentation, interpolation
        )
        self.class_names: list[str] = []
        self._restored: list[str] | None = None
        self._sources: dict[str, ImageSource] = {}
        self._loaders: WeakSet[ImageLoader] = WeakSet()

    @property
    def num_classes(self) -> int:
        """Number of classes, after ``setup``."""
        return len(self.class_names)

    @property
    def steps_per_epoch(self) -> int:
        """Training batches of one process in an epoch, after ``setup`` for ``fit``."""
        return len(self._training_order())

    def prepare_data(self) -> None:
        """Writes the built-in corpus, and lists large folders once for all processes.

        Raises:
            FileNotFoundError: If a split that the stage needs is missing; the message says where ImageNet comes from.
            ValueError: If a split is not as it must be.
        """
        if self.corpus == "synthetic":
            from datamodules.synthetic.classification import write_corpus

            write_corpus(Path(self.data_dir))
        stage = self.trainer.state.fn if self.trainer is not None else None
        for split in NEEDED_SPLITS[stage.value if stage is not None else "fit"]:
            self._open(split)

    def setup(self, stage: str) -> None:
        """Opens the splits of a stage.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            FileNotFoundError: If a split is missing.
            ValueError: If there are fewer than two classes, or splits or a checkpoint that was loaded differ in them.
        """
        sources = {split: self._open(split) for split in NEEDED_SPLITS[stage]}
        self._sources.update(sources)
        first, *others = sources.values()
        for other in others:
            refuse_other_classes(first.name, first.class_names, other.name, other.class_names)
        if len(first.class_names) < 2:
            raise ValueError(f"{first.name} holds the one class {first.class_names[0]}; there must be two or more")
        self.class_names = first.class_names
        self._refuse_restored()
        for split, source in sources.items():
            if source.left_out:
                rank_zero_info(
                    f"{source.name}: {len(source.left_out):,} files are no images: {source.left_out[0]}, ..."
                )
            if split == "train":
                rank_zero_info(
                    f"{source.name}: {len(source):,} images of {self.num_classes:,} classes, {self.steps_per_epoch:,} "
                    f"batches of {self.batch_size} an epoch"
                )

    def _open(self, split: str) -> ImageSource:
        name = self.splits[split]
        if name.endswith(".tar"):
            return ShardedImages(f"{self.data_dir}/{name}", self.cache_dir, self.shard_cache_bytes)
        return ImageFolder(Path(self.data_dir) / name, self.cache_dir)

    def _training_order(self) -> TrainingOrder:
        source = self._sources["train"]
        return TrainingOrder(
            len(source),
            self.batch_size,
            seed=self.seed,
            copies=self.repeated_augmentation,
            bounds=source.bounds,
            **place(),
        )

    def train_dataloader(self) -> ImageLoader:
        """Returns the training batches, in a new order every epoch."""
        reader = self._reader("train", self.transform)
        return self._loader(reader, self._training_order(), restart=False)

    def val_dataloader(self) -> ImageLoader:
        """Returns the validation batches: every image once over all processes."""
        return self._evaluation_loader("valid")

    def test_dataloader(self) -> ImageLoader:
        """Returns the test batches, as ``val_dataloader`` does."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> ImageLoader:
        """Returns the test batches."""
        return self.test_dataloader()

    def _evaluation_loader(self, split: str) -> ImageLoader:
        order = EvaluationOrder(len(self._sources[split]), self.eval_batch_size, **place())
        # A validation of fewer batches than there are must score the same images every time.
        return self._loader(self._reader(split, self.preprocessing), order, restart=True)

    def _reader(self, split: str, transform: TrainingTransform | Preprocessing) -> ImageReader:
        return ImageReader(
            self._sources[split],
            transform,
            seed=keyed_seed(self.seed, _AUGMENTATION),
            on_bad_image=self.on_bad_image,
            num_workers=self.num_workers,
        )

    def _loader(self, reader: ImageReader, order: TrainingOrder | EvaluationOrder, *, restart: bool) -> ImageLoader:
        loader = ImageLoader(
            reader, order, num_workers=self.num_workers, pin_memory=torch.cuda.is_available(), restart=restart
        )
        self._loaders.add(loader)
        return loader

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:
        """Normalises a batch on the device; training batches are then erased and mixed."""
        images, targets = normalize(batch.images.contiguous(), self.mean, self.std), None
        if batch.seeds:
            if self.erasing is not None:
                images = self.erasing(images, batch.seeds)
            if self.mixing is not None:
                images, targets = self.mixing(images, batch.labels, self.num_classes, batch.seeds, batch.epoch)
        return batch._replace(images=images, targets=targets)

    def teardown(self, stage: str) -> None:
        """Names the images that were skipped since the last epoch ended."""
        for loader in self._loaders:
            loader.report()

    def on_exception(self, exception: BaseException) -> None:
        """Adds the file that a worker was reading when it died to the error that ends the run."""
        for loader in self._loaders:
            if (file := loader.reader.file_in_hand(exception)) is not None:
                exception.add_note(f"the worker was reading {file}")

    def path_of(self, split: Split, index: int) -> str:
        """Returns where an image is.

        Args:
            split: ``train``, ``valid`` or ``test``, after ``setup`` for it.
            index: Its number, as batches give it in ``indices``.
        """
        return self._sources[split].path(index)

    def state_dict(self) -> dict[str, Any]:
        """Returns what using a checkpoint needs of the data: the classes and the preprocessing of evaluation."""
        return {
            "name": self.name,
            "class_names": list(self.class_names),
            "image_size": int(self.preprocessing.image_size),  # a plain int: a restricted type needs code to load
            "crop": float(self.preprocessing.crop),
            "crop_mode": self.preprocessing.crop_mode,
            "interpolation": self.preprocessing.interpolation,
            "mean": list(map(float, self.mean)),
            "std": list(map(float, self.std)),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Checks that a checkpoint was trained with the classes of this data, and warns of another preprocessing.

        Raises:
            ValueError: If it was not: its network would give other classes the same numbers.
        """
        for difference in preprocessing_differences(state_dict, self.state_dict(), "the checkpoint"):
            rank_zero_warn(difference)
        self._restored = list(state_dict["class_names"])
        if self.class_names:
            self._refuse_restored()

    def _refuse_restored(self) -> None:
        if self._restored is not None:
            refuse_other_classes("the checkpoint", self._restored, self.data_dir, self.class_names)


_AUGMENTATION = 1  # the order of batches draws from the seed itself


def _training_crop(kind: str, scale: tuple[float, float], ratio: tuple[float, float]) -> Crop:
    if kind != "resized":
        return PaddedCrop(reflect=kind == "reflected")
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale={tuple(scale)} must be two shares of the image, the smaller first, such as (0.08, 1)")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"ratio={tuple(ratio)} must be two ratios above 0, the smaller first, such as (0.75, 1.33)")
    return RandomResizedCrop((scale[0], scale[1]), (ratio[0], ratio[1]))
