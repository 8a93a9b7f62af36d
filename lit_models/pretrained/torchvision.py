"""torchvision's ``VisionTransformer`` (vit_b_16 and others), with the transforms of its published weights."""

from collections.abc import Set

from torch import Tensor

from lit_models.classification.network import Classifier
from lit_models.classification.vit import VisionTransformer
from lit_models.pretrained.architectures import VISION_TRANSFORMER
from lit_models.pretrained.family import REPRESENTATION, Checkpoint, Facts, Family, Source
from lit_models.pretrained.names import to_ours, to_theirs
from lit_models.pretrained.rules import RULES

_LAYERS = {
    "ln_1": "attention_norm",
    "self_attention.out_proj": "attention.output",
    "self_attention.in_proj_weight": "attention.query_key_value.weight",
    "self_attention.in_proj_bias": "attention.query_key_value.bias",
    "ln_2": "feed_forward_norm",
    "mlp.0": "feed_forward.expand",
    "mlp.3": "feed_forward.contract",
}
_OLD_LAYERS = {"mlp.linear_1": "feed_forward.expand", "mlp.linear_2": "feed_forward.contract"}
NAMES = {
    "class_token": "class_token",
    "conv_proj": "patch_embedding",
    "encoder.pos_embedding": "positions",
    **{f"encoder.layers.encoder_layer_*.{name}": f"layers.*.{own}" for name, own in (_LAYERS | _OLD_LAYERS).items()},
    "encoder.ln": "norm",
    "heads.head": "head",
}
_STRUCTURAL = ("conv_proj", "encoder", "class_token")
_MODELS = ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14")


def _read(checkpoint: Checkpoint) -> Source:
    weights = to_ours(checkpoint.tensors, NAMES | {"heads.pre_logits": REPRESENTATION}, _STRUCTURAL)
    representation = weights.drop(REPRESENTATION)
    return Source(
        "torchvision ViT", VISION_TRANSFORMER, weights, RULES["torchvision"], _facts(checkpoint), representation
    )


def _facts(checkpoint: Checkpoint) -> Facts:
    """Find the published weights by the file's name or, failing that, its number of parameters."""
    from torchvision.models import get_model_weights

    published = [weights for model in _MODELS for weights in get_model_weights(model)]
    size = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    by_name = [weights for weights in published if weights.url.endswith(f"/{checkpoint.path.name}")]
    found = by_name or [weights for weights in published if weights.meta["num_params"] == size]
    if not found:
        return Facts()
    transforms = found[0].transforms()
    said = {
        "crop": transforms.crop_size[0] / transforms.resize_size[0],
        "crop_mode": "center",
        "interpolation": transforms.interpolation.value,
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
    }
    notices = () if len(found) == 1 else (_ambiguous([str(weights) for weights in found]),)
    return Facts(preprocessing=said, class_names=list(found[0].meta["categories"]), notices=notices)


def _ambiguous(names: list[str]) -> str:
    return (
        f"the preprocessing is that of {names[0]}; of the same size, and not told apart, is {' and '.join(names[1:])}"
    )


def to_torchvision(network: Classifier) -> dict[str, Tensor]:
    """Return the state dict of the torchvision ``VisionTransformer`` that computes what a network does.

    Raises:
        ValueError: If torchvision has no such network.
    """
    if not isinstance(network, VisionTransformer) or network.settings["pool"] != "token":
        raise ValueError("torchvision's layout is for a VisionTransformer with pool='token'")
    if not network.settings["prefix_positions"]:
        raise ValueError("torchvision's ViT has a position for its class token: prefix_positions must be true")
    return to_theirs(network.state_dict(), NAMES)


def _matches(names: Set[str]) -> bool:
    return {"conv_proj.weight", "encoder.layers.encoder_layer_0.ln_1.weight"} <= names or (
        any(name.startswith("conv_proj.") for name in names) and "encoder.pos_embedding" in names
    )


TORCHVISION = Family("torchvision ViT", _matches, _read)
