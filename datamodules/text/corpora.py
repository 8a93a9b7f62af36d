"""Named corpora: written or downloaded into a directory, checked by their known line counts."""

import filecmp
import json
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.text.corpus import is_blank, read_lines
from datamodules.text.download import download

SYNTHETIC_SETTINGS = {"seed": 0, "train": 20_000, "valid": 1_000, "test": 1_000}
"""What the built-in corpus is drawn from, and its sentence pairs."""

MULTI30K_URL = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw"
"""Raw captions of Elliott et al. 2016, https://arxiv.org/abs/1605.00459."""
MULTI30K_LINES = {
    "train": 29_000,
    "val": 1_014,
    "test_2016_flickr": 1_000,
    "test_2017_flickr": 1_000,
    "test_2017_mscoco": 461,
}
MULTI30K_LANGUAGES = ("cs", "de", "en", "fr")

WMT14_URL = "https://www.statmt.org"
"""The task's own site, https://www.statmt.org/wmt14/translation-task.html."""


@dataclass(frozen=True)
class ArchivePart:
    """Two line-aligned members of a tar archive.

    Attributes:
        archive: Path of the archive below the site's address.
        members: Member of each language, English first.
        lines: Lines in each member.
    """

    archive: str
    members: tuple[str, str]
    lines: int


WMT14_PARTS = {
    "train": (
        ArchivePart(
            "wmt13/training-parallel-europarl-v7.tgz",
            ("training/europarl-v7.de-en.en", "training/europarl-v7.de-en.de"),
            1_920_209,
        ),
        ArchivePart(
            "wmt13/training-parallel-commoncrawl.tgz", ("commoncrawl.de-en.en", "commoncrawl.de-en.de"), 2_399_123
        ),
        ArchivePart(
            "wmt14/training-parallel-nc-v9.tgz",
            ("training/news-commentary-v9.de-en.en", "training/news-commentary-v9.de-en.de"),
            201_288,
        ),
    ),
    "newstest2013": (ArchivePart("wmt14/dev.tgz", ("dev/newstest2013.en", "dev/newstest2013.de"), 3_000),),
    "newstest2014": (
        ArchivePart(
            "wmt14/test-full.tgz",
            ("test-full/newstest2014-deen-src.en.sgm", "test-full/newstest2014-deen-ref.de.sgm"),
            3_003,
        ),
    ),
}


def fetch_corpus(name: str, directory: Path, prefixes: Iterable[str], languages: tuple[str, str]) -> None:
    """Puts a named corpus into a directory, unless its files are there.

    Args:
        name: ``synthetic``, ``multi30k`` or ``wmt14``; ``directory`` does nothing.
        directory: Where the files belong.
        prefixes: The splits that are wanted.
        languages: Source and target language.

    Raises:
        ValueError: If the corpus has no such split or language, a download is not what it must be, or the disk is full.
        FileNotFoundError: If a download fails.
    """
    try:
        if name == "synthetic":
            write_synthetic(directory, languages)
        elif name == "multi30k":
            fetch_multi30k(directory, prefixes, languages)
        elif name == "wmt14":
            fetch_wmt14(directory, prefixes, languages)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise ValueError(f"cannot write the corpus {name} to {directory}: {error.strerror}") from error


