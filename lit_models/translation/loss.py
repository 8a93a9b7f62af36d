"""The label-smoothed loss of a translation batch."""

import torch
from torch import Tensor

from datamodules.batches import TranslationBatch
from kernels import linear_cross_entropy
from lit_models.translation.transformer import Transformer


def translation_loss(network: Transformer, batch: TranslationBatch, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy of the target tokens, and their number.

    Args:
        network: The Transformer.
        batch: A batch on the network's device.
        label_smoothing: Share of the label spread evenly over the vocabulary (Vaswani et al. 2017, section 5.4).

    Returns:
        ``(loss_sum, count)``: scalars, float32 and int64; padding adds to neither.
    """
    memory = network.encode(batch.source, batch.source_lengths)
    hidden = network.decode(batch.target_input, memory, batch.source_lengths)
    return hidden_loss(network, hidden, batch.target_output, label_smoothing)


def hidden_loss(network: Transformer, hidden: Tensor, target: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Return what :func:`translation_loss` does, from the decoder's output (batch, target_length, dim)."""
    return linear_cross_entropy(
        hidden,
        network.output_weight,
        target,
        bias=network.output_bias,
        label_smoothing=label_smoothing,
        ignore_index=network.config.pad_id,
    )


def count_correct(network: Transformer, hidden: Tensor, target: Tensor, chunk_tokens: int = 1024) -> Tensor:
    """Return how many target tokens are the network's first choice, padding not counted: a scalar int64.

    Args:
        network: The Transformer.
        hidden: (batch, target_length, dim), of the decoder.
        target: (batch, target_length) int64.
        chunk_tokens: Tokens whose logits are held at a time.
    """
    kept = target != network.config.pad_id
    pairs = zip(hidden[kept].split(chunk_tokens), target[kept].split(chunk_tokens), strict=True)
    correct = [(network.project(rows).argmax(-1) == wanted).sum() for rows, wanted in pairs]
    return torch.stack(correct).sum()
