"""Hugging Face's ViT and DeiT: the names on disk, the names in memory since version 5, and the two JSON files.

The layout keeps query, key and value apart and has an epsilon of 1e-12. ``preprocessor_config.json`` says how images
are prepared. A DeiT without the second head (``DeiTForImageClassification``) never reads its distillation token's
output, which makes that token a register.
"""

from collections.abc import Mapping, Set
from typing import Any, Literal

from torch import Tensor

from lit_models.classification.network import Classifier
from lit_models.classification.swin import SwinTransformer
from lit_models.classification.vit import VisionTransformer
from lit_models.pretrained import swin_huggingface
from lit_models.pretrained.architectures import VISION_TRANSFORMER
from lit_models.pretrained.family import Checkpoint, Family, Source, Weights, pair
from lit_models.pretrained.huggingface_config import config_facts
from lit_models.pretrained.names import to_ours, to_theirs
from lit_models.pretrained.rules import RULES

Layout = Literal["disk", "memory"]

_STEM = {
    "embeddings.cls_token": "class_token",
    "embeddings.position_embeddings": "positions",
    "embeddings.distillation_token": "distillation_token",
    "embeddings.patch_embeddings.projection": "patch_embedding",
    "layernorm": "norm",
}
_DISK = {
    "attention.attention.query": "attention.query",
    "attention.attention.key": "attention.key",
    "attention.attention.value": "attention.value",
    "attention.output.dense": "attention.output",
    "intermediate.dense": "feed_forward.expand",
    "output.dense": "feed_forward.contract",
    "layernorm_before": "attention_norm",
    "layernorm_after": "feed_forward_norm",
}
_MEMORY = {
    "attention.q_proj": "attention.query",
    "attention.k_proj": "attention.key",
    "attention.v_proj": "attention.value",
    "attention.o_proj": "attention.output",
    "mlp.fc1": "feed_forward.expand",
    "mlp.fc2": "feed_forward.contract",
    "layernorm_before": "attention_norm",
    "layernorm_after": "feed_forward_norm",
}
_HEADS = {"classifier": "head", "cls_classifier": "head", "distillation_classifier": "head_distillation"}
_LAYERS = {"disk": ("encoder.layer.*", _DISK), "memory": ("layers.*", _MEMORY)}
_STRUCTURAL = ("embeddings.patch_embeddings", "embeddings.register_tokens", "encoder.", "layers.", "layernorm")


def _names(layout: Layout, prefix: str) -> dict[str, str]:
    beginning, table = _LAYERS[layout]
    names = _STEM | {f"{beginning}.{name}": f"layers.*.{own}" for name, own in table.items()}
    return {f"{prefix}{name}": own for name, own in names.items()}


def _read(checkpoint: Checkpoint) -> Source:
    tensors = checkpoint.tensors
    prefix = next((prefix for prefix in ("vit.", "deit.") if any(name.startswith(prefix) for name in tensors)), "")
    layout: Layout = "disk" if any(name.startswith(f"{prefix}encoder.layer.") for name in tensors) else "memory"
    names = _names(layout, prefix) | _HEADS
    token = f"{prefix}embeddings.distillation_token"
    if token in tensors and "classifier.weight" in tensors:
        names[token] = "register_tokens"
    weights = to_ours(tensors, names, [f"{prefix}{beginning}" for beginning in _STRUCTURAL])
    _check_config(checkpoint.config, weights)
    deit = token in tensors or checkpoint.config.get("model_type") == "deit"
    rule = RULES["hugging face deit" if deit else "hugging face vit"]
    return Source(
        f"Hugging Face {'DeiT' if deit else 'ViT'}", VISION_TRANSFORMER, weights, rule, config_facts(checkpoint)
    )


