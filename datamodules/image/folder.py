"""Folders of images, ``<split>/<class>/*``, as ImageNet, Tiny-ImageNet and many others lay them out."""

import os
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from datamodules.image.decode import SUFFIXES
from datamodules.loading import Indices

IMAGENET_HELP = (
    "ImageNet needs an account at https://image-net.org/download.php: fetch ILSVRC2012_img_train.tar, "
    "ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz and lay the images out as train/<wnid>/*.JPEG and "
    "val/<wnid>/*.JPEG. The validation images come unsorted, their classes are in the development kit; with the three "
    "archives in one directory, torchvision.datasets.ImageNet(directory, 'train') and (directory, 'val') unpack and "
    "sort both (they need scipy)"
)


class ImageSource(Protocol):
    """A split's images, wherever they are stored.

    Attributes:
        name: What messages call the split.
        class_names: Names of the classes, in the order of their numbers.
        labels: Class number of each image, int64.
        bounds: Number of the first image of each shard, and the number of images at the end; None without shards.
        left_out: Files that are no images by their name, such as lists; they are not read.
    """

    name: str
    class_names: list[str]
    labels: Indices
    bounds: Indices | None
    left_out: list[str]

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def path(self, index: int) -> str:
        """Return where an image is, for messages and tables."""
        ...

    def read(self, index: int) -> bytes:
        """Return the content of an image's file."""
        ...


class ImageFolder:
    """The images below ``<directory>/<class>``, at any depth, in the order of their names.

    Hidden files are ignored; others whose suffix is not an image's are left out and listed in ``left_out``.

    Args:
        directory: The split's directory.
        cache_dir: Where the list of a split that took long to scan is kept, if it can be written; it is used as long as
            no directory has changed. None keeps none.
        slow: Seconds of scanning that are long.

    Raises:
        FileNotFoundError: If there is no such directory.
        ValueError: If there are no classes, images outside of them, or classes without images.
    """

    bounds: Indices | None = None

    def __init__(self, directory: Path, cache_dir: Path | None = None, *, slow: float = 5.0) -> None:
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory} is not there. {IMAGENET_HELP}")
        self.name = str(directory)
        self._directory = directory
        key = sha256(str(directory.resolve()).encode()).hexdigest()[:16]
        cache = cache_dir / f"{directory.name}-{key}.npz" if cache_dir is not None else None
        if cache is None or not self._load(cache):
            started = time.monotonic()
            self._scan()
            if cache is not None and time.monotonic() - started > slow:
                self._save(cache)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def path(self, index: int) -> str:
        """Return an image's path."""
        name = self._names[self._ends[index] : self._ends[index + 1]].decode(errors="surrogateescape")
        return os.path.join(self.name, self.class_names[self.labels[index]], name)

    def read(self, index: int) -> bytes:
        """Return the content of an image's file."""
        return Path(self.path(index)).read_bytes()

    def _scan(self) -> None:
        classes, stray = [], []
        for entry in sorted(os.scandir(self._directory), key=lambda entry: entry.name):
            if entry.is_dir() and not entry.name.startswith("."):
                classes.append(entry.name)
            elif _is_image(entry.name):
                stray.append(entry.name)
        if stray:
            raise ValueError(
                f"{self.name} holds {len(stray):,} images outside of class folders, such as {stray[0]}; sort them into "
                f"{self.name}/<class>/"
            )
        if not classes:
            raise ValueError(f"{self.name} holds no class folders; images belong into {self.name}/<class>/")
        names: list[bytes] = []
        counts = []
        self.left_out: list[str] = []
        self._directories = [self._directory]
        for name in classes:
            found = []
            for path in self._files(self._directory / name, ""):
                if _is_image(path):
                    found.append(os.fsencode(path))
                else:
                    self.left_out.append(os.path.join(self.name, name, path))
            names += sorted(found)
            counts.append(len(found))
        if empty := [name for name, count in zip(classes, counts, strict=True) if count == 0]:
            raise ValueError(
                f"{self.name} has {len(empty)} class folders without images: {', '.join(empty[:10])}; images end in "
                f"{', '.join(SUFFIXES)}"
            )
        self.class_names = classes
        self.labels = np.repeat(np.arange(len(classes)), counts)
        # One string: a list of a million would be copied into every worker, page by page, as it is counted.
        self._names = b"".join(names)
        self._ends = np.cumsum([0, *map(len, names)])

    def _files(self, directory: Path, prefix: str) -> Iterator[str]:
        """Yields the files below a directory, relative to the class folder."""
        self._directories.append(directory)
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    yield from self._files(directory / entry.name, f"{prefix}{entry.name}/")
                else:
                    yield prefix + entry.name

    def _changed(self) -> Indices:
        return np.array([os.stat(directory).st_mtime_ns for directory in self._directories])

    def _save(self, cache: Path) -> None:
        unfinished = cache.with_name(f".{os.getpid()}.npz")
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            lists = {
                "classes": self.class_names,
                "left_out": self.left_out,
                "directories": [str(directory) for directory in self._directories],
            }
            columns: dict[str, Any] = {
                key: np.array([os.fsencode(text) for text in texts] or [b""]) for key, texts in lists.items()
            }
            columns |= {"names": np.frombuffer(self._names, np.uint8), "ends": self._ends, "labels": self.labels}
            np.savez(unfinished, changed=self._changed(), **columns)
            unfinished.replace(cache)
        except OSError:  # a disk that is full or cannot be written is scanned every time
            if unfinished.exists():
                unfinished.unlink()

    def _load(self, cache: Path) -> bool:
        """Takes the list from a cache; says whether there is one that still holds."""
        if not cache.exists():
            return False
        with np.load(cache) as stored:
            texts = {
                key: [os.fsdecode(text) for text in stored[key].tolist() if text]
                for key in ("classes", "left_out", "directories")
            }
            self._directories = [Path(directory) for directory in texts["directories"]]
            try:
                if not np.array_equal(self._changed(), stored["changed"]):
                    return False
            except FileNotFoundError:
                return False
            self.class_names, self.left_out = texts["classes"], texts["left_out"]
            self._names, self._ends, self.labels = stored["names"].tobytes(), stored["ends"], stored["labels"]
        return True


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")
