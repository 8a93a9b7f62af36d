"""Gather and write what ``predict`` returns."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch


def gather_predictions(predictions: Any) -> Any:
    """Return the predictions of all processes, to each of them; every process must call it.

    Args:
        predictions: What ``Trainer.predict`` returns in this process.

    Returns:
        The same for a run of one process; else the results in the order of the processes. A line that two of them
        translated, so that both had equally many batches, is there once.
    """
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return predictions
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, predictions)
    return merge_predictions(parts)


def merge_predictions(parts: list[Any]) -> list[Any]:
    """Return the results of several processes in one list; of two with the same line number the first is kept.

    Args:
        parts: What ``Trainer.predict`` returned in each process.
    """
    seen: set[int] = set()
    merged: list[Any] = []
    for part in parts:
        results = list(_flatten(part or []))
        merged += [item for item in results if not (isinstance(item, tuple) and item[0] in seen)]
        seen.update(item[0] for item in results if isinstance(item, tuple))
    return merged


def write_predictions(
    predictions: Any, directory: Path, columns: Sequence[str] = (), *, json: bool = False
) -> Path | None:
    """Write predictions into a run directory.

    Args:
        predictions: What ``Trainer.predict`` returns: one result per batch, in one list or one list per loader. Batches
            sorted by length give ``(line number, text)`` pairs; they are put back into the order of the lines.
        directory: The run directory.
        columns: What the texts hold, separated by tabs, if they are rows of a table.
        json: The texts are items of a list in JSON, several of them with a comma between; an empty one has none.

    Returns:
        ``predictions.txt`` with one line each if all are texts, or ``predictions.tsv`` with the columns' names in its
        first line, or ``predictions.json`` with the list; else ``predictions.pt``; None if there are none.
    """
    if not predictions:
        return None
    flat = list(_flatten(predictions))
    if flat and all(isinstance(item, tuple) for item in flat):
        flat = [text for _, text in sorted(flat)]
    if json:
        path = directory / "predictions.json"
        path.write_text("[\n" + ",\n".join(item for item in flat if item) + "\n]\n", encoding="utf-8")
    elif flat and all(isinstance(item, str) for item in flat):
        path = directory / ("predictions.tsv" if columns else "predictions.txt")
        head = ["\t".join(columns)] if columns else []
        path.write_text("".join(f"{item}\n" for item in [*head, *flat]), encoding="utf-8")
    else:
        path = directory / "predictions.pt"
        torch.save(predictions, path)
    return path


def _flatten(value: Any) -> Iterator[Any]:
    """Yield the results of nested lists; a ``(line number, text)`` pair is one result."""
    pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], int) and isinstance(value[1], str)
    if isinstance(value, list | tuple) and not pair:
        for item in value:
            yield from _flatten(item)
    else:
        yield value
