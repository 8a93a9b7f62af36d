"""What timm's ``config.json`` beside a file, or the arguments of the run that wrote it, say."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lit_models.pretrained.family import Checkpoint, Facts, pair
from lit_models.pretrained.rules import stated


def run_facts(checkpoint: Checkpoint) -> Facts:
    """Collect what timm's config.json or the arguments of the run that wrote the file say."""
    if "architecture" in checkpoint.config:
        return _config_facts(checkpoint.config)
    run = checkpoint.entries.get("args")
    if not isinstance(run, Namespace):
        return Facts()
    told = vars(run)
    said, notices = stated(
        "the run's arguments",
        {name: told.get(name) for name in ("mean", "std", "interpolation", "crop_mode")}
        | {"crop": told.get("crop_pct") or told.get("eval_crop_ratio")},
    )
    return Facts(preprocessing=said, notices=notices)


def _config_facts(config: Mapping[str, Any]) -> Facts:
    values = config.get("pretrained_cfg") or config
    arguments = config.get("model_args") or {}
    said, notices = stated(
        "config.json",
        {name: values.get(name) for name in ("mean", "std", "interpolation", "crop_mode")}
        | {"crop": values.get("crop_pct")},
    )
    pool = arguments.get("global_pool") or config.get("global_pool")
    image_size = arguments.get("img_size") or tuple(values.get("input_size", ())[1:]) or None
    names = config.get("label_names") or values.get("label_names")
    return Facts(
        num_heads=arguments.get("num_heads"),
        image_size=None if image_size is None else pair(image_size),
        pool={"token": "token", "avg": "average"}.get(pool or ""),
        preprocessing=said,
        class_names=_label_names(names, config.get("label_descriptions") or {}),
        notices=notices,
    )


def _label_names(names: Any, descriptions: Mapping[str, str]) -> list[str] | None:
    """Return the classes' descriptions, or their names; a dictionary of names has the class numbers as keys."""
    if not names:
        return None
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)]
    return [descriptions.get(name, name) for name in names]
