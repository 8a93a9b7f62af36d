"""The families of public checkpoints that can be read, and what other files look like."""

import re
from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any, Protocol, TypeVar

from lit_models.pretrained import google, huggingface, swin_huggingface, swin_timm, timm, torchvision
from lit_models.pretrained.family import Checkpoint, Family
from lit_models.pretrained.reading import without_wrapper


class Recognisable(Protocol):
    """Tells the files of a layout apart by the names of their tensors."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def matches(self, names: Set[str], /) -> bool:
        """Return whether a file with these names is of the layout."""


Layout = TypeVar("Layout", bound=Recognisable)
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
    (r"sampling_offsets", "a DETR with deformable attention, for which there is no network here"),
    (r"rpn\.|roi_heads\.", "a Faster R-CNN"),
    (
        r"class_embed\.|bbox_embed\.|class_labels_classifier|query_position_embeddings|query_embed\.",
        "a DETR (load_pretrained_detector and the command detect read the official layout and Hugging Face's)",
    ),
    (r"final_logits_bias|encoder\.embed_tokens\.", "a Marian or another translation model"),
    (r"word_embeddings\.", "a BERT"),
    (r"mlp_tokens\.|MixerBlock|token_mixing", "an MLP-Mixer"),
    (r"text_model\.|logit_scale|visual\.", "a CLIP"),
    (r"conv_root|gn_root", "a ViT with a ResNet in front"),
    (r"layer\d\.\d+\.conv\d|resnet", "a ResNet"),
)


def recognise(checkpoint: Checkpoint, families: Sequence[Layout]) -> tuple[Layout, Checkpoint]:
    """Return which of some families a checkpoint is of, and the checkpoint without the prefix of a module around it.

    Raises:
        ValueError: If none knows it; the message says what it looks like.
    """
    _refuse_own(checkpoint.entries)
    for view in without_wrapper(checkpoint):
        for family in families:
            if family.matches(view.tensors.keys()):
                return family, view
    names = sorted(checkpoint.tensors)
    raise ValueError(
        f"this looks like {looks_like(names)}; its weights are {', '.join(names[:3])} ... What can be read: "
        f"{'; '.join(dict.fromkeys(family.name for family in families))}"
    )


def looks_like(names: Collection[str]) -> str:
    """Return what kind of network weights of these names are, for a message."""
    joined = "\n".join(names)
    readable = [family.name for family in FAMILIES if family.matches(set(names))]
    guesses = [what for pattern, what in _LOOKS_LIKE if re.search(pattern, joined)]
    return next(iter(readable + guesses), "no network known here")


def _refuse_own(entries: Mapping[str, Any]) -> None:
    own = entries.get("heddle")
    if isinstance(own, Mapping):
        raise ValueError(
            f"this is a checkpoint of a {own.get('task', 'training')} run of this project, not a public one: "
            "load_checkpoint of lit_models.classification.checkpoint, or of the module of its task, reads it, and so "
            "does --checkpoint of the commands for it"
        )
