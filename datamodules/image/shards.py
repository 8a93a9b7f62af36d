"""WebDataset tar shards as a source of images: random access by offset, and a bounded cache of remote shards.

Reading them as a stream could neither resume exactly nor give image n the same random numbers in any order. So each
shard is listed once (where every image starts), and images are read by their number, as from a folder.
"""

import fcntl
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.image.decode import SUFFIXES
from datamodules.image.folder import ImageFolder
from datamodules.loading import Indices, keyed_seed
from datamodules.text.download import download

_OPEN_SHARDS = 32  # files that a process keeps open
_CLASSES = "classes.txt"
_SAMPLE = re.compile(r"^((?:.*/)?[^./]+)\.([^/]*)$")  # WebDataset's key, to the name's first dot, and extension


class ShardedImages:
    """The images of tar shards, each a file ``<key>.jpg`` (or another image suffix) beside its number ``<key>.cls``.

    ``classes.txt`` beside the shards names the classes, one in a line; without it they are called by their numbers.

    Args:
        pattern: Paths or addresses of the shards with braces, as WebDataset writes them:
            ``data/train-{000000..000146}.tar`` or ``https://host/train-{000000..000146}.tar``.
        cache_dir: Where lists of the shards are kept, and remote shards.
        cache_bytes: Size of the remote shards that are kept, about: those used longest ago make room. It should hold
            what is shuffled together twice over, or shards are fetched again and again.

    Raises:
        FileNotFoundError: If a shard is missing, or a download fails.
        ValueError: If a shard is not one.
    """

    def __init__(self, pattern: str, cache_dir: Path, cache_bytes: int = 100 * 10**9) -> None:
        from webdataset.shardlists import expand_urls

        self.name = pattern
        self.left_out: list[str] = []
        self._urls: list[str] = expand_urls(pattern)
        self._cache = ShardCache(cache_dir, cache_bytes)
        shards = [self._list(url, cache_dir) for url in self._urls]
        self._starts, self._sizes, self.labels, self._members = (
            np.concatenate([shard[column] for shard in shards]) for column in ("starts", "sizes", "labels", "members")
        )
        self._first = np.cumsum([0, *(len(shard["labels"]) for shard in shards)])
        self.bounds: Indices | None = self._first
        self.class_names = self._find_classes()
        self._open: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def path(self, index: int) -> str:
        """Return where an image is: its shard and its name in there."""
        return f"{self._urls[self._shard_of(index)]}:{os.fsdecode(self._members[index])}"

    def read(self, index: int) -> bytes:
        """Return the content of an image's file."""
        shard = self._shard_of(index)
        if shard not in self._open:
            self._open[shard] = os.open(self._cache.fetch(self._urls[shard]), os.O_RDONLY)
            if len(self._open) > _OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(shard)
        return os.pread(self._open[shard], int(self._sizes[index]), int(self._starts[index]))

    def _shard_of(self, index: int) -> int:
        return int(np.searchsorted(self._first, index, side="right")) - 1

    def _list(self, url: str, cache_dir: Path) -> dict[str, Any]:
        """Returns where the images of a shard are, from a file of an earlier run if the shard has not changed."""
        key = url
        if not _is_remote(url):
            path = _find(url)
            key = f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}"
        stored = cache_dir / f"{_short_name(url, key)}.npz"
        if not stored.exists():
            listed = _list_images(self._cache.fetch(url), url)
            stored.parent.mkdir(parents=True, exist_ok=True)
            unfinished = stored.with_name(f".{os.getpid()}.{stored.name}")
            np.savez(unfinished, **listed)
            unfinished.replace(stored)
        with np.load(stored) as columns:
            return dict(columns)

    def _find_classes(self) -> list[str]:
        first = self._urls[0]
        beside = f"{first.rpartition('/')[0]}/{_CLASSES}" if "/" in first else _CLASSES
        try:
            names = self._cache.fetch(beside).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError as error:
            if error.__cause__ is not None and getattr(error.__cause__, "code", None) != 404:
                raise
            names = [str(label) for label in range(int(self.labels.max()) + 1)]
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= len(names)))
        if len(outside):
            label = int(self.labels[outside[0]])
            raise ValueError(
                f"{self.path(int(outside[0]))} is of class {label}, but {beside} names {len(names)} classes"
            )
        return names


