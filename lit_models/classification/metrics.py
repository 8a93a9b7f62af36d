"""Scores of an evaluation, as sums: exact however images are spread over batches and processes."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric, SumMetric
from torchmetrics.classification import MulticlassAccuracy

from lit_models.classification.network import HeadLogits


class EvaluationScores(nn.Module):
    """Loss, top-1 and top-5 accuracy of the prediction, and top-1 of each head of a network with two.

    The states are sums, added over the processes when they are read; processes may have seen different numbers of
    images. The loss is the cross-entropy of the prediction without smoothing, whatever the training loss is.

    Args:
        num_classes: Number of classes.
        two_heads: Whether the network has a distillation head.
    """

    def __init__(self, num_classes: int, two_heads: bool) -> None:
        super().__init__()
        names = ["accuracy", "accuracy_top5"] + ["accuracy_class", "accuracy_distillation"] * two_heads
        self.accuracies = nn.ModuleDict(
            {
                name: MulticlassAccuracy(
                    num_classes,
                    top_k=min(5, num_classes) if name == "accuracy_top5" else 1,
                    average="micro",
                    validate_args=False,  # its checks of values wait for the GPU
                )
                for name in names
            }
        )
        self.loss, self.count = (SumMetric(nan_strategy="disable").set_dtype(torch.float64) for _ in range(2))

    def update(self, heads: HeadLogits, labels: Tensor) -> None:
        """Add a batch.

        Args:
            heads: Logits of the heads.
            labels: (batch,) int64; images with a negative label, which is unknown, do not count.
        """
        known = labels >= 0
        labels = labels[known]
        logits = {"accuracy_class": heads.classes, "accuracy_distillation": heads.distillation}
        predicted = heads.mean
        if len(labels):
            for name, accuracy in self._named():
                scored = logits.get(name)
                accuracy.update((predicted if scored is None else scored)[known].float(), labels)
        self.loss.update(functional.cross_entropy(predicted[known].float(), labels, reduction="sum"))
        self.count.update(len(labels))

    def compute(self) -> dict[str, float]:
        """Return the scores over all processes and start anew; every process must call it.

        Raises:
            ValueError: If no image had a label.
        """
        count = float(self.count.compute())
        scores = {"loss": float(self.loss.compute()) / max(count, 1.0)}
        scores |= {name: float(accuracy.compute()) for name, accuracy in self._named()}
        for metric in (self.loss, self.count, *(accuracy for _, accuracy in self._named())):
            metric.reset()
        if not count:
            raise ValueError("no image of the evaluation has a label")
        return scores

    def _named(self) -> list[tuple[str, Metric]]:
        return [(name, metric) for name, metric in self.accuracies.items() if isinstance(metric, Metric)]
