"""The label-smoothed loss of a translation batch."""

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
    return linear_cross_entropy(
        hidden,
        network.output_weight,
        batch.target_output,
        bias=network.output_bias,
        label_smoothing=label_smoothing,
        ignore_index=network.config.pad_id,
    )
