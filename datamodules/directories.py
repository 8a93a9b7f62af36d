"""Directories that data is written or downloaded to."""

from collections.abc import Collection
from pathlib import Path

_NAMED = 5  # entries that a message names


def refuse_foreign(directory: Path, lacks: str, leftovers: Collection[str]) -> None:
    """Refuses to fill a directory that holds files of somebody else.

    Args:
        directory: Where something is about to be written; it may be missing.
        lacks: What it would hold if the files were ours, for the message.
        leftovers: Names that an earlier attempt leaves behind.

    Raises:
        ValueError: If there is anything but leftovers; the message says how to read data that is there.
    """
    there = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    if foreign := [name for name in there if name not in leftovers]:
        names = ", ".join(foreign[:_NAMED]) + (", ..." if len(foreign) > _NAMED else "")
        raise ValueError(
            f"{directory} holds {names}, but {lacks}, so nothing is written there; name another directory, or read the "
            "data that is there with corpus=directory (--data.init_args.corpus=directory)"
        )
