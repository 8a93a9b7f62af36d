"""What Hugging Face's ``config.json`` and ``preprocessor_config.json`` beside a file say."""

from collections.abc import Mapping
from typing import Any

from lit_models.pretrained.family import Checkpoint, Facts, pair
from lit_models.pretrained.rules import stated

_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_NO_PROCESSOR = "there is no preprocessor_config.json: the preprocessing is the usual one of the source"


def config_facts(checkpoint: Checkpoint) -> Facts:
    """Collect what config.json and preprocessor_config.json say."""
    config = checkpoint.config if "model_type" in checkpoint.config else {}
    if config.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"config.json has hidden_act {config['hidden_act']!r}; only the exact 'gelu' is supported")
    said, notices = _processor_facts(checkpoint.processor)
    labels = config.get("id2label") or {}
    names = [str(labels[number]) for number in sorted(labels, key=int)]
    placeholders = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    return Facts(
        num_heads=config.get("num_attention_heads"),
        image_size=pair(config["image_size"]) if "image_size" in config else None,
        norm_eps=config.get("layer_norm_eps"),
        preprocessing=said,
        class_names=None if placeholders else names,
        notices=notices if checkpoint.processor else (_NO_PROCESSOR,),
    )


def _processor_facts(processor: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Translate a preprocessor_config.json; older ones have plain numbers where newer ones have dictionaries."""
    if not processor:
        return {}, ()
    values: dict[str, Any] = {"mean": processor.get("image_mean"), "std": processor.get("image_std")}
    if processor.get("do_normalize") is False:
        values |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    # Means are given for pixels times rescale_factor; ours are for pixels in [0, 1].
    unit = 255 * processor.get("rescale_factor", 1 / 255)
    for name in ("mean", "std"):
        if values[name] is not None and abs(unit - 1) > 1e-6:
            values[name] = tuple(channel / unit for channel in values[name])
    resample = processor.get("resample")
    values["interpolation"] = None if resample is None else _RESAMPLE.get(resample, f"number {resample} of Pillow")
    size = _side(processor.get("size"))
    notices: tuple[str, ...] = ()
    if processor.get("do_center_crop") and size is not None:
        crop = _side(processor.get("crop_size")) or size
        values |= {"crop": min(crop / size, 1.0), "crop_mode": "center"}
        if isinstance(processor["size"], Mapping) and "height" in processor["size"]:
            notices = (f"preprocessor_config.json squashes to {size} pixels before its crop; the aspect is kept here",)
    elif isinstance(processor.get("size"), Mapping) and "shortest_edge" in processor["size"]:
        values |= {"crop": 1.0, "crop_mode": "center"}
    elif size is not None:
        values |= {"crop": 1.0, "crop_mode": "squash"}
    said, more = stated("preprocessor_config.json", values)
    return said, (*notices, *more)


def _side(size: Any) -> int | None:
    if isinstance(size, Mapping):
        size = size.get("shortest_edge", size.get("height"))
    return None if size is None else int(size)
