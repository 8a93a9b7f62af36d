"""torchvision's ``VisionTransformer`` (vit_b_16 and others) and ``SwinTransformer`` (swin_t, swin_v2_t and others).

The preprocessing is that of the published weights, found by the file's name or the number of their parameters.
"""

from collections.abc import Sequence, Set
from dataclasses import replace

import torch
from torch import Tensor

from kernels.window_attention.geometry import Geometry
from lit_models.classification.network import Classifier
from lit_models.classification.swin import SwinTransformer
from lit_models.classification.vit import VisionTransformer
from lit_models.layers.window_attention import log_spaced_offsets
from lit_models.pretrained import swin_layouts
from lit_models.pretrained.architectures import VISION_TRANSFORMER
from lit_models.pretrained.family import REPRESENTATION, Checkpoint, Facts, Family, Source
from lit_models.pretrained.names import to_ours, to_theirs
from lit_models.pretrained.rules import RULES
from lit_models.pretrained.swin_architecture import SWIN, windows_of

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
_SWINS = ("swin_t", "swin_s", "swin_b", "swin_v2_t", "swin_v2_s", "swin_v2_b")


def _read(checkpoint: Checkpoint) -> Source:
    weights = to_ours(checkpoint.tensors, NAMES | {"heads.pre_logits": REPRESENTATION}, _STRUCTURAL)
    representation = weights.drop(REPRESENTATION)
    return Source(
        "torchvision ViT",
        VISION_TRANSFORMER,
        weights,
        RULES["torchvision"],
        _facts(checkpoint, _MODELS),
        representation,
    )


def _read_swin(checkpoint: Checkpoint) -> Source:
    layout = swin_layouts.TORCHVISION
    weights = layout.read(checkpoint.tensors)
    told = swin_layouts.buffer_facts(layout, checkpoint.tensors, weights.shape("patch_embedding.weight", 4)[2])
    facts = replace(_facts(checkpoint, _SWINS), windows=told.windows, pretrained_windows=told.pretrained_windows)
    second = "features.1.0.attn.logit_scale" in checkpoint.tensors
    rule = RULES["torchvision swin v2" if second else "torchvision swin"]
    return Source(f"torchvision Swin V{2 if second else 1}", SWIN, weights, rule, facts)


def _facts(checkpoint: Checkpoint, models: Sequence[str]) -> Facts:
    """Find the published weights by the file's name or, failing that, its number of parameters."""
    from torchvision.models import get_model_weights

    published = [weights for model in models for weights in get_model_weights(model)]
    size = sum(tensor.numel() for name, tensor in checkpoint.tensors.items() if not name.endswith(swin_layouts.BUFFERS))
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
    side = transforms.crop_size[0]
    return Facts(
        image_size=(side, side),
        preprocessing=said,
        class_names=list(found[0].meta["categories"]),
        notices=notices,
    )


def _ambiguous(names: list[str]) -> str:
    return (
        f"the preprocessing is that of {names[0]}; of the same size, and not told apart, is {' and '.join(names[1:])}"
    )


def to_torchvision(network: Classifier) -> dict[str, Tensor]:
    """Return the state dict of the torchvision model that computes what a network does.

    It is a ``VisionTransformer`` or a ``SwinTransformer``; the buffers of the latter are there as well.

    Raises:
        ValueError: If torchvision has no such network.
    """
    if isinstance(network, SwinTransformer):
        return _swin_to_torchvision(network)
    if not isinstance(network, VisionTransformer) or network.settings["pool"] != "token":
        raise ValueError("torchvision's layout is for a SwinTransformer or a VisionTransformer with pool='token'")
    if not network.settings["prefix_positions"]:
        raise ValueError("torchvision's ViT has a position for its class token: prefix_positions must be true")
    return to_theirs(network.state_dict(), NAMES)


def _swin_to_torchvision(network: SwinTransformer) -> dict[str, Tensor]:
    windows, second = windows_of(network), network.settings["version"] == 2
    if len({*windows}) > 1:
        raise ValueError(f"torchvision's Swin has one window_size, not windows of {list(windows)}")
    if not network.settings["qkv_bias"]:
        raise ValueError("torchvision's Swin has a bias on queries, keys and values: qkv_bias must be true")
    state = swin_layouts.TORCHVISION.write(network.state_dict(), len(network.stages))
    (rows, columns), index = (
        windows[0],
        Geometry(*windows[0], windows[0], (0, 0), roll_first=False).relative().flatten(),
    )
    for number, stage in enumerate(network.stages):
        for layer, attention in enumerate(layer.attention for layer in stage.layers):  # type: ignore[union-attr]
            beginning = f"{swin_layouts.TORCHVISION.beginning(number)}{layer}.attn"
            state[f"{beginning}.relative_position_index"] = index
            if second:
                unit = attention.pretrained_window_size or windows[0]
                offsets = log_spaced_offsets(windows[0], unit, torch.device("cpu"))
                state[f"{beginning}.relative_coords_table"] = offsets.view(1, 2 * rows - 1, 2 * columns - 1, 2)
    return state


def _matches(names: Set[str]) -> bool:
    return {"conv_proj.weight", "encoder.layers.encoder_layer_0.ln_1.weight"} <= names or (
        any(name.startswith("conv_proj.") for name in names) and "encoder.pos_embedding" in names
    )


TORCHVISION = Family("torchvision ViT", _matches, _read)
SWIN_TORCHVISION = Family(
    "torchvision Swin V1 and V2",
    lambda names: {"features.0.0.weight", "features.1.0.attn.qkv.weight"} <= names,
    _read_swin,
)
