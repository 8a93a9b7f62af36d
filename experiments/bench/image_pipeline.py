"""DeiT's training augmentation of JPEG files beside timm's, in one process on one thread: images per second of a core.

Files are read, decoded, cropped (random-resized, bicubic), mirrored, changed by RandAugment (rand-m9-mstd0.5-inc1) and
collated. ``uint8`` ends there, with what is sent to the device: timm's pipeline with its prefetcher. In ``float`` the
batch is normalised and erased on the host too: timm's pipeline without. The stages are parts of ``uint8``.
"""

import contextlib
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from datamodules.image import RandAugment, RandomErasing
from datamodules.image.crops import RandomResizedCrop
from datamodules.image.decode import EncodedImage
from datamodules.image.evaluation import IMAGENET_MEAN, IMAGENET_STD, Interpolation
from datamodules.image.folder import ImageFolder
from datamodules.image.host_transform import HostTransform
from datamodules.image.normalization import normalize
from datamodules.image.reader import ImageReader, TrainingTransform
from experiments.bench.record import record
from experiments.bench.side_by_side import add_options, compare, positive, prepare, print_rows, take_turns
from experiments.command import CommandParser, run

DEFAULT_DATA = Path("data/imagenet_sample100")
PARTS = ("uint8", "float", "decode", "crop and mirror", "augment")
INTERPOLATION: Interpolation = "bicubic"
RECIPE = "rand-m9-mstd0.5-inc1"


class Decoded(NamedTuple):
    """An image that has been decoded before, for the stage that crops it."""

    array: Tensor
    width: int
    height: int

    def pixels(self, reduction: int = 1) -> Tensor:
        """Return the pixels, whatever the reduction, as a format does that knows none."""
        return self.array


def main(argv: list[str]) -> int:
    """Measure, print and record."""
    return run(_main, argv)


def _main(argv: list[str]) -> None:
    options = _parser().parse_args(argv)
    prepare(options, threads=1)
    rows = []
    with tempfile.TemporaryDirectory() as scratch, timms_posterize_to_no_bits():
        data = _data(options.data, Path(scratch))
        source = ImageFolder(data, Path(scratch) / "list")
        for part, tasks in make_tasks(source, data, options.image_size, options.batch_size, options.seed).items():
            if part not in options.parts:
                continue
            times = take_turns(tasks, options.rounds)
            for provider, taken in times.items():
                rows.append(
                    {
                        "data": data.name,
                        "images": len(source),
                        "part": part,
                        "provider": provider,
                        "ms_per_image": round(1e3 * statistics.median(taken.wall) / len(source), 3),
                        "images_per_second": round(len(source) / statistics.median(taken.wall), 1),
                        "images_per_cpu_second": round(len(source) / statistics.median(taken.cpu), 1),
                        **compare(taken, times["heddle"]),
                    }
                )
    print_rows(rows)
    if options.record:
        print(record("image_pipeline", rows, ("torch", "pillow", "timm")))


def _parser() -> CommandParser:
    parser = CommandParser("python -m experiments bench image_pipeline", __doc__ or "")
    parser.add_argument(
        "--data", type=Path, help=f"<class>/* of JPEGs; default {DEFAULT_DATA} if it is there, else rendered scenes"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="some of the parts")
    parser.add_argument("--image-size", type=positive, default=224, help="height and width of the crops")
    parser.add_argument("--batch-size", type=positive, default=32, help="images that are collated")
    add_options(parser, rounds=9)
    return parser


def _data(given: Path | None, scratch: Path) -> Path:
    """Return the directory of the classes; scenes are rendered into ``scratch`` if there is none."""
    if given is not None:
        return given
    if DEFAULT_DATA.is_dir():
        return DEFAULT_DATA
    print(f"{DEFAULT_DATA} is not here: rendered scenes of 500x375 are measured in place of photographs")
    write_scenes(scratch / "rendered_scenes")
    return scratch / "rendered_scenes"


