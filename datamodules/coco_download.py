"""COCO 2017 from its official source."""

import shutil
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.directories import refuse_foreign
from datamodules.text.download import download

COCO_URL = "http://images.cocodataset.org"
"""The data set's own server (Lin et al. 2014, https://arxiv.org/abs/1405.0312; https://cocodataset.org/#download)."""


@dataclass(frozen=True)
class Archive:
    """A zip archive of COCO.

    Attributes:
        path: Where it lies on the server.
        size: Its length in bytes.
        directory: The directory that it unpacks to.
        needed: What must be in that directory when it is unpacked: a file, or the number of files.
    """

    path: str
    size: int
    directory: str
    needed: str | int


COCO_2017 = {
    "train2017": Archive("zips/train2017.zip", 19_336_861_798, "train2017", 118_287),
    "val2017": Archive("zips/val2017.zip", 815_585_330, "val2017", 5_000),
    "annotations": Archive(
        "annotations/annotations_trainval2017.zip", 252_907_541, "annotations", "instances_train2017.json"
    ),
}


def fetch_coco(
    directory: Path, parts: Iterable[str], url: str = COCO_URL, archives: dict[str, Archive] = COCO_2017
) -> None:
    """Downloads and unpacks parts of COCO, unless their directories are there.

    A download that was cut short continues where it ended, see ``download``. A directory appears whole or not at all;
    then its archive is removed.

    Args:
        directory: Where ``train2017``, ``val2017`` and ``annotations`` belong; the archives are kept in ``downloads``.
        parts: The wanted keys of ``archives``.
        url: Address of the server.
        archives: What there is to fetch.

    Raises:
        FileNotFoundError: If a download fails; the message says where to put the file.
        ValueError: If an archive is not what it must be, there is no room to unpack it, or the directory holds files,
            but nothing of COCO.
    """
    _refuse_other_data(directory, archives)
    for part in parts:
        archive = archives[part]
        target = directory / archive.directory
        if target.exists():
            continue
        file = directory / "downloads" / Path(archive.path).name
        download(f"{url}/{archive.path}", file, check=partial(_check, size=archive.size))
        rank_zero_info(f"unpacking {file} to {target}")
        _unpack(file, archive, target)
        file.unlink()


def _refuse_other_data(directory: Path, archives: dict[str, Archive]) -> None:
    """Refuses a directory of files without any that COCO has there: whoever named it did not mean to download COCO."""
    downloads = directory / "downloads"
    whole = [
        archive.directory if isinstance(archive.needed, int) else f"{archive.directory}/{archive.needed}"
        for archive in archives.values()
    ]
    begun = [file for archive in archives.values() for file in downloads.glob(f"*{Path(archive.path).name}")]
    if not begun and not any((directory / place).exists() for place in whole):
        refuse_foreign(directory, f"nothing of COCO 2017 ({', '.join(whole)})", {downloads.name})


def _check(path: Path, size: int) -> None:
    """Refuses a file of another length, or one that is no zip archive."""
    if (found := path.stat().st_size) != size:
        raise ValueError(f"it has {found:,} bytes instead of {size:,}")
    if not zipfile.is_zipfile(path):
        raise ValueError("it is not a zip archive")


def _unpack(file: Path, archive: Archive, target: Path) -> None:
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with zipfile.ZipFile(file) as content:
            content.extractall(unfinished)  # every member is checked by its sum
        found = unfinished / archive.directory
        have = len(list(found.glob("*"))) if isinstance(archive.needed, int) else (found / archive.needed).exists()
        if have != archive.needed and have is not True:
            raise ValueError(
                f"{file} does not hold {archive.needed} in {archive.directory}/; remove it and start again"
            )
        found.replace(target)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{file} is damaged: {error}; remove it and start again") from error
    except OSError as error:
        raise ValueError(f"cannot unpack {file} to {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
