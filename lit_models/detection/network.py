"""What every detection network answers: the protocol that matcher, criterion, LightningModule and commands rely on."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn


class Predictions(NamedTuple):
    """What a detection network says of a batch, after each layer of its decoder.

    Attributes:
        logits: (layers, groups, batch, queries, outputs) float32. ``outputs`` is ``num_classes + 1`` where a softmax
            reads them and the last stands for no object (DETR), ``num_classes`` where a sigmoid does.
        boxes: (layers, groups, batch, queries, 4) float32 in [0, 1]: (centre x, centre y, width, height) as shares of
            the image without its padding.

    The last layer is the result. Groups of queries train side by side; in evaluation there is one.
    """

    logits: Tensor
    boxes: Tensor

    @property
    def final(self) -> tuple[Tensor, Tensor]:
        """The result: logits (batch, queries, outputs) and boxes (batch, queries, 4)."""
        return self.logits[-1, 0], self.boxes[-1, 0]


class Detector(nn.Module):
    """A network that predicts a set of objects.

    Attributes:
        num_classes: Classes of objects, no-object not counted.
        num_queries: Objects that it can predict in one image.
        settings: The constructor's arguments beside ``num_classes``, as plain values that a checkpoint can hold:
            ``type(self)(num_classes, **settings)`` builds the same network again.
    """

    num_classes: int
    num_queries: int
    settings: Mapping[str, Any]

    @abstractmethod
    def forward(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> Predictions:
        """Predict the objects of a padded batch.

        Args:
            images: (batch, 3, height, width) floating point, normalised, zeros right of and below each image.
            sizes: (height, width) of each image inside the padding.
        """
