"""Swin V1 and V2 in the layouts of microsoft/Swin-Transformer and of timm.

Microsoft's files hold ``{"model": ...}`` with the buffers of every block, which tell windows and image size; files of
training hold the run's config beside it. timm's hold parameters alone: the windows of V2 are in its ``config.json``, or
in the file's name (``swinv2_base_window12to16_192to256``), where the windows of pre-training stand first.
"""

import re
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from lit_models.pretrained.family import Checkpoint, Facts, Family, Size, Source, pair
from lit_models.pretrained.rules import RULES, stated
from lit_models.pretrained.swin_architecture import SWIN, per_stage, windows_within
from lit_models.pretrained.swin_layouts import OFFICIAL, TIMM, buffer_facts
from lit_models.pretrained.timm_config import run_facts

_NAMED = re.compile(r"window(?:(\d+)to)?(\d+)_(?:(\d+)to)?(\d+)")


def _read(checkpoint: Checkpoint) -> Source:
    names = checkpoint.tensors.keys()
    official = "head.fc.weight" not in names and (
        "layers.0.downsample.reduction.weight" in names or any("relative_position_index" in name for name in names)
    )
    layout, rule = (OFFICIAL, "swin") if official else (TIMM, "timm swin")
    weights = layout.read(checkpoint.tensors)
    patch_size, stages = weights.shape("patch_embedding.weight", 4)[2], layout.stages(names)
    facts = _run_facts(checkpoint) if "DATA" in (checkpoint.entries.get("config") or {}) else run_facts(checkpoint)
    told = buffer_facts(layout, checkpoint.tensors, patch_size)
    if told.windows is None:
        told = _config_facts(checkpoint.config, patch_size, stages)
    if told.windows is None:
        told = _named_facts(checkpoint.path.stem, "the file's name", patch_size, stages)
    facts = replace(
        facts,
        image_size=facts.image_size or told.image_size,
        windows=told.windows,
        pretrained_windows=told.pretrained_windows,
        notices=(*facts.notices, *told.notices),
    )
    version = 2 if "layers.0.blocks.0.attn.logit_scale" in names else 1
    return Source(f"{'official' if official else 'timm'} Swin V{version}", SWIN, weights, RULES[rule], facts)


def _run_facts(checkpoint: Checkpoint) -> Facts:
    """Collect what the config of a run of microsoft/Swin-Transformer says."""
    config: Mapping[str, Any] = checkpoint.entries["config"]
    data, test = config["DATA"], config.get("TEST") or {}
    squash = {"crop": 1.0, "crop_mode": "squash"} if test.get("CROP") is False else {}
    said, notices = stated("the run's config", {"interpolation": data.get("INTERPOLATION"), **squash})
    size = data.get("IMG_SIZE")
    return Facts(image_size=None if size is None else pair(size), preprocessing=said, notices=notices)


def _config_facts(config: Mapping[str, Any], patch_size: int, stages: int) -> Facts:
    """Collect the windows that timm's config.json says: among the arguments of the model, or in its name."""
    arguments = config.get("model_args") or {}
    named = _named_facts(config.get("architecture", ""), "config.json", patch_size, stages)
    image_size = arguments.get("img_size") or (config.get("pretrained_cfg") or {}).get("input_size", ())[1:]
    image_size = pair(image_size) if image_size else named.image_size
    if image_size is None or "window_size" not in arguments:
        return named
    windows = _per_stage("window_size", arguments["window_size"], stages)
    trained = _per_stage("pretrained_window_sizes", arguments.get("pretrained_window_sizes"), stages)
    fitted = tuple(
        windows_within(window, image_size, patch_size, stages)[stage] for stage, window in enumerate(windows or ())
    )
    return Facts(image_size=image_size, windows=fitted, pretrained_windows=trained or named.pretrained_windows)


def _per_stage(name: str, windows: Any, stages: int) -> tuple[Size, ...] | None:
    """Read windows as timm writes them: two numbers are rows and columns."""
    if isinstance(windows, (list, tuple)) and len(windows) == 2 and all(isinstance(side, int) for side in windows):
        windows = [windows] * stages
    return per_stage(name, windows, stages)


def _named_facts(name: str, where: str, patch_size: int, stages: int) -> Facts:
    """Collect what the name of a published network says: its windows at its image size, and those before tuning."""
    found = _NAMED.search(name)
    if found is None:
        return Facts()
    before, after, size_before, size = found.groups()
    window, image_size = (int(after),) * 2, (int(size),) * 2
    trained = None
    if before is not None:
        trained = windows_within((int(before),) * 2, (int(size_before or size),) * 2, patch_size, stages)
    windows = windows_within(window, image_size, patch_size, stages)
    notice = f"windows of {after} at {size} pixels, by {where}: {name}"
    return Facts(image_size=image_size, windows=windows, pretrained_windows=trained, notices=(notice,))


def _matches(names: Set[str]) -> bool:
    return {"patch_embed.proj.weight", "layers.0.blocks.0.attn.qkv.weight"} <= names and bool(
        {f"layers.0.blocks.0.attn.{name}" for name in ("relative_position_bias_table", "logit_scale")} & names
    )


SWIN_FAMILY = Family("timm and official Swin V1 and V2", _matches, _read)