class ShardCache:
    """Local copies of remote files, of a bounded size in all; the processes of a machine share them.

    Args:
        directory: Where they are kept.
        limit: Bytes that may be kept. A file that has just come is kept even if it is larger.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self._directory, self._limit = directory / "shards", limit

    def fetch(self, url: str) -> Path:
        """Return a local path of a file, downloading it if it is neither local nor kept.

        Raises:
            FileNotFoundError: If a local file is missing or a download fails.
        """
        if not _is_remote(url):
            return _find(url)
        path = self._directory / _short_name(url, url)
        with _locked(path.with_name(f"{path.name}.lock")):
            if path.exists():
                os.utime(path)  # used now, whether or not the disk records reads
            else:
                download(url, path, check=lambda _: None)
                self._make_room(path)
        return path

    def _make_room(self, newest: Path) -> None:
        kept = [path for path in self._directory.iterdir() if path != newest and path.suffix != ".lock"]
        used = newest.stat().st_size
        for path in sorted(kept, key=_last_use, reverse=True):
            try:
                used += path.stat().st_size
            except FileNotFoundError:
                continue  # another process made room
            if used > self._limit and not path.name.startswith("part."):
                path.unlink(missing_ok=True)


def write_shards(
    folder: Path, pattern: str, *, seed: int = 0, images_per_shard: int = 10_000, bytes_per_shard: float = 1e9
) -> int:
    """Write a folder ``<class>/*`` as shards, in random order, and ``classes.txt`` beside them.

    The order is random because reading shuffles shards, and images among some of them, but not all images at once.

    Args:
        folder: Directory of a split, ``<class>/*``.
        pattern: Path of the shards with a number for C's printf: ``data/shards/train-%06d.tar``.
        seed: Decides the order.
        images_per_shard: Images of a shard at most.
        bytes_per_shard: A shard that has so many bytes is not continued.

    Returns:
        The number of shards.
    """
    from webdataset import ShardWriter

    source = ImageFolder(folder)
    directory = Path(pattern).parent
    directory.mkdir(parents=True, exist_ok=True)
    with ShardWriter(pattern, images_per_shard, bytes_per_shard, verbose=0, encoder=False) as writer:
        for place, index in enumerate(np.random.default_rng(keyed_seed(seed)).permutation(len(source)).tolist()):
            path = Path(source.path(index))
            key = f"{place:08d}_{path.stem.replace('.', '_')}"  # a key ends at its first dot
            label = str(source.labels[index]).encode()
            writer.write({"__key__": key, path.suffix[1:].lower(): source.read(index), "cls": label})
        shards: int = writer.shard
    (directory / _CLASSES).write_text("".join(f"{name}\n" for name in source.class_names), encoding="utf-8")
    rank_zero_info(f"{folder}: {len(source):,} images in {shards:,} shards")
    return shards


def _list_images(path: Path, url: str) -> dict[str, Any]:
    """Returns start, size, label and name of each image in a tar file."""
    images: dict[str, tuple[int, int, bytes]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                match = _SAMPLE.match(member.name)
                if not member.isfile() or match is None:
                    continue
                key, extension = match.groups()
                if extension == "cls":
                    content = archive.extractfile(member)
                    labels[key] = _label(content.read() if content is not None else b"", f"{url}:{member.name}")
                elif f".{extension.lower()}" in SUFFIXES:
                    images[key] = (member.offset_data, member.size, os.fsencode(member.name))
    except tarfile.TarError as error:
        raise ValueError(f"{url} is not a whole tar file: {error}; shards are not packed (.tar.gz)") from error
    if lonely := sorted(images.keys() ^ labels.keys()):
        what = "no label (.cls)" if lonely[0] in images else "no image"
        raise ValueError(f"{url}: {len(lonely):,} keys such as {lonely[0]} have {what}")
    if not images:
        raise ValueError(f"{url} holds no images: members must be called <key>.jpg and <key>.cls")
    return {
        "starts": np.array([images[key][0] for key in images]),
        "sizes": np.array([images[key][1] for key in images]),
        "labels": np.array([labels[key] for key in images]),
        "members": np.array([images[key][2] for key in images]),
    }


def _label(content: bytes, name: str) -> int:
    try:
        return int(content)
    except ValueError:
        raise ValueError(f"{name} must hold a class number, but holds {content[:20]!r}") from None


def _find(path: str) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not there")
    return Path(path)


def _is_remote(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _short_name(url: str, key: str) -> str:
    """Returns a file name for something that ``key`` decides."""
    stem, _, suffix = url.rpartition("/")[2].partition(".")
    return f"{stem}-{sha256(key.encode()).hexdigest()[:16]}.{suffix}"


def _last_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a file's lock, which no other process has at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
