"""The attention of a ViT, DeiT or CaiT over an image as pictures: of its class tokens, and the rollout."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.attend import choose_layers, save_figure
from experiments.classifier import ImageClassifier, check_preprocessing_options
from experiments.image_plot import Overlay, draw_overlays
from experiments.line_io import replaced_when_done
from lit_models.classification.network import Classifier

_NAME_LENGTH = 60  # of a class or a file, in a title


@dataclass(frozen=True)
class ImageAttention:
    """What the tokens that a head reads attend to in an image.

    Attributes:
        layers: Weights of the patches by name of the token, ``(layers, heads, rows, columns)``; those of CaiT are of
            its class-attention layers. A network whose head reads the mean of the patches has ``patches``, the mean
            over all of them.
        rollout: The same followed through all layers, ``(rows, columns)``; the rest to 1 is of other tokens.
        depth: Layers that the rollout goes through.
    """

    layers: dict[str, Tensor]
    rollout: dict[str, Tensor]
    depth: int


def check_options(options: argparse.Namespace) -> None:
    """Check what concerns an image before the checkpoint is loaded.

    Raises:
        FileNotFoundError: There is no such image.
        UsageError: A value is out of its range.
    """
    if not Path(options.image).is_file():
        raise FileNotFoundError(f'--image "{options.image}": there is no such file')
    check_preprocessing_options(options)


def square_maps(maps: Sequence[Tensor]) -> list[Tensor]:
    """Return attention maps as matrices over all tokens.

    CaiT's patches attend among themselves, and its class token joins in the last layers, where it alone attends: the
    tokens that a layer leaves out keep what they have, so their rows are those of the identity.

    Args:
        maps: Weights of each layer, ``(heads, queries, keys)``: queries are all tokens, all patches, or the first one.

    Returns:
        Mean over the heads of each layer, ``(tokens, tokens)``, float64, without negative weights (talking heads mix
        the heads' weights linearly), each row with sum 1.
    """
    tokens = max(layer.shape[-1] for layer in maps)
    matrices = []
    for layer in maps:
        weights = layer.double().mean(0).clamp(min=0.0)
        matrix = torch.eye(tokens, dtype=torch.float64)
        first = tokens - layer.shape[-1]
        matrix[first : first + weights.shape[0], first:] = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
        matrices.append(matrix)
    return matrices


def rollout(maps: Sequence[Tensor]) -> Tensor:
    """Follow attention through the layers, `Abnar & Zuidema 2020 <https://arxiv.org/abs/2005.00928>`_.

    A layer's matrix is ``(A + I) / 2``, ``A`` the mean over heads and ``I`` the residual connection; the rollout is
    their product, the last layer on the left.

    Args:
        maps: Weights of each layer, ``(heads, queries, keys)``, first layer first, see :func:`square_maps`.

    Returns:
        float64 of shape ``(tokens, tokens)``: the share of each token of the input in each token of the output.
    """
    matrices = square_maps(maps)
    identity = torch.eye(len(matrices[0]), dtype=torch.float64)
    product = identity
    for matrix in matrices:
        # A token that does not attend in a layer has a row of the identity, which this leaves alone.
        product = (matrix + identity) / 2 @ product
    return product


@torch.inference_mode()
def attend_to(network: Classifier, images: Tensor) -> ImageAttention:
    """Return the attention of a network's class tokens over one image.

    Args:
        network: ViT, DeiT or CaiT in evaluation mode.
        images: float32, normalised, of shape ``(1, 3, height, width)``.

    Raises:
        ValueError: The network has no attention maps.
    """
    maps = [layer[0].float().cpu() for layer in network.attention_maps(images)]
    rows, columns = network.forward_intermediates(images, [0])[0].shape[-2:]
    tokens = max(layer.shape[-1] for layer in maps)
    patches = slice(tokens - rows * columns, tokens)
    reading = {"class": slice(0, 1)} if network.settings.get("pool", "token") == "token" else {"patches": patches}
    if network.settings.get("distilled"):
        reading["distillation"] = slice(1, 2)
    whole = rollout(maps)
    with_tokens = [layer for layer in maps if layer.shape[-1] == tokens]
    return ImageAttention(
        layers={
            name: torch.stack([layer[:, queries, patches].mean(1) for layer in with_tokens]).unflatten(
                -1, (rows, columns)
            )
            for name, queries in reading.items()
        },
        rollout={
            name: whole[queries, patches].mean(0).unflatten(-1, (rows, columns)).float()
            for name, queries in reading.items()
        },
        depth=len(maps),
    )


def write_pictures(path: Path, options: argparse.Namespace) -> list[Path]:
    """Write the pictures of the network in a checkpoint file; return the files, in the order of writing.

    Raises:
        UsageError: The network has no such layer.
        ValueError: The network has no attention maps, or the image cannot be read.
    """
    classifier = ImageClassifier.load(
        path, options.device, image_size=options.image_size, crop=options.crop, crop_mode=options.crop_mode
    )
    image = classifier.read(options.image)
    attention = attend_to(classifier.network, classifier.normalized(image[None]))
    probability, number = classifier.probabilities(image[None])[0].max(0)
    taken_for = (
        f"{_short(Path(options.image).name)}, taken for {_short(classifier.class_names[number])} ({probability:.1%})"
    )
    count = len(next(iter(attention.layers.values())))
    chosen = choose_layers(options.layer, count, "class attention" if count < attention.depth else "network")
    stack = "class-attention layer" if count < attention.depth else "layer"
    files = []
    for name, layers in attention.layers.items():
        for layer in chosen:
            weights = layers[layer - 1]
            title = f"Attention of the {_CALLED[name]}, {stack} {layer} of {count}, "
            title += f"{len(weights)} heads" if options.heads == "all" else f"mean of {len(weights)} heads"
            share = weights.sum((1, 2)).mean()
            figure = _draw(
                image,
                {f"head {number}": head for number, head in enumerate(weights, start=1)}
                if options.heads == "all"
                else {_CALLED[name]: weights.mean(0)},
                title,
                f"{taken_for}; {share:.0%} of the weight is on patches",
            )
            files += save_figure(figure, options.output, f"{name}_layer{layer}" if len(chosen) > 1 else name)
    panels = {_CALLED[name]: weights for name, weights in attention.rollout.items()}
    title = f"Attention rollout through {attention.depth} layers, mean of the heads"
    files += save_figure(_draw(image, panels, title, taken_for), options.output, "rollout")
    return [*files, save_numbers(Path(f"{options.output}_weights.npz"), image, attention)]


_CALLED = {"class": "class token", "distillation": "distillation token", "patches": "patches"}


def _draw(image: Tensor, panels: dict[str, Tensor], title: str, subtitle: str) -> Figure:
    """Draw weights as multiples of what each patch would get if all got the same."""
    even = next(iter(panels.values())).numel()
    overlays = [Overlay(weights.clamp(min=0.0) * even, name) for name, weights in panels.items()]
    return draw_overlays(image, overlays, title, subtitle, f"weight\n(× 1/{even})")


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"


def save_numbers(path: Path, image: Tensor, attention: ImageAttention) -> Path:
    """Write the image (uint8, height, width, 3), the weights by token and the rollouts as arrays of an ``.npz``."""
    arrays = {"image": image.permute(1, 2, 0).numpy()}
    arrays |= {name: weights.numpy() for name, weights in attention.layers.items()}
    arrays |= {f"rollout_{name}": weights.numpy() for name, weights in attention.rollout.items()}
    with replaced_when_done(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path
