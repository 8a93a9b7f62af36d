"""Public detectors in this project's networks: DETR of its authors and of Hugging Face, whose relatives come along.

A panoptic DETR is read without its mask head. Hugging Face's Conditional DETR is :class:`ConditionalDETR`, its Table
Transformer a :class:`DETR` with the norms before the sublayers.
"""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lit_models.detection.conditional import ConditionalDETR
from lit_models.detection.detr import DETR
from lit_models.pretrained.detr_coco import coco_classes
from lit_models.pretrained.detr_layouts import HUGGING_FACE, OFFICIAL, RESNET_BLOCKS, Layout, depth_of
from lit_models.pretrained.families import recognise
from lit_models.pretrained.family import Checkpoint, Weights
from lit_models.pretrained.loading import check_shapes, fill
from lit_models.pretrained.reading import read_checkpoint
from lit_models.pretrained.rules import IMAGENET_MEAN, IMAGENET_STD, stated

LAYOUTS = (OFFICIAL, *HUGGING_FACE)
SIZES = (800, 1333)
"""Pixels of the shorter side of an image, and most of the longer one, as published."""
_HEAD = "class_head"
_MASK_HEAD = ("bbox_attention.", "mask_head.")
_PUBLISHED_DIM, _PUBLISHED_HEADS = 256, 8


@dataclass
class PretrainedDetector:
    """A detector with the weights of a public checkpoint.

    Attributes:
        network: In evaluation mode, float32.
        preprocessing: How its source prepares images: ``sizes`` (pixels of the shorter side, and most of the longer
            one), ``mean`` and ``std`` (of RGB in [0, 1]).
        source: The file and what it was recognised as.
        class_names: Of the head's classes, or None where they are not known.
        category_ids: Of each class, in the annotations it was trained on, or None where they are not known.
        missing: Weights of the network that the file does not have, freshly initialised.
        unused: Weights of the file that the network does not have.
        notices: What was decided and should be known.
    """

    network: DETR
    preprocessing: dict[str, Any]
    source: str
    class_names: list[str] | None
    category_ids: list[int] | None
    missing: list[str]
    unused: list[str]
    notices: list[str] = field(default_factory=list)

    def report(self) -> str:
        """Return what was loaded and what was not, a few lines for a person."""
        network, settings = self.network, self.network.settings
        prepared = ", ".join(f"{name} {value}" for name, value in self.preprocessing.items())
        dilated = " with dilation (DC5)" if settings["backbone"]["dilation"] else ""
        lines = [
            f"{self.source}: {type(network).__name__} on {settings['backbone']['name']}{dilated}, "
            f"{network.num_classes} classes, {network.num_queries} queries",
            f"  preprocessing: {prepared}",
        ]
        lines += [f"  freshly initialised: {', '.join(self.missing)}"] if self.missing else []
        lines += [f"  not used: {', '.join(self.unused)}"] if self.unused else []
        return "\n".join(lines + [f"  note: {notice}" for notice in self.notices])


@dataclass(frozen=True)
class _Facts:
    """What a file says beside its shapes; None where it is silent."""

    num_heads: int | None = None
    dilation: bool | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    class_names: list[str] | None = None
    notices: tuple[str, ...] = ()


def load_pretrained_detector(
    path: str | Path,
    *,
    num_classes: int | None = None,
    dilation: bool | None = None,
    num_heads: int | None = None,
) -> PretrainedDetector:
    """Load a public DETR: its authors' files, and Hugging Face's DETR, Conditional DETR and Table Transformer.

    Args:
        path: A local .pth, .pt, .bin or .safetensors, or a directory with ``model.safetensors`` and ``config.json``. No
            code of it is run.
        num_classes: Classes of objects; a checkpoint's head for another number makes way for a fresh one, as
            fine-tuning begins. None keeps it.
        dilation: Whether the last stage of the backbone is dilated (DC5), which no weight tells. None believes the
            file's config or arguments, then its name.
        num_heads: Attention heads, needed where neither a config nor arguments tell them and the network is none of the
            published ones.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or of another architecture, or its shapes contradict each other; the message names
            the file, and the weight where there is one.
    """
    checkpoint = read_checkpoint(path)
    try:
        layout, view = recognise(checkpoint, LAYOUTS)
        weights = layout.read(view.tensors)
        facts = _facts(view)
        dilation, told = _dilation(view, facts, dilation)
        settings = _settings(layout, view, weights)
        settings["backbone"]["dilation"] = dilation
        settings["num_heads"] = _num_heads(weights, facts, num_heads)
        detector = _build(layout.network, weights, settings, num_classes, facts)
    except ValueError as error:
        raise ValueError(f"{checkpoint.path}: {error}") from error
    masks = [name for name in view.outside if name.startswith(_MASK_HEAD)]
    detector.unused += [name for name in view.outside if name not in masks]
    detector.notices += [*told, *_mask_notice(masks)]
    detector.source = f"{checkpoint.path} ({layout.name})"
    return detector


