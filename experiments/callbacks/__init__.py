"""Callbacks of the command line; the names are loaded on first use."""

import importlib
from typing import Any

_WHERE = {
    "BestCheckpoint": "checkpoints",
    "LastCheckpoint": "checkpoints",
    "CheckpointOptions": "checkpoints",
    "GracefulStop": "graceful_stop",
    "OpenTestSplit": "open_test_split",
    "RNGState": "rng_state",
    "RunRecord": "run_record",
    "ShowDetections": "show_detections",
    "ShowImages": "show_images",
    "ShowTranslations": "show_translations",
    "StepProgressBar": "progress",
    "StopOnNonFinite": "non_finite",
    "WeightAveraging": "weight_averaging",
}
__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
