"""The losses against their formulas, example by example in float64."""

import math

import pytest
import torch

from lit_models.classification.loss import classification_loss, smoothed


def drawn(classes=5, size=4):
    return torch.randn(size, classes) * 2, torch.randint(classes, (size,)), torch.rand(size, classes).softmax(1)


def cross_entropy_by_hand(logits, targets):
    total = 0.0
    for row, target in zip(logits.double().tolist(), targets.double().tolist(), strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        total += sum(share * (log_sum - value) for value, share in zip(row, target, strict=True))
    return total


def binary_by_hand(logits, targets, divisor=1):
    total = 0.0
    for value, share in zip(logits.double().flatten().tolist(), targets.double().flatten().tolist(), strict=True):
        probability = 1 / (1 + math.exp(-value))
        total -= share * math.log(probability) + (1 - share) * math.log(1 - probability)
    return total / divisor


def one_hot_smoothed(labels, classes, share):
    rows = [[share / classes + (1 - share) * (n == label) for n in range(classes)] for label in labels.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_of_hard_labels(label_smoothing):
    logits, labels, _ = drawn()
    found = classification_loss(logits, labels, label_smoothing=label_smoothing)
    expected = cross_entropy_by_hand(logits, one_hot_smoothed(labels, 5, label_smoothing))
    assert found.item() == pytest.approx(expected, rel=1e-6)
    rows = smoothed(labels, 5, label_smoothing).double()
    torch.testing.assert_close(rows, one_hot_smoothed(labels, 5, label_smoothing), atol=1e-7, rtol=0)


def test_row_11_mixed_targets_are_not_smoothed_again():
    logits, labels, targets = drawn()
    for share in (0.0, 0.1, 0.5):
        found = classification_loss(logits, labels, targets, label_smoothing=share)
        assert found.item() == pytest.approx(cross_entropy_by_hand(logits, targets), rel=1e-6)
        found = classification_loss(logits, labels, targets, loss="binary_cross_entropy", label_smoothing=share)
        assert found.item() == pytest.approx(binary_by_hand(logits, targets, 5), rel=1e-6)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_binary_cross_entropy_over_the_classes(label_smoothing):
    logits, labels, _ = drawn()
    targets = one_hot_smoothed(labels, 5, label_smoothing)
    for reduction, divisor in (("sum", 1), ("mean", 5)):
        found = classification_loss(
            logits,
            labels,
            loss="binary_cross_entropy",
            label_smoothing=label_smoothing,
            binary_reduction=reduction,
        )
        assert found.item() == pytest.approx(binary_by_hand(logits, targets, divisor), rel=1e-6)


def test_binary_targets_above_zero_are_full_positives():
    logits = torch.randn(2, 4)
    targets = torch.tensor([[0.3, 0.7, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    found = classification_loss(
        logits, torch.tensor([1, 2]), targets, loss="binary_cross_entropy", binary_targets="above_zero"
    )
    expected = torch.nn.BCEWithLogitsLoss()(logits, targets.gt(0.0).float()) * 2  # DeiT III, summed over the batch
    torch.testing.assert_close(found, expected)


def test_losses_are_computed_in_float32():
    logits, labels, targets = drawn()
    for name in ("cross_entropy", "binary_cross_entropy"):
        for soft in (None, targets):
            half = classification_loss(logits.bfloat16(), labels, soft, loss=name)
            assert half.dtype == torch.float32
            torch.testing.assert_close(half, classification_loss(logits.bfloat16().float(), labels, soft, loss=name))