def is_public_detector(path: str | Path) -> bool:
    """Return whether a file is one that :func:`load_pretrained_detector` reads; whoever reads it says what is wrong."""
    try:
        recognise(read_checkpoint(path), LAYOUTS)
    except (ValueError, OSError):
        return False
    return True


def _build(
    network_type: type[DETR], weights: Weights, settings: Mapping[str, Any], num_classes: int | None, facts: _Facts
) -> PretrainedDetector:
    """Build the network that the weights describe, with the classes wanted, and fill it."""
    own = _own_classes(weights, network_type)
    classes, notices = own if num_classes is None else num_classes, list(facts.notices)
    if classes is None:
        raise ValueError("the checkpoint has no head that tells classes: give num_classes for a fresh one")
    with torch.device("meta"):
        check_shapes(weights, network_type(own or 1, **settings))
    names, ids = _classes(own, facts, notices)
    if own != classes:
        had = "no classes" if own is None else f"{own} classes"
        notices.append(f"the checkpoint has {had} and {classes} are wanted: the class head is freshly initialised")
        names = ids = None
        weights.drop(_HEAD)
    network = network_type(classes, **settings)
    missing = fill(network, weights, (f"{_HEAD}.",))
    preprocessing = {"sizes": SIZES, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, **facts.preprocessing}
    return PretrainedDetector(network.eval(), preprocessing, "", names, ids, missing, weights.unused, notices)


def _own_classes(weights: Weights, network_type: type[DETR]) -> int | None:
    """Return the classes of the head; DETR's last row is that of no object."""
    if f"{_HEAD}.weight" not in weights.tensors:
        return None
    rows = weights.shape(f"{_HEAD}.weight", 2)[0]
    return rows if issubclass(network_type, ConditionalDETR) else rows - 1


def _classes(own: int | None, facts: _Facts, notices: list[str]) -> tuple[list[str] | None, list[int] | None]:
    """Return the names and category ids of the head's classes, where they are known."""
    if own is None:
        return None, None
    coco = coco_classes(own)
    if facts.class_names is None or len(facts.class_names) != own:
        if coco is not None:
            notices.append(f"the file does not name its {own} classes: they are taken to be COCO's")
        return coco or (None, None)
    if coco is not None and coco[0] == facts.class_names:
        return coco
    return facts.class_names, list(range(own))


def _settings(layout: Layout, view: Checkpoint, weights: Weights) -> dict[str, Any]:
    """Return the constructor's arguments that the shapes tell."""
    settings = {
        "backbone": {"type": "ResNetBackbone", "name": _resnet(weights)},
        "dim": weights.shape("input_projection.weight", 4)[0],
        "encoder_layers": depth_of(weights.tensors, "encoder_layers"),
        "decoder_layers": depth_of(weights.tensors, "decoder_layers"),
        "feed_forward_dim": weights.shape("encoder_layers.0.feed_forward.expand.weight", 2)[0],
        "num_queries": weights.shape("query_embedding.weight", 2)[0],
        "norm_order": "pre" if layout.is_pre_norm(view.tensors) else "post",
    }
    if "positions.row_embedding.weight" in weights.tensors:
        length = weights.shape("positions.row_embedding.weight", 2)[0]
        settings |= {"positions": "learned", "position_length": length}
    return settings


