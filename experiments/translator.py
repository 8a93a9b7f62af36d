"""A checkpoint made ready for use: its network, its tokenizer, and the steps from lines to translations."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules.batches import UNK_ID
from datamodules.text.tokenizer import Tokenizer
from experiments.checkpoint_path import choose_device, find_checkpoint
from experiments.errors import UsageError
from lit_models.translation import load_checkpoint
from lit_models.translation.hypotheses import EXTRA_LENGTH, Hypothesis
from lit_models.translation.transformer import AttentionMaps, Transformer

DATA_KEY = "WMTDataModule"
PRECISIONS = ("auto", "fp32", "bf16")
Alignment = list[tuple[int, int]]
"""Pairs of the number of a source token and the number of a target token, both counted from 0."""
Search = Callable[..., list[list[Hypothesis]]]
"""Called with network, memory, memory_lengths, and max_length and prefix by keyword."""


class Source(NamedTuple):
    """A source line as the network reads it.

    Attributes:
        ids: Token ids, EOS included.
        dropped: Tokens that were cut off because the line is longer than the model takes.
    """

    ids: list[int]
    dropped: int


def check_length_penalty(alpha: float) -> None:
    """Check the value of ``--length-penalty``.

    Raises:
        UsageError: It is negative, infinite or not a number.
    """
    if not 0.0 <= alpha < math.inf:
        raise UsageError(f"--length-penalty {alpha}: it must be a finite number of at least 0 (no normalisation)")


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the weights' dtype that ``auto`` (bf16 on CUDA, fp32 elsewhere), ``fp32`` or ``bf16`` means."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


@dataclass(frozen=True)
class Translator:
    """A network and its tokenizer on a device.

    Attributes:
        network: In evaluation mode.
        tokenizer: The one that it was trained with.
        device: Where it computes.
        max_source_length: Source tokens that it takes, EOS counted.
    """

    network: Transformer
    tokenizer: Tokenizer
    device: torch.device
    max_source_length: int

    @classmethod
    def load(cls, checkpoint: str, device: str = "auto", precision: str = "auto") -> "Translator":
        """Load a checkpoint file or the checkpoint of a run directory.

        Raises:
            UsageError: There is no such checkpoint or device.
            ValueError: The file is no translation checkpoint, or it has no tokenizer.
        """
        path = find_checkpoint(checkpoint)
        target = choose_device(device)
        network, saved = load_checkpoint(path, map_location=target)
        data = saved.get(DATA_KEY)
        if not isinstance(data, dict) or "tokenizer" not in data:
            raise ValueError(f"{path} has no tokenizer (no {DATA_KEY!r} entry): it was not saved by a translation run")
        try:
            tokenizer = Tokenizer.from_state_dict(data["tokenizer"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if tokenizer.target_vocab_size != network.target_vocab_size:
            raise ValueError(
                f"{path}: the network has {network.target_vocab_size} target tokens, "
                f"its tokenizer has {tokenizer.target_vocab_size}"
            )
        network = network.to(choose_dtype(precision, target)).eval()
        return cls(network, tokenizer, target, _source_limit(network, data))

    def encode_sources(self, lines: list[str]) -> list[Source]:
        """Cut lines into token ids with EOS, at most ``max_source_length`` of them."""
        keep, eos = self.max_source_length - 1, self.network.config.eos_id
        return [
            Source([*ids[:keep], eos], dropped=max(0, len(ids) - keep)) for ids in self.tokenizer.encode_source(lines)
        ]

    def encode_target(self, text: str, what: str) -> list[int]:
        """Cut target text that the user gives into token ids, without BOS and EOS.

        Args:
            text: The text.
            what: The option that it came with, for the error.

        Raises:
            UsageError: A word has a character that the vocabulary does not know; the message names it.
        """
        [ids] = self.tokenizer.encode_target([text])
        if UNK_ID in ids:
            words = text.split()
            pieces = self.tokenizer.encode_target(words)
            unknown = [word for word, piece_ids in zip(words, pieces, strict=True) if UNK_ID in piece_ids]
            raise UsageError(
                f'{what} "{text}": the vocabulary of the checkpoint cannot write {", ".join(map(repr, unknown))}'
            )
        return ids

    def max_lengths(self, source_lengths: Tensor, max_length: int | None) -> Tensor:
        """Return the longest translation allowed for each source ``(batch,)``: ``max_length``, else source + 50."""
        limits = source_lengths.long() + EXTRA_LENGTH
        if max_length is not None:
            limits = torch.full_like(limits, max_length)
        config = self.network.config
        return limits.clamp(max=config.max_positions) if config.positions == "learned" else limits

    @torch.inference_mode()
    def translate(
        self,
        sources: Sequence[list[int]],
        search: Search,
        *,
        max_length: int | None = None,
        prefix: list[int] | None = None,
    ) -> list[list[Hypothesis]]:
        """Translate one batch.

        Args:
            sources: Token ids with EOS.
            search: One of `lit_models.translation.search` with its settings filled in.
            max_length: Target tokens at most, EOS counted; None for source + 50.
            prefix: Token ids that every translation begins with.

        Returns:
            The hypotheses of each source, best first.
        """
        source, lengths = self._batch(sources)
        memory = self.network.encode(source, lengths)
        forced = None
        if prefix:
            forced = torch.tensor(prefix, device=self.device).expand(len(sources), -1)
        return search(self.network, memory, lengths, max_length=self.max_lengths(lengths, max_length), prefix=forced)

    def attention_maps(self, sources: Sequence[list[int]], targets: Sequence[list[int]]) -> AttentionMaps:
        """Return the attention weights for sources (with EOS) and targets (without BOS and EOS).

        The decoder's rows are what it reads: BOS, then the target. Rows and columns of padding mean nothing.
        """
        source, lengths = self._batch(sources)
        target, _ = self._batch([[self.network.config.bos_id, *ids] for ids in targets])
        with torch.inference_mode():
            return self.network.attention_maps(source, lengths, target)

    def align(self, sources: Sequence[list[int]], targets: Sequence[list[int]]) -> list[Alignment]:
        """Return the source token that each target token attends to most, EOS left out on both sides.

        The cross-attention of the last layer but one, averaged over heads, is what aligns best in a Transformer (Garg
        et al. 2019, arXiv 1909.02074). Its row that predicts a token is the row that reads the token before.
        """
        layers = self.attention_maps(sources, targets).cross
        weights = layers[max(0, len(layers) - 2)].mean(1)
        alignments = []
        for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
            words = len(source) - 1
            best = weights[row, : len(target), :words].argmax(-1).tolist() if words else []
            alignments.append([(place, position) for position, place in enumerate(best)])
        return alignments

    def _batch(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Return rows of token ids as ``(batch, length)`` int64, padded, and their lengths ``(batch,)`` int32."""
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
        batch = torch.full((len(rows), int(lengths.max())), self.network.config.pad_id)
        for number, row in enumerate(rows):
            batch[number, : len(row)] = torch.tensor(row)
        return batch.to(self.device), lengths.to(self.device)


def _source_limit(network: Transformer, data: dict[str, Any]) -> int:
    """Return how many source tokens, EOS counted, the network was trained on or has positions for."""
    limits = [int(data["max_length"])] if data.get("max_length") else []
    if network.config.positions == "learned":
        limits.append(network.config.max_positions)
    return min(limits, default=sys.maxsize)
