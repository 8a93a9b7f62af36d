"""Object detection data: any images with a json in COCO's format, COCO 2017, and the built-in corpus."""

from pathlib import Path
from typing import Any, Literal
from weakref import WeakSet

import lightning.pytorch as pl
import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from datamodules.batches import DetectionBatch, preprocessing_differences, refuse_other_classes
from datamodules.image.detection_annotations import Categories, Degenerate, DetectionImages, Ids
from datamodules.image.detection_geometry import EvaluationGeometry, TrainingGeometry
from datamodules.image.detection_orders import DetectionOrder
from datamodules.image.detection_reader import DetectionLoader, DetectionReader
from datamodules.image.evaluation import IMAGENET_MEAN, IMAGENET_STD, triple
from datamodules.image.normalization import normalize
from datamodules.image.orders import EvaluationOrder
from datamodules.image.reader import OnBadImage
from datamodules.loading import NEEDED_SPLITS, place

Split = Literal["train", "valid", "test"]


class COCODataModule(pl.LightningDataModule):
    """Reads images and boxes from a directory and a json in COCO's format, and makes padded batches.

    COCO, an export of a labelling tool and the built-in corpus share this path. Each split names the directory of its
    images and, where it is not found by itself, its json; both are below ``data_dir`` unless they are absolute. The
    json is looked for at ``annotations/instances_<directory>.json``, as COCO has it, and at
    ``<directory>/_annotations.coco.json``, as Roboflow has it.

    The whole json is checked before training. The host decodes, transforms and pads; uint8 leaves the workers, and the
    device normalises. Crowds are left out of the batches, but kept in ``ground_truth``; images without objects are
    trained on. Training batches depend on (seed, epoch) alone and not on ``num_workers``, and the loaders resume in
    mid-epoch. Create the Trainer with ``use_distributed_sampler=False``: each process takes its share of one order.

    Args:
        data_dir: Directory of the splits; defaults to ``data/coco`` and ``data/synthetic_detection`` for the corpora
            of these names.
        corpus: ``directory`` reads what is in ``data_dir``; ``coco2017`` downloads COCO 2017 there first,
            ``synthetic`` writes the built-in corpus.
        train_images: Directory of the training images; default ``train2017``, for ``synthetic`` ``train``.
        train_annotations: Their json.
        valid_images: Directory of the validation images; default ``val2017``, for ``synthetic`` ``val``.
        valid_annotations: Their json.
        test_images: Directory of the test images, which are also those to predict; default: the validation images.
        test_annotations: Their json; to predict, it need not list annotations.
        batch_size: Training images of a batch of one process.
        eval_batch_size: Likewise in evaluation; default ``batch_size``. Padding changes what a network sees a little.
        sizes: Pixels that the shorter side is resized to in training; one is drawn for each image.
        eval_size: Pixels of the shorter side in evaluation; default: the largest of ``sizes``.
        max_size: Most pixels of the longer side.
        crop_from: Pixels of the shorter side that rectangles are cut from, see ``TrainingGeometry``.
        crop_sides: Least and most pixels of a rectangle's side.
        crop_probability: How often a rectangle is cut out of a training image.
        flip_probability: How often a training image is mirrored.
        fast: Decode and resize with torch's vector units, and only once, instead of Pillow's as the official code.
        aspect_groups: Fills training batches with images of similar aspect, which need less padding, see
            ``DetectionOrder``; torchvision takes 3, 0 is the official order.
        one_scale: Resizes all images of a training batch to the same of ``sizes``, which needs less padding.
        ids: How classes are numbered: ``contiguous`` from 0, or ``coco`` as in the json, for official weights.
        degenerate: What boxes without an area, or that are no numbers, do: ``error``, or ``drop`` with a warning.
        on_bad_image: What a file that cannot be decoded does. ``error`` ends the run. ``skip`` leaves it out of
            evaluation and makes it a black image without objects in training; a warning names such files.
        mean: Mean of each colour, between 0 and 1, that normalisation subtracts.
        std: Standard deviation of each colour that it divides by.
        num_workers: Processes that read ahead; 0 reads in the training process.
        seed: Decides the order, flips, sizes and crops.

    Attributes:
        name: Name of the corpus, for logs and tables.
        class_names: Names of the classes by class number, after ``setup``.
        category_ids: Their numbers in the json, by class number, after ``setup``.

    Raises:
        ValueError: If an argument is not what it may be, or contradicts another.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        corpus: Literal["directory", "coco2017", "synthetic"] = "directory",
        train_images: str | None = None,
        train_annotations: str | None = None,
        valid_images: str | None = None,
        valid_annotations: str | None = None,
        test_images: str | None = None,
        test_annotations: str | None = None,
        batch_size: PositiveInt = 2,
        eval_batch_size: PositiveInt | None = None,
        sizes: tuple[PositiveInt, ...] = TrainingGeometry.sizes,
        eval_size: PositiveInt | None = None,
        max_size: PositiveInt = TrainingGeometry.max_size,
        crop_from: tuple[PositiveInt, ...] = TrainingGeometry.crop_from,
        crop_sides: tuple[PositiveInt, PositiveInt] = TrainingGeometry.crop_sides,
        crop_probability: ClosedUnitInterval = 0.5,
        flip_probability: ClosedUnitInterval = 0.5,
        fast: bool = False,
        aspect_groups: NonNegativeInt = 0,
        one_scale: bool = False,
        ids: Ids = "contiguous",
        degenerate: Degenerate = "error",
        on_bad_image: OnBadImage = "error",
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        num_workers: NonNegativeInt = 0,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        if data_dir is None and corpus == "directory":
            raise ValueError(
                "no data_dir: name the directory of the images and annotations, or choose a corpus that brings its "
                "own: coco2017 or synthetic"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.data_dir = Path(data_dir if data_dir is not None else _DIRECTORIES[corpus])
        self.corpus = corpus
        self.name = corpus if corpus != "directory" else self.data_dir.name
        train, valid = _IMAGES[corpus]
        self.images = {"train": train_images or train, "valid": valid_images or valid}
        self.images["test"] = test_images or self.images["valid"]
        self.annotations = {"train": train_annotations, "valid": valid_annotations, "test": test_annotations}
        if test_images is None and test_annotations is None:
            self.annotations["test"] = valid_annotations
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.training_geometry = TrainingGeometry(
            tuple(sizes),
            max_size,
            tuple(crop_from),
            crop_sides,
            crop_probability,
            flip_probability,
            in_source=fast,
            one_scale=one_scale,
        )
        self.evaluation_geometry = EvaluationGeometry(eval_size or max(sizes), max_size)
        self.fast, self.aspect_groups = fast, aspect_groups
        self.ids, self.degenerate, self.on_bad_image = ids, degenerate, on_bad_image
        self.mean, self.std = triple(mean), triple(std)
        self.num_workers = num_workers
        self.seed = seed
        self.class_names: list[str] = []
        self.category_ids: list[int] = []
        self._restored: Categories | None = None
        self._splits: dict[str, DetectionImages] = {}
        self._loaders: WeakSet[DetectionLoader] = WeakSet()

    @property
    def num_classes(self) -> int:
        """Number of classes, after ``setup``; with ``ids=coco`` the largest category id plus 1."""
        return len(self.class_names)

    @property
    def steps_per_epoch(self) -> int:
        """Training batches of one process in an epoch, after ``setup`` for ``fit``."""
        return len(self._training_order(self._reader("train")))

    def prepare_data(self) -> None:
        """Writes the built-in corpus, or downloads what is missing of COCO 2017.

        Raises:
            FileNotFoundError: If a download fails.
            ValueError: If the directory holds something else.
        """
        if self.corpus == "synthetic":
            from datamodules.synthetic.detection import write_corpus

            write_corpus(self.data_dir)
        elif self.corpus == "coco2017":
            from datamodules.coco_download import COCO_2017, fetch_coco

            stage = self.trainer.state.fn if self.trainer is not None else None
            needed = {self.images[split] for split in NEEDED_SPLITS[stage.value if stage is not None else "fit"]}
            fetch_coco(self.data_dir, [part for part in COCO_2017 if part in needed | {"annotations"}])

    def setup(self, stage: str) -> None:
        """Reads and checks the annotations of a stage's splits.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            FileNotFoundError: If annotations or images are missing; missing images are counted and named.
            ValueError: If annotations are not as they must be, or splits or a checkpoint that was loaded differ in
                their classes.
        """
        opened: dict[tuple[str, Path], DetectionImages] = {
            (self.images[name], self._annotations(name)): split
            for name, split in self._splits.items()
            if split.labelled or stage == "predict"
        }
        for name in NEEDED_SPLITS[stage]:
            key = (self.images[name], self._annotations(name))
            if key not in opened:
                directory = self.data_dir / self.images[name]
                opened[key] = DetectionImages(
                    key[1], directory, ids=self.ids, degenerate=self.degenerate, labelled=stage != "predict"
                )
            self._splits[name] = opened[key]
        first, *others = self._splits.values()
        for other in others:
            _refuse_other_categories(first.name, first.categories, other.name, other.categories)
        self.class_names, self.category_ids = list(first.categories.names), list(first.categories.ids)
        self._refuse_restored()
        if "train" in NEEDED_SPLITS[stage]:
            split = self._splits["train"]
            empty = int((split.starts[1:] == split.starts[:-1]).sum())
            rank_zero_info(
                f"{split.name}: {len(split):,} images with {len(split.labels):,} objects of {self.num_classes:,} "
                f"classes, {empty:,} images without any; {self.steps_per_epoch:,} batches of {self.batch_size} an epoch"
            )
            if not len(split.labels):
                rank_zero_warn(f"{split.name} has no object to train on: a network learns from it to find nothing")

    def _annotations(self, split: str) -> Path:
        """Returns a split's json: the one that is named, or the first place where there is one."""
        if (named := self.annotations[split]) is not None:
            return self.data_dir / named
        images = self.data_dir / self.images[split]
        places = [self.data_dir / "annotations" / f"instances_{images.name}.json", images / "_annotations.coco.json"]
        for found in places:
            if found.is_file():
                return found
        argument = "valid" if split == "test" and self.images["test"] == self.images["valid"] else split
        raise FileNotFoundError(
            f"there are no annotations of {images}: neither {places[0]} nor {places[1]}; name the images' directory "
            f"with {argument}_images and the json with {argument}_annotations"
        )

    def _training_order(self, reader: DetectionReader) -> DetectionOrder:
        return DetectionOrder(
            len(self._splits["train"]),
            self.batch_size,
            seed=self.seed,
            groups=self.aspect_groups,
            aspects=reader.aspects,
            **place(),
        )

    def train_dataloader(self) -> DetectionLoader:
        """Returns the training batches, in a new order every epoch."""
        reader = self._reader("train")
        order = self._training_order(reader)

        def step() -> tuple[int, int]:
            if self.trainer is None:
                return 1, len(order)
            return self.trainer.accumulate_grad_batches, int(min(self.trainer.num_training_batches, len(order)))

        return self._loader(DetectionLoader(reader, order, step=step, **self._loading()))

    def val_dataloader(self) -> DetectionLoader:
        """Returns the validation batches: every image once over all processes, in the order of the json."""
        return self._evaluation_loader("valid")

    def test_dataloader(self) -> DetectionLoader:
        """Returns the test batches, as ``val_dataloader`` does."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DetectionLoader:
        """Returns the test batches."""
        return self.test_dataloader()

    def _evaluation_loader(self, split: Split) -> DetectionLoader:
        order = EvaluationOrder(len(self._splits[split]), self.eval_batch_size, **place())
        # A validation of fewer batches than there are must score the same images every time.
        return self._loader(
            DetectionLoader(self._reader(split, training=False), order, restart=True, **self._loading())
        )

    def _reader(self, split: Split, *, training: bool = True) -> DetectionReader:
        return DetectionReader(
            self._splits[split],
            self.training_geometry if training else self.evaluation_geometry,
            training=training,
            fast=self.fast,
            seed=self.seed,
            on_bad_image=self.on_bad_image,
            num_workers=self.num_workers,
        )

    def _loading(self) -> dict[str, Any]:
        return {"num_workers": self.num_workers, "pin_memory": torch.cuda.is_available()}

    def _loader(self, loader: DetectionLoader) -> DetectionLoader:
        self._loaders.add(loader)
        return loader

    def on_after_batch_transfer(self, batch: DetectionBatch, dataloader_idx: int) -> DetectionBatch:
        """Normalises a batch on the device; its padding stays zero."""
        images = normalize(batch.images.contiguous(), self.mean, self.std)
        for image, (height, width) in zip(images, batch.sizes, strict=True):
            if height < image.shape[1]:
                image[:, height:] = 0
            if width < image.shape[2]:
                image[:, :height, width:] = 0
        return batch._replace(images=images)

    def teardown(self, stage: str) -> None:
        """Names the images that were skipped since the last epoch ended."""
        for loader in self._loaders:
            loader.report()

    def on_exception(self, exception: BaseException) -> None:
        """Adds the file that a worker was reading when it died to the error that ends the run."""
        for loader in self._loaders:
            if (file := loader.reader.file_in_hand(exception)) is not None:
                exception.add_note(f"the worker was reading {file}")

    def ground_truth(self, split: Split) -> dict[str, Any]:
        """Returns a split's annotations in COCO's format, crowds included, for evaluation.

        Args:
            split: ``train``, ``valid`` or ``test``, after ``setup`` for it.
        """
        return self._splits[split].ground_truth()

    def path_of(self, split: Split, image_id: int) -> str:
        """Returns where an image is.

        Args:
            split: ``train``, ``valid`` or ``test``, after ``setup`` for it.
            image_id: Its number in the json, as batches give it in ``image_ids``.

        Raises:
            ValueError: If the split has no such image.
        """
        return self._splits[split].path(self._splits[split].index_of(image_id))

    def state_dict(self) -> dict[str, Any]:
        """Returns what using a checkpoint needs of the data: the classes and the preprocessing of evaluation."""
        return {
            "name": self.name,
            "class_names": list(self.class_names),
            "category_ids": list(self.category_ids),
            "mean": list(map(float, self.mean)),
            "std": list(map(float, self.std)),
            # Shorter side, and most of the longer one; plain ints: a restricted type needs code to load.
            "sizes": [int(self.evaluation_geometry.size), int(self.evaluation_geometry.max_size)],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Checks that a checkpoint was trained with the classes of this data, and warns of another normalisation.

        Raises:
            ValueError: If it was not: its network would give other classes the same numbers.
        """
        for line in preprocessing_differences(state_dict, self.state_dict(), "the checkpoint"):
            rank_zero_warn(line)
        self._restored = Categories(list(state_dict["class_names"]), list(state_dict["category_ids"]))
        if self.class_names:
            self._refuse_restored()

    def _refuse_restored(self) -> None:
        if self._restored is not None:
            ours = Categories(self.class_names, self.category_ids)
            _refuse_other_categories("the checkpoint", self._restored, str(self.data_dir), ours)


_DIRECTORIES = {"coco2017": "data/coco", "synthetic": "data/synthetic_detection"}
_IMAGES = {
    "directory": ("train2017", "val2017"),
    "coco2017": ("train2017", "val2017"),
    "synthetic": ("train", "val"),
}


def _refuse_other_categories(first: str, categories: Categories, second: str, others: Categories) -> None:
    pairs, other_pairs = ([f"{i} {name}" for i, name in zip(c.ids, c.names, strict=True)] for c in (categories, others))
    refuse_other_classes(first, pairs, second, other_pairs, "categories")
