"""ViT, DeiT, DeiT-III and CaiT in the layout of timm and facebookresearch/deit, which agree but for LayerScale.

Official files hold ``{"model": ...}``, and CaiT's names begin with ``module.``; timm's hold the weights themselves or
``state_dict``. Of the preprocessing speaks timm's ``config.json`` beside the file, or the arguments of the run in it.
"""

from collections.abc import Mapping, Set
from dataclasses import replace

from torch import Tensor

from lit_models.classification.cait import CaiT
from lit_models.classification.network import Classifier
from lit_models.classification.swin import SwinTransformer
from lit_models.classification.vit import VisionTransformer
from lit_models.pretrained import swin_layouts
from lit_models.pretrained.architectures import CAIT, VISION_TRANSFORMER
from lit_models.pretrained.family import REPRESENTATION, Checkpoint, Family, Source
from lit_models.pretrained.names import to_ours, to_theirs
from lit_models.pretrained.rules import RULES
from lit_models.pretrained.timm_config import run_facts

_STEM = {"cls_token": "class_token", "pos_embed": "positions", "patch_embed.proj": "patch_embedding"}
_LAYER = {
    "norm1": "attention_norm",
    "attn.proj": "attention.output",
    "norm2": "feed_forward_norm",
    "mlp.fc1": "feed_forward.expand",
    "mlp.fc2": "feed_forward.contract",
}
_PARTS = {"attn.q": "attention.query", "attn.k": "attention.key", "attn.v": "attention.value"}
_STACKED = {"attn.qkv": "attention.query_key_value"}
_OFFICIAL_SCALE = {"gamma_1": "attention_scale", "gamma_2": "feed_forward_scale"}
_TIMM_SCALE = {"ls1.gamma": "attention_scale", "ls2.gamma": "feed_forward_scale"}
_ENDS = {"norm": "norm", "head": "head"}


def _layers(theirs: str, ours: str, *tables: Mapping[str, str]) -> dict[str, str]:
    return {f"{theirs}.*.{name}": f"{ours}.*.{own}" for table in tables for name, own in table.items()}


_NORMS = {"attn.q_norm": "attention.query_norm", "attn.k_norm": "attention.key_norm"}
VIT_NAMES = {
    **_STEM,
    "dist_token": "distillation_token",
    "reg_token": "register_tokens",
    **_layers("blocks", "layers", _LAYER, _STACKED, _NORMS, _TIMM_SCALE, _OFFICIAL_SCALE),
    **_ENDS,
    "fc_norm": "norm",
    "head_dist": "head_distillation",
}
CAIT_NAMES = {
    **_STEM,
    **_layers("blocks", "layers", _LAYER, _STACKED, _OFFICIAL_SCALE),
    **_layers("blocks", "layers", {"attn.proj_l": "attention.mix_scores", "attn.proj_w": "attention.mix_weights"}),
    **_layers("blocks_token_only", "class_layers", _LAYER, _OFFICIAL_SCALE),
    **_layers("blocks_token_only", "class_layers", _PARTS),
    **_ENDS,
}
_OFFICIAL = ("model", "model_ema")
_ASSUMED = (
    "the file does not say how its images were normalised: ImageNet's mean and std are assumed (augreg ViTs use 0.5)"
)
# What changes the network: CLIP's first norm, pooling by attention, DINOv2's registers, relative positions, hybrids.
_STRUCTURAL = (
    "blocks", "norm_pre", "attn_pool", "register_tokens", "rel_pos", "relative", "patch_embed", "pos_embed", "rope",
)  # fmt: skip


def _read_vit(checkpoint: Checkpoint) -> Source:
    weights = to_ours(checkpoint.tensors, VIT_NAMES | {"pre_logits.fc": REPRESENTATION}, _STRUCTURAL)
    representation = weights.drop(REPRESENTATION)
    scaled = "layers.0.attention_scale" in weights.tensors
    if checkpoint.wrapper in _OFFICIAL:
        name, rule = ("official DeiT-III", "deit3") if scaled else ("official DeiT", "deit")
    else:
        name, rule = ("timm DeiT-III", "timm deit3") if scaled else ("timm ViT or DeiT", "timm")
    facts = run_facts(checkpoint)
    if rule == "timm" and "mean" not in facts.preprocessing and "distillation_token" not in weights.tensors:
        facts = replace(facts, notices=(*facts.notices, _ASSUMED))
    return Source(name, VISION_TRANSFORMER, weights, RULES[rule], facts, representation)


def _read_cait(checkpoint: Checkpoint) -> Source:
    weights = to_ours(checkpoint.tensors, CAIT_NAMES, _STRUCTURAL)
    official = checkpoint.data_parallel or checkpoint.wrapper in _OFFICIAL
    name, rule = ("official CaiT", "cait") if official else ("timm CaiT", "timm cait")
    return Source(name, CAIT, weights, RULES[rule], run_facts(checkpoint))


def to_timm(network: Classifier, *, official: bool = False) -> dict[str, Tensor]:
    """Return the state dict of the timm model that computes what a network does.

    Args:
        network: A ``VisionTransformer``, ``CaiT`` or ``SwinTransformer``.
        official: The names of the authors' repositories, which hold the state dict under ``"model"``. Those of
            facebookresearch/deit differ for LayerScale: ``gamma_1`` instead of ``ls1.gamma``. Those of
            microsoft/Swin-Transformer differ for merging and head; its buffers, which it makes anew, are not there.

    Raises:
        ValueError: If it is another network.
    """
    if isinstance(network, SwinTransformer):
        layout = swin_layouts.OFFICIAL if official else swin_layouts.TIMM
        return layout.write(network.state_dict(), len(network.stages))
    if isinstance(network, CaiT):
        return to_theirs(network.state_dict(), CAIT_NAMES, split="class_layers.")
    if not isinstance(network, VisionTransformer):
        raise ValueError(
            f"timm's layout is for VisionTransformer, CaiT and SwinTransformer, not for {type(network).__name__}"
        )
    names = dict(VIT_NAMES)
    if official:
        names = _layers("blocks", "layers", _OFFICIAL_SCALE) | names
    if network.settings["pool_norm"]:
        names = {"fc_norm": "norm"} | names
    return to_theirs(network.state_dict(), names)


def _is_vit(names: Set[str]) -> bool:
    return {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= names and not _is_cait(names)


def _is_cait(names: Set[str]) -> bool:
    return {"blocks_token_only.0.attn.q.weight", "blocks.0.attn.proj_l.weight"} <= names


VIT = Family("timm and official ViT, DeiT and DeiT-III", _is_vit, _read_vit)
CAIT_FAMILY = Family("timm and official CaiT", _is_cait, _read_cait)