def _check_config(config: Mapping[str, Any], weights: Weights) -> None:
    """Raise a ValueError if config.json describes another network than the weights do: half a file, or another's."""
    layers = {name.split(".")[1] for name in weights.tensors if name.startswith("layers.")}
    found = {"num_hidden_layers": len(layers), "hidden_size": weights.shape("class_token", 3)[2]}
    for name, value in found.items():
        if config.get(name, value) != value:
            raise ValueError(f"config.json has {name} {config[name]}, but the weights have {value}")


def to_huggingface(network: Classifier, *, layout: Layout = "disk") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights and the config values of the Hugging Face model that computes what a network does.

    Of a ``VisionTransformer`` it is a ``ViTForImageClassification``, a ``DeiTForImageClassificationWithTeacher`` if the
    network is distilled, or a ``DeiTForImageClassification`` if it has one register; of a ``SwinTransformer`` it is a
    ``SwinForImageClassification`` or a ``Swinv2ForImageClassification``: the values' ``architectures`` says which.

    Args:
        network: A ``VisionTransformer`` or a ``SwinTransformer``.
        layout: Names of the files on the Hub (``"disk"``, for ``save_file``) or of a model of version 5
            (``"memory"``, for ``load_state_dict``).

    Raises:
        ValueError: If Hugging Face has no such network.
    """
    if isinstance(network, SwinTransformer):
        return swin_huggingface.to_huggingface(network, memory=layout == "memory")
    if not isinstance(network, VisionTransformer):
        raise ValueError(
            f"Hugging Face's layout is for VisionTransformer and SwinTransformer, not for {type(network).__name__}"
        )
    settings = network.settings
    register = settings["registers"] == 1 and not settings["distilled"]
    fits = {"pool": "token", "prefix_positions": True, "qk_norm": False, "layer_scale": None, "class_token": True}
    wrong = [name for name, value in fits.items() if settings[name] != value]
    wrong += ["registers"] if settings["registers"] and not register else []
    if wrong:
        raise ValueError(f"Hugging Face's ViT and DeiT have no {', '.join(f'{n}={settings[n]!r}' for n in wrong)}")
    family, architecture, heads = "vit", "ViTForImageClassification", {"classifier": "head"}
    if settings["distilled"]:
        family, architecture = "deit", "DeiTForImageClassificationWithTeacher"
        heads = {"cls_classifier": "head", "distillation_classifier": "head_distillation"}
    elif register:
        family, architecture = "deit", "DeiTForImageClassification"
    names = _names(layout, f"{family}.")
    if register:
        names["deit.embeddings.distillation_token"] = "register_tokens"
    state = to_theirs(network.state_dict(), names | heads, split="")
    return state, {"architectures": [architecture], "model_type": family, **_config(network)}


def _config(network: Classifier) -> dict[str, Any]:
    settings = network.settings
    height, width = pair(settings["image_size"])
    rows, columns = pair(settings["patch_size"])
    return {
        "hidden_size": settings["dim"],
        "num_hidden_layers": settings["depth"],
        "num_attention_heads": settings["num_heads"],
        "intermediate_size": int(settings["dim"] * settings["mlp_ratio"]),
        "hidden_act": "gelu",
        "layer_norm_eps": settings["norm_eps"],
        "image_size": height if height == width else [height, width],
        "patch_size": rows if rows == columns else [rows, columns],
        "num_channels": 3,
        "qkv_bias": settings["qkv_bias"],
        "hidden_dropout_prob": settings["dropout"],
        "attention_probs_dropout_prob": settings["attention_dropout"],
        "num_labels": network.num_classes,
    }


def _matches(names: Set[str]) -> bool:
    return any(
        {f"{prefix}embeddings.patch_embeddings.projection.weight", f"{prefix}{query}"} <= names
        for prefix in ("", "vit.", "deit.")
        for query in ("encoder.layer.0.attention.attention.query.weight", "layers.0.attention.q_proj.weight")
    )


HUGGING_FACE = Family("Hugging Face ViT and DeiT", _matches, _read)