def _resnet(weights: Weights) -> str:
    """Return the name of the ResNet that has these blocks."""
    blocks = tuple(depth_of(weights.tensors, f"backbone.layer{stage}") for stage in (1, 2, 3, 4))
    bottleneck = "backbone.layer1.0.conv3.weight" in weights.tensors
    found = next((name for name, described in RESNET_BLOCKS.items() if described == (blocks, bottleneck)), None)
    if found is None:
        kind = "bottlenecks" if bottleneck else "basic blocks"
        raise ValueError(
            f"the backbone has {', '.join(map(str, blocks))} {kind} in its stages, as none of "
            f"{', '.join(RESNET_BLOCKS)} has"
        )
    return found


def _num_heads(weights: Weights, facts: _Facts, given: int | None) -> int:
    """Return the attention heads, which no shape tells."""
    if given is not None and facts.num_heads not in (None, given):
        raise ValueError(f"num_heads {given} was given, but the file says {facts.num_heads}")
    dim = weights.shape("input_projection.weight", 4)[0]
    heads = given or facts.num_heads or (_PUBLISHED_HEADS if dim == _PUBLISHED_DIM else None)
    if heads is None:
        raise ValueError(
            f"the number of attention heads is not in the weights, and a width of {dim} is not the published "
            f"{_PUBLISHED_DIM}: give num_heads"
        )
    return heads


def _dilation(view: Checkpoint, facts: _Facts, given: bool | None) -> tuple[bool, list[str]]:
    """Return whether the last stage is dilated, and how that was found out where it was not told."""
    if given is not None or facts.dilation is not None:
        if facts.dilation not in (None, given) and given is not None:
            raise ValueError(f"dilation {given} was given, but the file says {facts.dilation}")
        return bool(facts.dilation if given is None else given), []
    dc5 = "dc5" in f"{view.path.parent.name}/{view.path.name}".lower()
    found = "DC5, so it is taken to be" if dc5 else "no DC5, so it is taken not to be"
    return dc5, [f"no weight tells whether the last stage is dilated; the name has {found} (dilation says otherwise)"]


def _facts(view: Checkpoint) -> _Facts:
    """Collect what config.json and preprocessor_config.json, or the arguments of the run that wrote the file, say."""
    run = view.entries.get("args")
    if isinstance(run, Namespace):
        return _Facts(num_heads=getattr(run, "nheads", None), dilation=getattr(run, "dilation", None))
    config, notices = view.config, []
    if config.get("activation_function", "relu") != "relu":
        raise ValueError(f"config.json has activation_function {config['activation_function']!r}; only 'relu' is here")
    heads = {config.get(f"{stack}_attention_heads") for stack in ("encoder", "decoder")}
    if len(heads) > 1:
        raise ValueError(f"config.json has {heads} attention heads in encoder and decoder; they must be equal here")
    if config.get("auxiliary_loss"):
        notices.append(
            "config.json has auxiliary_loss, with which transformers computes something else than the official network"
        )
    labels = config.get("id2label") or {}
    names = [str(labels[number]) for number in sorted(labels, key=int)]
    placeholders = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    said, more = _processor_facts(view.processor)
    return _Facts(heads.pop(), _config_dilation(config), said, None if placeholders else names, (*notices, *more))


def _config_dilation(config: Mapping[str, Any]) -> bool | None:
    if "dilation" not in config:
        return None
    return bool(config["dilation"]) or (config.get("backbone_config") or {}).get("output_stride") == 16


def _processor_facts(processor: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Translate a preprocessor_config.json; older ones have a plain size and ``max_size``."""
    said, notices = stated(
        "preprocessor_config.json", {name: processor.get(f"image_{name}") for name in ("mean", "std")}
    )
    size = processor.get("size")
    if not isinstance(size, Mapping):
        size = {} if size is None else {"shortest_edge": size, "longest_edge": processor.get("max_size")}
    shorter, longer = size.get("shortest_edge"), size.get("longest_edge")
    if shorter is not None:
        said["sizes"] = (int(shorter), int(longer or SIZES[1]))
    elif longer is not None:
        notices += (f"preprocessor_config.json has the size {dict(size)}; {SIZES[0]} and {SIZES[1]} pixels are used",)
    return said, notices


def _mask_notice(masks: list[str]) -> list[str]:
    return [f"the mask head ({len(masks)} weights) is left out: boxes alone are predicted"] if masks else []
