"""Write what ``predict`` returns."""

from pathlib import Path
from typing import Any

import torch


def write_predictions(predictions: Any, directory: Path) -> Path | None:
    """Write predictions into a run directory.

    Args:
        predictions: What ``Trainer.predict`` returns: one result per batch, in one list or one list per loader.
        directory: The run directory.

    Returns:
        ``predictions.txt`` with one line each if all are texts, else ``predictions.pt``; None if there are none.
    """
    if not predictions:
        return None
    flat = list(_flatten(predictions))
    if flat and all(isinstance(item, str) for item in flat):
        path = directory / "predictions.txt"
        path.write_text("".join(f"{item}\n" for item in flat), encoding="utf-8")
    else:
        path = directory / "predictions.pt"
        torch.save(predictions, path)
    return path


def _flatten(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _flatten(item)
    else:
        yield value
