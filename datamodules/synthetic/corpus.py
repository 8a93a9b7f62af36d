"""How a built-in corpus of images comes into a directory: whole or not at all, and never over somebody else's files."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
        directory: Where the parts and the record go; made if it is missing.
        settings: What decides the corpus, ``generator`` (its version) among it.
        least: The smallest value of a setting.
        parts: Names of the directories that make up the corpus.
        is_whole: Says whether all files are there, where the record says that they should be.
        write: Writes the parts into an empty directory.

    Raises:
        ValueError: If a setting is too small, ``directory`` is a file, or it holds a part of somebody else.
        OSError: If the files cannot be written.
    """
    for name, smallest in least.items():
        if settings[name] < smallest:
            raise ValueError(f"{name} is {settings[name]}; give a whole number of at least {smallest}")
    record = directory / RECORD
    found = _read_record(record)
    if found == settings and is_whole():
        return
    if found is None and (foreign := [part for part in parts if (directory / part).exists()]):
        raise ValueError(
            f"{directory} holds {' and '.join(foreign)}, which the built-in corpus would replace, but no {RECORD} of "
            "its own; name another directory, or move them away"
        )
    unfinished = directory / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{directory} is not a directory; give one to write the corpus to") from error
    try:
        write(unfinished)
        # From here to the end the record says that the parts are this program's, but not whole.
        record.write_text(json.dumps({"generator": settings["generator"]}) + "\n", encoding="utf-8")
        for part in parts:
            if (directory / part).exists():
                shutil.rmtree(directory / part)
            (unfinished / part).replace(directory / part)
        (unfinished / RECORD).write_text(json.dumps(settings) + "\n", encoding="utf-8")
        (unfinished / RECORD).replace(record)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _read_record(path: Path) -> dict[str, Any] | None:
    """Returns what wrote the parts beside a record; None if it does not say so."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) and "generator" in found else None
