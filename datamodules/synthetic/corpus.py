"""How a built-in corpus of images comes into a directory: whole or not at all, and never over somebody else's files."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.directories import refuse_foreign

RECORD = "corpus.json"
"""What wrote a corpus, beside its parts."""


def write_whole(
    directory: Path,
    settings: Mapping[str, int],
    least: Mapping[str, int],
    parts: Sequence[str],
    is_whole: Callable[[], bool],
    write: Callable[[Path], None],
) -> None:
    """Writes a corpus unless it is there; one of other settings, or one that was not finished, is replaced as a whole.

    Args:
        directory: Where the parts and the record go; made if it is missing. Without a record it must be empty.
        settings: What decides the corpus, ``generator`` (its version) among it.
        least: The smallest value of a setting.
        parts: Names of the directories that make up the corpus.
        is_whole: Says whether all files are there, where the record says that they should be.
        write: Writes the parts into an empty directory.

    Raises:
        ValueError: If a setting is too small, ``directory`` is a file, or it holds files of somebody else.
        OSError: If the files cannot be written.
    """
    for name, smallest in least.items():
        if settings[name] < smallest:
            raise ValueError(f"{name} is {settings[name]}; give a whole number of at least {smallest}")
    record = directory / RECORD
    found = _read_record(record)
    if found == settings and is_whole():
        return
    unfinished = directory / ".unfinished"
    if found is None:
        refuse_foreign(directory, f"no {RECORD} of the built-in corpus", {unfinished.name})
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{directory} is not a directory; give one to write the corpus to") from error
    try:
        write(unfinished)
        # From here to the end the record says that the parts are this program's, but not whole.
        _write_record(record, {"generator": settings["generator"]}, unfinished)
        for part in parts:
            if (directory / part).exists():
                shutil.rmtree(directory / part)
            (unfinished / part).replace(directory / part)
        _write_record(record, settings, unfinished)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_record(path: Path, settings: Mapping[str, int], unfinished: Path) -> None:
    """Writes a record whole or not at all: half of one would be a file of somebody else to the next attempt."""
    draft = unfinished / path.name
    draft.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    draft.replace(path)


def _read_record(path: Path) -> dict[str, Any] | None:
    """Returns what wrote the parts beside a record; None if it does not say so."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) and "generator" in found else None
