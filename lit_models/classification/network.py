"""What every classification network answers: the protocol that the LightningModule, commands and loaders rely on."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class HeadLogits(NamedTuple):
    """The logits of a network's heads, (batch, classes) each; ``distillation`` is None without such a head."""

    classes: Tensor
    distillation: Tensor | None

    @property
    def mean(self) -> Tensor:
        """What the network predicts: the mean of its heads' logits (the released DeiT; its paper adds softmaxes).

        The mean of two is taken in float32 at least: in bfloat16 it would tie classes.
        """
        if self.distillation is None:
            return self.classes
        dtype = torch.promote_types(self.classes.dtype, torch.float32)
        return (self.classes.to(dtype) + self.distillation.to(dtype)) / 2


class Classifier(nn.Module):
    """An image classifier.

    Attributes:
        num_classes: Classes of the head; 0 for none.
        num_features: Width of what the head reads.
        image_size: (height, width) that the network was built for, or None if any will do.
        settings: The constructor's arguments beside ``num_classes``, as plain values that a checkpoint can hold:
            ``type(self)(num_classes, **settings)`` builds the same network again.
    """

    num_classes: int
    num_features: int
    image_size: tuple[int, int] | None = None
    settings: Mapping[str, Any]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (batch, num_classes), of images (batch, 3, height, width)."""
        return self.forward_heads(images).mean

    def forward_heads(self, images: Tensor) -> HeadLogits:
        """Return the logits of each head."""
        return self.forward_head(self.forward_features(images))

    @abstractmethod
    def forward_features(self, images: Tensor) -> Tensor:
        """Return what the head pools: (batch, tokens, dim), or (batch, channels, height, width) of a ConvNet."""

    @abstractmethod
    def forward_head(self, features: Tensor) -> HeadLogits:
        """Pool the features and return the logits of each head."""

    @abstractmethod
    def reset_classifier(self, num_classes: int) -> None:
        """Give the network new heads, freshly initialised, for another number of classes; 0 removes them."""

    def set_input_size(self, image_size: int | tuple[int, int]) -> None:
        """Take images of another size, (height, width) or one number for both, from now on.

        Raises:
            ValueError: If the network cannot.
        """
        if self.image_size is not None:
            raise ValueError(f"{type(self).__name__} takes images of {self.image_size} alone, not of {image_size}")

    @abstractmethod
    def forward_intermediates(self, images: Tensor, layers: Sequence[int] | None = None) -> list[Tensor]:
        """Return the features after some layers (all by default) as maps (batch, channels, rows, columns)."""

    def attention_maps(self, images: Tensor) -> list[Tensor]:
        """Return each layer's attention weights, (batch, heads, tokens, tokens): the explicit slow path.

        Raises:
            ValueError: If the network has no attention.
        """
        raise ValueError(f"{type(self).__name__} has no attention maps")

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that are not decayed although they have two or more dimensions."""
        return set()

    def layer_of(self, name: str) -> int:
        """Return the depth of a parameter for layer-wise decay: 0 for the stem, ``num_layers + 1`` for the head."""
        return 0

    @property
    def num_layers(self) -> int:
        """Number of layers that :meth:`layer_of` counts."""
        return 0
