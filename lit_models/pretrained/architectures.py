"""The constructor's arguments of this project's networks, read off the shapes of weights under its names."""

import re
from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

import torch
from torch.nn import functional

from lit_models.layers.position import resize_positions
from lit_models.pretrained.family import Architecture, Facts, Rule, Size, Wanted, Weights

# Published networks whose heads are not 64 wide: ViT-H (80), ViT-g (88) and ViT-G (104).
_SIXTEEN_HEADS = (1280, 1408, 1664)
_HEAD_DIM = 64
_LAYER = re.compile(r"layers\.(\d+)\.")
_CLASS_LAYER = re.compile(r"class_layers\.(\d+)\.")


def vit_settings(weights: Weights, facts: Facts, rule: Rule, image_size: Size | None) -> dict[str, Any]:
    """Return the arguments of ``VisionTransformer`` at the resolution of the weights.

    Args:
        weights: Under this project's names.
        facts: What the file says, which decides where shapes do not.
        rule: Of the source.
        image_size: The resolution wanted: tells the grid of patches where it is not square.

    Raises:
        ValueError: If shapes contradict each other, or do not say what must be known.
    """
    tensors = weights.tensors
    dim, patch_size = patch_embedding(weights)
    registers = weights.shape("register_tokens", 3)[1] if "register_tokens" in tensors else 0
    prefix = registers + sum(name in tensors for name in ("class_token", "distillation_token"))
    grid, prefix_positions = _grid(
        weights, prefix, [_over(size, patch_size) for size in (facts.image_size, image_size)]
    )
    layer_scale = "layers.0.attention_scale" in tensors
    qk_norm = "layers.0.attention.query_norm.weight" in tensors
    head_dim = weights.shape("layers.0.attention.query_norm.weight", 1)[0] if qk_norm else None
    class_token = "class_token" in tensors
    pool_norm = weights.origin.get("norm.weight", "").endswith("fc_norm.weight")
    return {
        "image_size": (grid[0] * patch_size[0], grid[1] * patch_size[1]),
        "patch_size": patch_size,
        "dim": dim,
        "depth": _depth(weights, _LAYER),
        "num_heads": _num_heads(dim, facts.num_heads, head_dim),
        "mlp_ratio": mlp_ratio(weights, dim),
        "distilled": "distillation_token" in tensors,
        "class_token": class_token,
        "registers": registers,
        "pool": facts.pool or ("average" if pool_norm or not class_token else "token"),
        "pool_norm": pool_norm,
        "prefix_positions": prefix_positions,
        "qkv_bias": "layers.0.attention.query_key_value.bias" in tensors,
        "qk_norm": qk_norm,
        "layer_scale": 1e-4 if layer_scale else None,
        # DeiT-III, the one with LayerScale, drops every layer's path with one probability.
        "drop_path_mode": "constant" if layer_scale else "linear",
        "norm_eps": rule.norm_eps if facts.norm_eps is None else facts.norm_eps,
        "position_antialias": rule.position_antialias,
    }


def cait_settings(weights: Weights, facts: Facts, rule: Rule, image_size: Size | None) -> dict[str, Any]:
    """Return the arguments of ``CaiT`` at the resolution of the weights, see :func:`vit_settings`."""
    dim, patch_size = patch_embedding(weights)
    grid, _ = _grid(weights, 0, [_over(size, patch_size) for size in (facts.image_size, image_size)])
    depth = _depth(weights, _LAYER)
    mixed = weights.shape("layers.0.attention.mix_scores.weight", 2)[0]
    if facts.num_heads not in (None, mixed):
        name = weights.origin["layers.0.attention.mix_scores.weight"]
        raise ValueError(f"num_heads {facts.num_heads} was given, but {name!r} mixes {mixed} heads")
    return {
        "image_size": (grid[0] * patch_size[0], grid[1] * patch_size[1]),
        "patch_size": patch_size,
        "dim": dim,
        "depth": depth,
        "class_depth": _depth(weights, _CLASS_LAYER),
        "num_heads": mixed,
        "mlp_ratio": mlp_ratio(weights, dim),
        "qkv_bias": "layers.0.attention.query_key_value.bias" in weights.tensors,
        "layer_scale": 1e-5 if depth <= 24 or dim == 192 else 1e-6,
        "norm_eps": rule.norm_eps if facts.norm_eps is None else facts.norm_eps,
        "position_antialias": rule.position_antialias,
    }


