"""Hugging Face's Swin and SwinV2: the names on disk, the names of V1 in memory since version 5, and the JSON files."""

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from torch import Tensor

from lit_models.classification.swin import SwinTransformer
from lit_models.pretrained.family import Checkpoint, Facts, Family, Source, Weights, pair
from lit_models.pretrained.huggingface_config import config_facts
from lit_models.pretrained.rules import RULES
from lit_models.pretrained.swin_architecture import SWIN, per_stage, windows_of, windows_within
from lit_models.pretrained.swin_layouts import buffer_facts, hugging_face

_PREFIXES = ("swin.", "swinv2.", "")
_FIRST = "encoder.layers.0.blocks.0.attention."
_NORM_EPS = 1e-5


def _read(checkpoint: Checkpoint) -> Source:
    names = checkpoint.tensors.keys()
    prefix = next(prefix for prefix in _PREFIXES if any(name.startswith(f"{prefix}encoder.") for name in names))
    version = 2 if f"{prefix}{_FIRST}self.logit_scale" in names else 1
    layout = hugging_face(prefix, version=version, memory=f"{prefix}{_FIRST}q_proj.weight" in names)
    weights = layout.read(checkpoint.tensors)
    _check_config(checkpoint.config, weights)
    patch_size, stages = weights.shape("patch_embedding.weight", 4)[2], layout.stages(names)
    told = buffer_facts(layout, checkpoint.tensors, patch_size)
    facts = config_facts(checkpoint)
    if told.windows is None:
        told = _config_windows(checkpoint.config, facts, patch_size, stages)
    facts = replace(facts, windows=told.windows, pretrained_windows=told.pretrained_windows)
    rule = RULES["hugging face swin" if version == 1 else "hugging face swin v2"]
    return Source(f"Hugging Face Swin V{version}", SWIN, weights, rule, facts)


def _check_config(config: Mapping[str, Any], weights: Weights) -> None:
    """Raise a ValueError if config.json describes another network than the weights do, or one that is not here."""
    layers = sum(name.endswith(".attention.output.weight") for name in weights.tensors)
    if "depths" in config and sum(config["depths"]) != layers:
        raise ValueError(f"config.json has depths {config['depths']}, but the weights have {layers} layers in all")
    dim = weights.shape("patch_embedding.weight", 4)[0]
    if config.get("embed_dim", dim) != dim:
        raise ValueError(f"config.json has embed_dim {config['embed_dim']}, but the weights have {dim}")
    if config.get("layer_norm_eps", _NORM_EPS) != _NORM_EPS:
        raise ValueError(
            f"config.json has layer_norm_eps {config['layer_norm_eps']}, which Hugging Face's Swin heeds in its layers "
            f"and not in its embedding and mergings, where it is {_NORM_EPS}; only {_NORM_EPS} is supported"
        )


def _config_windows(config: Mapping[str, Any], facts: Facts, patch_size: int, stages: int) -> Facts:
    """Return the windows of a config.json: where a map is smaller, V2 makes a window of it."""
    if "window_size" not in config or facts.image_size is None:
        return Facts()
    windows = windows_within(pair(config["window_size"]), facts.image_size, patch_size, stages)
    trained = config.get("pretrained_window_sizes")
    if trained is None or not any(trained):
        return Facts(windows=windows)
    sides = [side or window for side, window in zip(trained, windows, strict=False)]
    return Facts(windows=windows, pretrained_windows=per_stage("pretrained_window_sizes", sides, stages))


def to_huggingface(network: SwinTransformer, *, memory: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return weights and config values, see :func:`lit_models.pretrained.huggingface.to_huggingface`.

    The image size of the config, which a network of any size does not have, is that of one window in the last stage,
    or of four where Hugging Face's V2 would never shift that stage otherwise, and the network does.

    Raises:
        ValueError: If one ``window_size`` cannot say the windows, or an epsilon is not Hugging Face's.
    """
    settings, stages = network.settings, len(network.stages)
    version, patch_size, windows = settings["version"], settings["patch_size"], windows_of(network)
    side, image_size = max(max(window) for window in windows), windows[-1][0] * patch_size * 2 ** (stages - 1)
    if settings["padding"] == "fixed" and not settings["unshifted_stages"]:
        image_size *= 2
    fitted = windows_within((side, side), (image_size,) * 2, patch_size, stages)
    if windows != (((side, side),) * stages if version == 1 else fitted):
        raise ValueError(f"Hugging Face's Swin V{version} has one window_size, not windows of {list(windows)}")
    if settings["norm_eps"] != _NORM_EPS:
        raise ValueError(f"Hugging Face's Swin has norm_eps={_NORM_EPS}, not {settings['norm_eps']}")
    family = "swin" if version == 1 else "swinv2"
    layout = hugging_face(f"{family}.", version=version, memory=memory)
    config = {
        "architectures": [f"{family.capitalize()}ForImageClassification"],
        "model_type": family,
        "image_size": image_size,
        "patch_size": patch_size,
        "num_channels": 3,
        "embed_dim": settings["dim"],
        "depths": list(settings["depths"]),
        "num_heads": list(settings["num_heads"]),
        "window_size": side,
        "mlp_ratio": settings["mlp_ratio"],
        "qkv_bias": settings["qkv_bias"],
        "hidden_dropout_prob": settings["dropout"],
        "attention_probs_dropout_prob": settings["attention_dropout"],
        "drop_path_rate": settings["drop_path"],
        "hidden_act": "gelu",
        "layer_norm_eps": settings["norm_eps"],
        "num_labels": network.num_classes,
    }
    if version == 2:
        trained = per_stage("pretrained_window_size", settings["pretrained_window_size"], stages)
        config["pretrained_window_sizes"] = [0] * stages if trained is None else [rows for rows, _ in trained]
    return layout.write(network.state_dict(), stages), config


def _matches(names: Set[str]) -> bool:
    return any(
        {f"{prefix}embeddings.patch_embeddings.projection.weight", f"{prefix}{_FIRST}{query}.weight"} <= names
        for prefix in _PREFIXES
        for query in ("self.query", "q_proj")
    )


SWIN_HUGGING_FACE = Family("Hugging Face Swin and SwinV2", _matches, _read)
