"""The families of public checkpoints that can be read, and what other files look like."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lit_models.pretrained import google, huggingface, swin_huggingface, swin_timm, timm, torchvision
from lit_models.pretrained.family import Checkpoint, Family
from lit_models.pretrained.reading import without_wrapper

FAMILIES: tuple[Family, ...] = (
    timm.CAIT_FAMILY,
    timm.VIT,
    huggingface.HUGGING_FACE,
    torchvision.TORCHVISION,
    google.GOOGLE,
    swin_timm.SWIN_FAMILY,
    swin_huggingface.SWIN_HUGGING_FACE,
    torchvision.SWIN_TORCHVISION,
)

# The first pattern that a name of a weight matches says what a file is; the telling ones come first.
_LOOKS_LIKE = (
    (
        r"relative_position_bias_table|relative_coords_table|layers\.\d+\.downsample\.reduction",
        "a Swin Transformer of a layout or kind that is not read",
    ),
    (r"downsample_layers\.|dwconv|conv_dw\.|convnext", "a ConvNeXt"),
    (r"class_embed\.|bbox_embed\.|class_labels_classifier|query_position_embeddings|query_embed\.", "a DETR"),
    (r"final_logits_bias|encoder\.embed_tokens\.", "a Marian or another translation model"),
    (r"word_embeddings\.", "a BERT"),
    (r"mlp_tokens\.|MixerBlock|token_mixing", "an MLP-Mixer"),
    (r"text_model\.|logit_scale|visual\.", "a CLIP"),
    (r"conv_root|gn_root", "a ViT with a ResNet in front"),
    (r"layer\d\.\d+\.conv\d|resnet", "a ResNet"),
)


def recognise(checkpoint: Checkpoint) -> tuple[Family, Checkpoint]:
    """Return a checkpoint's family, and the checkpoint without the prefix of a LightningModule.

    Raises:
        ValueError: If no family knows it; the message says what it looks like.
    """
    _refuse_own(checkpoint.entries)
    for view in without_wrapper(checkpoint):
        for family in FAMILIES:
            if family.matches(view.tensors.keys()):
                return family, view
    names = sorted(checkpoint.tensors)
    raise ValueError(
        f"this looks like {looks_like(names)}; its weights are {', '.join(names[:3])} ... What can be read: "
        f"{'; '.join(family.name for family in FAMILIES)}"
    )


def looks_like(names: Iterable[str]) -> str:
    """Return what kind of network weights of these names are, for a message."""
    joined = "\n".join(names)
    return next((what for pattern, what in _LOOKS_LIKE if re.search(pattern, joined)), "no network known here")


def _refuse_own(entries: Mapping[str, Any]) -> None:
    own = entries.get("heddle")
    if isinstance(own, Mapping):
        raise ValueError(
            f"this is a checkpoint of a {own.get('task', 'training')} run of this project, not a public one: "
            "lit_models.classification.checkpoint.load_checkpoint and every --checkpoint read those of classification"
        )
