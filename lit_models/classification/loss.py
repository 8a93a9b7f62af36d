"""Losses of image classification, each as a sum over the batch."""

from typing import Literal

from torch import Tensor
from torch.nn import functional

LossName = Literal["cross_entropy", "binary_cross_entropy"]
BinaryTargets = Literal["soft", "above_zero"]
BinaryReduction = Literal["mean", "sum"]


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    targets: Tensor | None = None,
    *,
    loss: LossName = "cross_entropy",
    label_smoothing: float = 0.0,
    binary_targets: BinaryTargets = "soft",
    binary_reduction: BinaryReduction = "mean",
) -> Tensor:
    """Return the sum of the losses of a batch.

    Args:
        logits: (batch, classes), of any floating-point type; the loss is computed in float32.
        labels: (batch,) int64, used where there are no targets.
        targets: (batch, classes), probabilities of mixed images. Label smoothing is in them already, so
            ``label_smoothing`` is not applied to them a second time.
        loss: ``cross_entropy`` of a softmax, or ``binary_cross_entropy`` of a sigmoid for each class.
        label_smoothing: Share of a label spread evenly over the classes, in [0, 1).
        binary_targets: ``soft`` takes the targets as they are; ``above_zero`` makes each class of a mixed image a full
            positive (DeiT III: ``targets.gt(0)``).
        binary_reduction: Over the classes: ``mean`` (DeiT III, PyTorch's BCEWithLogitsLoss) or ``sum`` (timm's
            ``--bce-sum``, Beyer et al. 2020).

    Returns:
        A scalar, float32.
    """
    logits = logits.float()
    if loss == "cross_entropy":
        if targets is None:
            return functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
        return functional.cross_entropy(logits, targets, reduction="sum")
    if targets is None:
        targets = smoothed(labels, logits.shape[1], label_smoothing)
    if binary_targets == "above_zero":
        targets = targets > 0
    total = functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="sum")
    return total / logits.shape[1] if binary_reduction == "mean" else total


def smoothed(labels: Tensor, num_classes: int, label_smoothing: float) -> Tensor:
    """Return (batch, num_classes) float32 probabilities: 1 - ε + ε / classes at the label, ε / classes elsewhere."""
    return functional.one_hot(labels, num_classes) * (1.0 - label_smoothing) + label_smoothing / num_classes