def complete(weights: Weights, facts: Facts, wanted: Wanted) -> Facts:
    """Return the facts with the number of heads that a person gave, if any.

    Raises:
        ValueError: If the file says another, or windows are given.
    """
    heads = wanted.num_heads
    if wanted.window_size is not None or wanted.pretrained_window_size is not None:
        raise ValueError("window_size was given, but this network has no windows: it is for a Swin Transformer")
    if heads is None:
        return facts
    if not isinstance(heads, int) or facts.num_heads not in (None, heads):
        raise ValueError(f"num_heads {heads} was given, but the file says {facts.num_heads or 'one number'}")
    return replace(facts, num_heads=heads)


def change(weights: Weights, described: Mapping[str, Any], wanted: Wanted, rule: Rule) -> dict[str, Any]:
    """Resample the position table from the described image size to the wanted one, as the source does."""
    settings = dict(described) | ({} if wanted.image_size is None else {"image_size": wanted.image_size})
    _resize(weights, described, settings, rule)
    return settings


def _resize(weights: Weights, old: Mapping[str, Any], new: Mapping[str, Any], rule: Rule) -> None:
    old_grid, new_grid = (_over(settings["image_size"], settings["patch_size"]) for settings in (old, new))
    if old_grid is None or new_grid is None or old_grid == new_grid:
        return
    table = weights.tensors["positions"]
    prefix = table.shape[1] - old_grid[0] * old_grid[1]
    if not rule.position_corners:
        weights.tensors["positions"] = resize_positions(
            table, old_grid, new_grid, prefix=prefix, antialias=rule.position_antialias
        )
        return
    patches = table[:, prefix:].unflatten(1, old_grid).permute(0, 3, 1, 2)
    patches = functional.interpolate(patches, new_grid, mode=rule.position_mode, align_corners=True)
    weights.tensors["positions"] = torch.cat([table[:, :prefix], patches.flatten(2).transpose(1, 2)], dim=1)


VISION_TRANSFORMER = Architecture("VisionTransformer", complete, vit_settings, change, ("head.", "head_distillation."))
CAIT = Architecture("CaiT", complete, cait_settings, change, ("head.",))


def patch_embedding(weights: Weights) -> tuple[int, Size]:
    """Return the width of a token and the (height, width) of a patch."""
    dim, channels, height, width = weights.shape("patch_embedding.weight", 4)
    if channels != 3:
        name = weights.origin["patch_embedding.weight"]
        raise ValueError(f"{name!r} has shape {(dim, channels, height, width)}: it reads {channels} channels, not 3")
    return dim, (height, width)


def _depth(weights: Weights, layer: re.Pattern[str]) -> int:
    numbers = {int(found[1]) for name in weights.tensors if (found := layer.match(name))}
    return 1 + max(numbers, default=-1)


def mlp_ratio(weights: Weights, dim: int, layer: str = "layers.0") -> float:
    """Return the ratio of which the network makes exactly the width that the weights of a layer have."""
    hidden = weights.shape(f"{layer}.feed_forward.expand.weight", 2)[0]
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else (hidden + 0.5) / dim


def _num_heads(dim: int, told: int | None, head_dim: int | None) -> int:
    if told is None and head_dim is None:
        if dim in _SIXTEEN_HEADS:
            return 16
        if dim % _HEAD_DIM:
            raise ValueError(
                f"the number of attention heads is not in the weights, and a width of {dim} is no multiple of "
                f"{_HEAD_DIM}: give num_heads"
            )
        return dim // _HEAD_DIM
    heads = dim // head_dim if head_dim else told
    if told not in (None, heads):
        raise ValueError(f"num_heads {told} was given, but the norms of queries and keys are for {heads} heads")
    if not heads or dim % heads:
        raise ValueError(f"num_heads {heads} does not divide the width {dim}")
    return heads


def _over(image_size: Size | None, patch_size: Size) -> Size | None:
    return None if image_size is None else (image_size[0] // patch_size[0], image_size[1] // patch_size[1])


def _grid(weights: Weights, prefix: int, told: list[Size | None]) -> tuple[Size, bool]:
    """Return the grid of patches of the position table, and whether the table has places for the prefix tokens.

    What is told decides where it fits the table; else the grid is square.
    """
    rows = weights.shape("positions", 3)[1]
    for grid in (grid for grid in told if grid is not None):
        for inside in (prefix, 0):
            if grid[0] * grid[1] + inside == rows:
                return grid, inside > 0 or prefix == 0
    for inside in (0, prefix):
        side = isqrt(max(rows - inside, 0))
        if side > 0 and side * side + inside == rows:
            return (side, side), inside > 0 or prefix == 0
    raise ValueError(
        f"{weights.origin['positions']!r} has shape {tuple(weights.tensors['positions'].shape)}: {rows} rows are no "
        f"square grid of patches, with or without {prefix} further tokens; give the image_size of the checkpoint"
    )