def write_synthetic(directory: Path, languages: tuple[str, str]) -> None:
    """Writes the built-in corpus, unless its files are there.

    ``corpus.json`` beside them says what wrote them. Files of another version of the grammar are written anew.

    Args:
        directory: Where the files belong.
        languages: Source and target language.

    Raises:
        ValueError: If there is no such language, or the directory holds files of these names that are not the corpus.
    """
    _refuse_unknown("synthetic", "language", languages, ("en", "de"))
    from datamodules.synthetic.translation import GENERATOR_VERSION, write_corpus

    names = [f"{split}.{language}" for split in ("train", "valid", "test") for language in ("en", "de")]
    there = [name for name in names if (directory / name).exists()]
    record = directory / "corpus.json"
    settings = {"generator": GENERATOR_VERSION, **SYNTHETIC_SETTINGS}
    found = _read_settings(record)
    if found == settings and there == names:
        return
    rank_zero_info(f"writing the built-in corpus to {directory}")
    unfinished = directory / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        write_corpus(unfinished, **SYNTHETIC_SETTINGS)
        if found is None:
            _, other, unreadable = filecmp.cmpfiles(directory, unfinished, there, shallow=False)
            if foreign := other + unreadable:
                raise ValueError(
                    f"{directory} holds files that are not the built-in corpus: {', '.join(foreign)}; use "
                    "corpus=directory for files of your own, or move them away to have the corpus written"
                )
        (unfinished / record.name).write_text(json.dumps(settings) + "\n", encoding="utf-8")
        for name in [*names, record.name]:  # the record comes last: without it the files count for nothing
            (unfinished / name).replace(directory / name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _read_settings(record: Path) -> dict[str, Any] | None:
    """Returns what wrote the files beside a ``corpus.json``; ``None`` if it does not say so."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and "generator" in found else None


def fetch_multi30k(
    directory: Path, prefixes: Iterable[str], languages: tuple[str, str], url: str = MULTI30K_URL
) -> None:
    """Downloads Multi30k's files, checking their line counts; files that are there, packed or plain, stay."""
    prefixes = list(prefixes)
    _refuse_unknown("multi30k", "split", prefixes, MULTI30K_LINES)
    _refuse_unknown("multi30k", "language", languages, MULTI30K_LANGUAGES)
    for prefix in prefixes:
        for language in languages:
            path = directory / f"{prefix}.{language}.gz"
            if not path.exists() and not path.with_suffix("").exists():
                download(f"{url}/{path.name}", path, check=partial(check_lines, expected=MULTI30K_LINES[prefix]))


def fetch_wmt14(
    directory: Path,
    prefixes: Iterable[str],
    languages: tuple[str, str],
    url: str = WMT14_URL,
    parts: dict[str, tuple[ArchivePart, ...]] = WMT14_PARTS,
) -> None:
    """Downloads WMT14's archives and writes the splits out of them; splits that are there stay.

    The archives are kept in ``downloads``. Pairs with a blank side, which Europarl has, are left out of training.
    """
    prefixes = list(prefixes)
    _refuse_unknown("wmt14", "split", prefixes, parts)
    _refuse_unknown("wmt14", "language", languages, ("en", "de"))
    for prefix in prefixes:
        files = [directory / f"{prefix}.{language}" for language in ("en", "de")]
        if all(file.exists() or file.with_name(file.name + ".gz").exists() for file in files):
            continue
        for part in parts[prefix]:
            archive = directory / "downloads" / Path(part.archive).name
            download(f"{url}/{part.archive}", archive, check=partial(_check_archive, members=part.members))
        unfinished = [file.with_name(f".{file.name}.unfinished") for file in files]
        blank = _write_parts(directory / "downloads", parts[prefix], unfinished, skip_blank=prefix == "train")
        if blank:
            rank_zero_info(f"{directory / prefix}.{{en,de}}: {blank:,} pairs with a blank side are left out")
        for partial_file, file in zip(unfinished, files, strict=True):
            partial_file.replace(file)


def _refuse_unknown(corpus: str, what: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    allowed = list(allowed)
    for value in given:
        if value not in allowed:
            raise ValueError(f"corpus={corpus} has no {what} {value!r}; it has {', '.join(allowed)}")


def check_lines(path: Path, expected: int) -> None:
    """Refuses a file with another number of lines.

    Raises:
        ValueError: If the count differs, or the file is no text.
    """
    found = sum(1 for _ in read_lines(path))
    if found != expected:
        raise ValueError(f"{path.name} has {found:,} lines instead of {expected:,}")


def _check_archive(path: Path, members: tuple[str, str]) -> None:
    """Refuses an archive that is damaged or lacks a member."""
    try:
        with tarfile.open(path) as archive:
            names = {name.removeprefix("./") for name in archive.getnames()}
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole tar archive: {error}") from error
    if missing := [member for member in members if member not in names]:
        raise ValueError(f"{path} does not hold {' and '.join(missing)}")


def _write_parts(downloads: Path, parts: Iterable[ArchivePart], files: list[Path], *, skip_blank: bool) -> int:
    """Writes the members of archives one after the other into two aligned files; returns the pairs left out."""
    blank = 0
    with ExitStack() as stack:
        outputs = [stack.enter_context(file.open("w", encoding="utf-8", newline="\n")) for file in files]
        for part in parts:
            unpacked = [_unpack(downloads / Path(part.archive).name, member) for member in part.members]
            for member in unpacked:
                check_lines(member, part.lines)
            for pair in zip(*map(read_lines, unpacked), strict=True):
                if skip_blank and any(map(is_blank, pair)):
                    blank += 1
                    continue
                for output, line in zip(outputs, pair, strict=True):
                    output.write(line + "\n")
            for member in unpacked:
                member.unlink()
    return blank


def _unpack(archive: Path, member: str) -> Path:
    """Writes a member beside its archive as plain lines; the segments of an SGML file become lines."""
    path = archive.with_name(Path(member).name.removesuffix(".sgm") + ".unpacked")
    with tarfile.open(archive) as tar:
        entry = next(entry for entry in tar if entry.name.removeprefix("./") == member)
        content = cast(BinaryIO, tar.extractfile(entry))
        with path.open("wb") as file:
            if member.endswith(".sgm"):
                file.writelines(_segments(content))
            else:
                shutil.copyfileobj(content, file)
    return path


def _segments(sgml: BinaryIO) -> Iterator[bytes]:
    """Yields the text of each ``<seg>``, spaces joined as sacreBLEU does."""
    for found in re.finditer(rb"<seg[^>]*>(.*?)</seg>", sgml.read(), re.DOTALL):
        yield b" ".join(found[1].split()) + b"\n"
