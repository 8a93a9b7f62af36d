"""What decoding one position after another keeps."""

import torch
from torch import Tensor
from torch.nn import functional

from lit_models.layers import KeyValueCache

_ROOM = 32


class PastAttention:
    """The keys and values of one self-attention layer, position first: (capacity, rows, dim).

    In this order the positions so far are one block of memory, which beam search can reorder by rows in a single copy.

    Args:
        key: (capacity, rows, dim), to be filled.
        value: Shaped like ``key``.
    """

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.key = key
        self.value = value

    def append(self, key: Tensor, value: Tensor, position: int) -> KeyValueCache:
        """Store one position of (rows, heads, 1, head_dim) and return all up to it, (rows, heads, length, head_dim)."""
        if position >= self.key.shape[0]:
            self.key = functional.pad(self.key, (0, 0, 0, 0, 0, _ROOM))
            self.value = functional.pad(self.value, (0, 0, 0, 0, 0, _ROOM))
        rows, heads, _, head_dim = key.shape
        shape = (rows, heads, head_dim)
        self.key[position].view(shape).copy_(key[:, :, 0])
        self.value[position].view(shape).copy_(value[:, :, 0])
        seen = (tensor[: position + 1].view(-1, *shape).permute(1, 2, 0, 3) for tensor in (self.key, self.value))
        return KeyValueCache(*seen)

    def gather(self, rows: Tensor, position: int) -> None:
        """Keep ``rows``, (kept,) int64, of the first ``position`` positions."""
        self.key = _gathered(self.key, rows, position)
        self.value = _gathered(self.value, rows, position)


def _gathered(tensor: Tensor, rows: Tensor, position: int) -> Tensor:
    kept = tensor.new_empty(tensor.shape[0], rows.shape[0], tensor.shape[2])
    torch.index_select(tensor[:position], 1, rows, out=kept[:position])
    return kept


class DecoderState:
    """The cached keys and values of every layer, and how far decoding is.

    Args:
        past: Of each layer's self-attention.
        memory: Keys and values of each layer's cross-attention, once per sentence.
        memory_lengths: (sentences,) integers.
        beam_size: Rows per sentence.

    Attributes:
        position: Positions decoded so far.
    """

    def __init__(
        self, past: list[PastAttention], memory: list[KeyValueCache], memory_lengths: Tensor, beam_size: int
    ) -> None:
        self.past = past
        self.memory = memory
        self.memory_lengths = memory_lengths
        self.beam_size = beam_size
        self.position = 0

    def reorder(self, rows: Tensor) -> None:
        """Let row ``i`` go on from what row ``rows[i]`` held; (sentences·beam,) int64, within each sentence."""
        for layer in self.past:
            layer.gather(rows, self.position)

    def select(self, sentences: Tensor) -> None:
        """Keep only these sentences, (kept,) int64, in this order."""
        beams = torch.arange(self.beam_size, device=sentences.device)
        rows = (sentences[:, None] * self.beam_size + beams).flatten()
        self.reorder(rows)
        self.memory = [KeyValueCache(cache.key[sentences], cache.value[sentences]) for cache in self.memory]
        self.memory_lengths = self.memory_lengths[sentences]