def write_scenes(directory: Path, images: int = 64, size: tuple[int, int] = (500, 375)) -> None:
    """Write JPEGs of shaded ellipses, in two classes."""
    for number in range(images):
        rng = random.Random(number)
        ramp = (
            np.linspace(rng.randrange(128), 255, size[0])[None, :, None] * np.linspace(0.4, 1, size[1])[:, None, None]
        )
        scene = Image.fromarray((ramp * [rng.random() for _ in range(3)]).astype(np.uint8))
        draw = ImageDraw.Draw(scene)
        for _ in range(25):
            x, y, radius = rng.randrange(size[0]), rng.randrange(size[1]), rng.randrange(4, size[1] // 5)
            color = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
            draw.ellipse((x - radius, y - radius // 2, x + radius, y + radius // 2), fill=color)
        path = directory / f"class_{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene.save(path, quality=92)


@contextlib.contextmanager
def timms_posterize_to_no_bits() -> Iterator[None]:
    """Give timm the black image of older versions of Pillow, where it raises an error with version 13."""
    from timm.data import auto_augment

    timms = auto_augment.posterize

    def posterize(image: Image.Image, bits: int, **settings: Any) -> Image.Image:
        return image.point(lambda _: 0) if bits == 0 else timms(image, bits, **settings)

    names = ("Posterize", "PosterizeIncreasing")
    before = {name: auto_augment.NAME_TO_OP[name] for name in names}
    auto_augment.NAME_TO_OP.update(dict.fromkeys(names, posterize))
    print("timm: posterising to 0 bits gives black, as with Pillow before version 13, which refuses it")
    try:
        yield
    finally:
        auto_augment.NAME_TO_OP.update(before)


def make_tasks(
    source: ImageFolder, data: Path, size: int, batch_size: int, seed: int
) -> dict[str, dict[str, Callable[[], None]]]:
    """Return what each provider does to all images, by part; every pass draws anew."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - timm draws from the global generators
    torch.manual_seed(seed)
    batches = np.array_split(np.arange(len(source)), range(batch_size, len(source), batch_size))
    parts: dict[str, dict[str, Callable[[], None]]] = {
        part: {
            "heddle": partial(_our_pass, source, batches, size, seed, part == "float", count()),
            "timm": _their_pass(data, batches, size, uint8=part == "uint8"),
        }
        for part in ("uint8", "float")
    }
    files = [source.read(index) for index in range(len(source))]
    return parts | _stages(files, size, seed)


def _our_transform(size: int, augmentation: HostTransform | None) -> TrainingTransform:
    return TrainingTransform(size, RandomResizedCrop(), 0.5, augmentation, INTERPOLATION)


def _our_augmentation() -> RandAugment:
    return RandAugment.from_string(RECIPE).with_mean(IMAGENET_MEAN)


def _our_pass(
    source: ImageFolder, batches: list[np.ndarray], size: int, seed: int, finish: bool, epochs: Iterator[int]
) -> None:
    """Read every batch, and normalise and erase it if it is to be finished."""
    reader, epoch = ImageReader(source, _our_transform(size, _our_augmentation()), seed=seed), next(epochs)
    for indices in batches:
        batch = reader.read_batch(indices, epoch)
        if finish:
            RandomErasing()(normalize(batch.images.contiguous(), IMAGENET_MEAN, IMAGENET_STD), batch.seeds)


def _timms(size: int, **settings: Any) -> Any:
    from timm.data import create_transform

    return create_transform(
        size,
        is_training=True,
        color_jitter=0.3,
        auto_augment=RECIPE,
        interpolation=INTERPOLATION,
        re_prob=0.25,
        re_mode="pixel",
        **settings,
    )


def _their_pass(data: Path, batches: list[np.ndarray], size: int, *, uint8: bool) -> Callable[[], None]:
    from timm.data.dataset import ImageDataset
    from timm.data.loader import fast_collate
    from torch.utils.data import default_collate

    dataset = ImageDataset(str(data), transform=_timms(size, use_prefetcher=uint8))
    collate = fast_collate if uint8 else default_collate

    def work() -> None:
        for indices in batches:
            collate([dataset[index] for index in indices.tolist()])

    return work


def _stages(files: list[bytes], size: int, seed: int) -> dict[str, dict[str, Callable[[], None]]]:
    """Return the stages, each of what the stage before it made."""
    our_crop, our_augment, rng = _our_transform(size, None), _our_augmentation(), random.Random(seed)
    crop, augment, _ = _timms(size, use_prefetcher=True, separate=True)
    tensors = [EncodedImage(file, "").pixels() for file in files]
    decoded = [Decoded(pixels, pixels.shape[1], pixels.shape[0]) for pixels in tensors]
    images = [Image.fromarray(pixels.numpy()) for pixels in tensors]
    squares = [image.resize((size, size)) for image in images]
    return {
        "decode": {
            "heddle": lambda: _each(lambda file: EncodedImage(file, "").pixels(), files),
            "timm": lambda: _each(lambda file: Image.open(BytesIO(file)).convert("RGB"), files),
        },
        "crop and mirror": {
            "heddle": lambda: _each(lambda image: our_crop(image, rng), decoded),
            "timm": lambda: _each(crop, images),
        },
        "augment": {
            "heddle": lambda: _each(lambda image: our_augment(image, rng), squares),
            "timm": lambda: _each(augment, squares),
        },
    }


def _each(function: Callable[[Any], object], items: list[Any]) -> None:
    for item in items:
        function(item)
