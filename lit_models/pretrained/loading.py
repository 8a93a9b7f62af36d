"""Public checkpoints in this project's networks: one call for every family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_models.classification.network import Classifier
from lit_models.classification.registry import build
from lit_models.pretrained.families import FAMILIES, recognise
from lit_models.pretrained.family import Source, Wanted, Weights, Windows, pair
from lit_models.pretrained.heads import select_rows
from lit_models.pretrained.reading import read_checkpoint
from lit_models.pretrained.rules import class_names, is_imagenet_21k, preprocessing


@dataclass
class Pretrained:
    """A network with the weights of a public checkpoint.

    Attributes:
        network: In evaluation mode, float32.
        preprocessing: How its source prepares images for evaluation: ``image_size`` (pixels, or (height, width)),
            ``crop``, ``crop_mode``, ``interpolation``, ``mean`` and ``std`` (of RGB in [0, 1]).
        source: The file and what it was recognised as.
        class_names: Of the head's classes, or None where they are not known.
        missing: Weights of the network that the file does not have, freshly initialised.
        unused: Weights of the file that the network does not have.
        notices: What was decided and should be known.
    """

    network: Classifier
    preprocessing: dict[str, Any]
    source: str
    class_names: list[str] | None
    missing: list[str]
    unused: list[str]
    notices: list[str] = field(default_factory=list)

    def report(self) -> str:
        """Return what was loaded and what was not, a few lines for a person."""
        prepared = ", ".join(f"{name} {value}" for name, value in self.preprocessing.items())
        lines = [f"{self.source}: {type(self.network).__name__}, {self.network.num_classes} classes"]
        lines += [f"  preprocessing: {prepared}"]
        lines += [f"  freshly initialised: {', '.join(self.missing)}"] if self.missing else []
        lines += [f"  not used: {', '.join(self.unused)}"] if self.unused else []
        return "\n".join(lines + [f"  note: {notice}" for notice in self.notices])


def load_pretrained(
    path: str | Path,
    *,
    num_classes: int | None = None,
    image_size: int | Sequence[int] | None = None,
    num_heads: int | Sequence[int] | None = None,
    window_size: Windows | None = None,
    pretrained_window_size: Windows | None = None,
    head_rows: str | Path | None = None,
    network: str | None = None,
) -> Pretrained:
    """Load a public checkpoint: ViT, DeiT, DeiT-III, CaiT and Swin of timm and their authors, and others' ViT and Swin.

    Args:
        path: A local .pth, .pt, .bin, .safetensors or .npz, or a directory with ``model.safetensors`` and
            ``config.json``. No code of it is run.
        num_classes: Classes of the head; a checkpoint's head of another size makes way for a fresh one. None keeps it.
        image_size: Pixels, or (height, width): positions are resized by the source's rule. None keeps the resolution.
        num_heads: Attention heads, needed where neither the shapes nor a config.json tell.
        window_size: Of a Swin: one side, or one side or (rows, columns) for each stage. The bias tables of V1 are
            resized, bicubically for each head, as the official code does; the position MLP of V2 is asked for the
            new offsets. None keeps the windows. A V2 file that does not tell its windows is taken to have these.
        pretrained_window_size: Likewise, the windows that the position MLP of a Swin V2 was trained with, needed where
            the file does not tell and ``window_size`` is another.
        head_rows: File with the row of the checkpoint's head for each class wanted, counted from 0, one in a line.
            ``data/map22kto1k.txt`` of https://github.com/microsoft/Swin-Transformer makes the 1,000 classes of
            ImageNet out of the 21,841 of ImageNet-22k.
        network: Class of the network that a config describes, which the file shall hold; None for any.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or of another architecture, or not of ``network``, or its shapes contradict each
            other; the message names the file, and the weight where there is one.
    """
    checkpoint = read_checkpoint(path)
    size = None if image_size is None else pair(image_size)
    wanted = Wanted(size, num_heads, window_size, pretrained_window_size)
    try:
        family, view = recognise(checkpoint, FAMILIES)
        source = family.read(view)
        if network not in (None, source.architecture.network):
            raise ValueError(f"it holds a {source.architecture.network}, the network of the config is a {network}")
        source.weights.unused.extend(view.outside)
        if head_rows is not None:
            source = select_rows(source, head_rows, num_classes)
        pretrained = _build(source, num_classes, wanted)
    except ValueError as error:
        raise ValueError(f"{checkpoint.path}: {error}") from error
    pretrained.source = f"{checkpoint.path} ({source.name})"
    averaged = [name for name in ("state_dict_ema", "model_ema") if name in view.entries]
    pretrained.notices += [f"the averaged weights under {name!r} were not read" for name in averaged]
    return pretrained


def _build(source: Source, num_classes: int | None, wanted: Wanted) -> Pretrained:
    """Build the network that the weights describe, at the size and with the classes wanted, and fill it."""
    weights, architecture = source.weights, source.architecture
    facts = architecture.complete(weights, source.facts, wanted)
    described = architecture.settings(weights, facts, source.rule, wanted.image_size)
    own_classes = weights.shape("head.weight", 2)[0] if "head.weight" in weights.tensors else None
    classes = (own_classes or 0) if num_classes is None else num_classes
    notices = _head_notices(source, own_classes, num_classes)
    kept = own_classes == classes and source.representation is None
    if not kept:
        for module in architecture.heads:
            weights.drop(module.removesuffix("."))
    with torch.device("meta"):
        check_shapes(weights, build(architecture.network, classes if kept else 0, described))
    settings = architecture.change(weights, described, wanted, source.rule)
    network = build(architecture.network, classes, settings)
    image_size: Any = settings.get("image_size") or wanted.image_size or facts.image_size
    missing = fill(network, weights, architecture.heads)
    return Pretrained(
        network.eval(),
        preprocessing(source.rule, facts, image_size),
        source.name,
        class_names(facts, classes, kept),
        missing,
        weights.unused,
        [*facts.notices, *notices],
    )


def _head_notices(source: Source, own_classes: int | None, num_classes: int | None) -> list[str]:
    """Say what becomes of the head.

    Raises:
        ValueError: If the head reads a layer that the network does not have, and no other head is asked for.
    """
    if own_classes is None:
        text = "the checkpoint has no head" + ("" if num_classes else ": give num_classes for one")
        return [text]
    if source.representation is not None:
        reads = f"the head reads a representation layer ({source.representation!r}), which the network does not have"
        if num_classes is None:
            raise ValueError(f"{reads}: give num_classes for a fresh head on the features, as fine-tuning does")
        return [f"{reads}; the head is freshly initialised"]
    if num_classes not in (None, own_classes):
        heads = "both heads are" if "head_distillation.weight" in source.weights.tensors else "the head is"
        change = "freshly initialised" if num_classes else "left out"
        return [f"the checkpoint has {own_classes} classes and {num_classes} are wanted: {heads} {change}"]
    if is_imagenet_21k(own_classes):
        return [f"the head is for the {own_classes} classes of ImageNet-21k: give num_classes to fine-tune for others"]
    return []


def check_shapes(weights: Weights, network: nn.Module) -> None:
    """Compare each weight with the network that the first of them describe.

    Raises:
        ValueError: If a shape contradicts the others; the message has the weight and both shapes.
    """
    expected: Mapping[str, torch.Tensor] = network.state_dict()
    for name, tensor in weights.tensors.items():
        if name not in expected:
            raise ValueError(f"{weights.origin[name]!r} has no place in the network that the other weights describe")
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{weights.origin[name]!r} has shape {tuple(tensor.shape)}, but the other weights ask for "
                f"{tuple(expected[name].shape)} as {name!r}"
            )


def fill(network: nn.Module, weights: Weights, heads: tuple[str, ...]) -> list[str]:
    """Copy weights into a network.

    Returns:
        The network's weights that are not there, all of its heads.

    Raises:
        ValueError: If a weight of the rest is not there.
    """
    missing = [name for name in network.state_dict() if name not in weights.tensors]
    lost = [name for name in missing if not name.startswith(heads)]
    if lost:
        raise ValueError(
            f"the file is incomplete: there is nothing for {', '.join(lost[:4])} ({len(lost)} weights in all)"
        )
    network.load_state_dict(weights.tensors, strict=False)
    return missing
