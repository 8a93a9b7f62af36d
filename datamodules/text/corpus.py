"""Line-aligned text files: finding, reading and checking them.

A line ends at a newline and nowhere else. ``str.splitlines`` and text-mode reading also break at U+2028, U+0085 and
other characters that real corpora hold inside a sentence, which silently shifts one side against the other.
"""

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SHOWN_LINES = 5
# What has no width and is no white space either: soft hyphen, zero-width spaces and joiners, marks of direction.
_VISIBLE = re.compile("[^\\s\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


def find_file(directory: Path, prefix: str, language: str) -> Path:
    """Finds ``<prefix>.<language>`` or ``<prefix>.<language>.gz``.

    Raises:
        FileNotFoundError: If there is neither; the message lists what there is.
        ValueError: If there are both.
    """
    # A prefix may lead into a subdirectory.
    directory, prefix = (directory / prefix).parent, Path(prefix).name
    plain = directory / f"{prefix}.{language}"
    packed = directory / f"{prefix}.{language}.gz"
    if plain.is_file() and packed.is_file():
        raise ValueError(
            f"both {plain} and {packed.name} are there; keep the one that is meant and move the other away"
        )
    if plain.is_file():
        return plain
    if packed.is_file():
        return packed
    raise FileNotFoundError(_missing(directory, prefix, language))


def _missing(directory: Path, prefix: str, language: str) -> str:
    """Says what is there instead of the file that was asked for."""
    wanted = f"{directory / prefix}.{language}"
    if not directory.is_dir():
        return f"{wanted} (or .gz) is missing: the directory {directory} does not exist; check data_dir"
    splits = list_splits(directory)
    if prefix in splits:
        languages = ", ".join(splits[prefix])
        return f"{wanted} (or .gz) is missing: {prefix!r} is there in these languages: {languages}"
    if splits:
        there = ", ".join(f"{name}.{{{','.join(languages)}}}" for name, languages in splits.items())
        return f"{wanted} (or .gz) is missing: {directory} holds {there}; set the prefix or the language accordingly"
    return f"{wanted} (or .gz) is missing: {directory} holds no file named <prefix>.<language>"


def list_splits(directory: Path) -> dict[str, list[str]]:
    """Lists the prefixes in a directory, each with its languages, both sorted."""
    splits: dict[str, list[str]] = {}
    for path in sorted(directory.iterdir()):
        name = path.name.removesuffix(".gz")
        if path.is_file() and (found := re.fullmatch(r"(.+)\.([A-Za-z]{2,3}(?:[_-][A-Za-z]+)?)", name)):
            languages = splits.setdefault(found[1], [])
            if found[2] not in languages:
                languages.append(found[2])
    return splits


def open_text(path: Path) -> BinaryIO:
    """Opens a plain or gzip file to read its bytes."""
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def read_lines(path: Path) -> Iterator[str]:
    """Reads the lines of a plain or gzip file, without their ends and without a byte order mark.

    Raises:
        ValueError: If a line is not UTF-8, or the gzip file is damaged; the message names the file and the line.
    """
    number = 0
    try:
        with open_text(path) as file:
            for number, raw in enumerate(file, start=1):
                line = raw.removesuffix(b"\n").removesuffix(b"\r")
                yield (line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line).decode()
    except UnicodeDecodeError as error:
        bad = error.object[error.start]
        raise ValueError(
            f"{path}:{number}: not UTF-8: byte 0x{bad:02x} at position {error.start + 1} of the line ({error.reason}); "
            "convert the file, for example with iconv -f LATIN1 -t UTF-8"
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: the gzip file is damaged after line {number}: {error}; fetch it again") from error


def read_pairs(source: Path, target: Path, *, skip_empty: bool = False) -> Iterator[tuple[str, str]]:
    """Reads two line-aligned files together.

    Args:
        source: File of the source language.
        target: File of the target language.
        skip_empty: Leave out pairs of which a side is blank.

    Raises:
        ValueError: If one file ends before the other; use ``check_pair`` for a message with both counts.
    """
    for pair in zip(read_lines(source), read_lines(target), strict=True):
        if not (skip_empty and (is_blank(pair[0]) or is_blank(pair[1]))):
            yield pair


def is_blank(line: str) -> bool:
    """Says whether nothing in a line can be seen: white space in Unicode's sense and characters without width."""
    # Most lines begin with a letter; asking for that first is twice as fast.
    return not line[:1].isalnum() and _VISIBLE.search(line) is None


@dataclass(frozen=True)
class PairSummary:
    """What one pass over two line-aligned files found.

    Attributes:
        lines: Lines in each file.
        empty: Pairs of which at least one side is blank.
        digest: Hash of the text of both files, the same whether packed or plain.
    """

    lines: int
    empty: int
    digest: str


class _Side:
    """Reads one file of a pair: hashes it, counts it and notes its blank lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self.blank: list[int] = []
        self._hash = hashlib.blake2b(digest_size=16)
        self._lines = read_lines(path)

    def nextis_blank(self) -> bool | None:
        """Reads a line; ``None`` at the end of the file."""
        line = next(self._lines, None)
        if line is None:
            return None
        self.count += 1
        self._hash.update(line.encode())
        self._hash.update(b"\n")
        blank = is_blank(line)
        if blank and len(self.blank) < _SHOWN_LINES:
            self.blank.append(self.count)
        return blank

    def digest(self) -> str:
        return self._hash.hexdigest()


def check_pair(source: Path, target: Path, *, allow_empty: bool = False) -> PairSummary:
    """Checks two line-aligned files in one pass, in constant memory.

    Args:
        source: File of the source language.
        target: File of the target language.
        allow_empty: Count blank lines instead of refusing them.

    Returns:
        What the pass found.

    Raises:
        ValueError: If the counts differ, a line is blank and that is not allowed, a line is not UTF-8, or there is no
            line at all. The message names file and line.
    """
    sides = (_Side(source), _Side(target))
    empty = 0
    while True:
        first, second = (side.nextis_blank() for side in sides)
        if first is None and second is None:
            break
        empty += bool(first or second)
    counts = [side.count for side in sides]
    if counts[0] != counts[1]:
        raise ValueError(
            f"{source} has {counts[0]:,} lines but {target} has {counts[1]:,}: "
            "line n of one must be the translation of line n of the other"
        )
    if not counts[0]:
        raise ValueError(f"{source} and {target} are empty: there is no sentence pair in them")
    if empty and not allow_empty:
        raise ValueError(_blank_lines(sides, empty))
    if empty == counts[0]:
        raise ValueError(f"every pair of {source} and {target} has a blank side")
    digest = hashlib.blake2b("".join(side.digest() for side in sides).encode(), digest_size=16).hexdigest()
    return PairSummary(lines=counts[0], empty=empty, digest=digest)


def _blank_lines(sides: tuple[_Side, _Side], empty: int) -> str:
    """Names the first blank lines of both files."""
    places = [f"{side.path}:{number}" for side in sides for number in side.blank][:_SHOWN_LINES]
    more = ", ..." if empty > len(places) else ""
    lines = "line is" if empty == 1 else "lines are"
    return (
        f"{empty:,} {lines} blank: {', '.join(places)}{more}; fill or remove the pair in both files, "
        "or leave such pairs out of training with on_empty=skip"
    )
