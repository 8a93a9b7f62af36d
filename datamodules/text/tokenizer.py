"""SentencePiece tokenizers: one for both languages, or one for each.

SentencePiece: Kudo and Richardson 2018, https://arxiv.org/abs/1808.06226. BPE-dropout: Provilkov et al. 2020,
https://arxiv.org/abs/1910.13267. Unigram sampling: Kudo 2018, https://arxiv.org/abs/1804.10959.
"""

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import sentencepiece
import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveInt

from datamodules.batches import BOS_ID, EOS_ID, PAD_ID, UNK_ID

SPECIAL_PIECES = 4
_CONTROL_IDS = (PAD_ID, BOS_ID, EOS_ID)
# Sums of floats depend on how the sentences are split among threads, so the number of threads is part of the recipe.
_TRAINING_THREADS = 4


@dataclass(frozen=True)
class TokenizerConfig:
    """How text is cut into pieces.

    Attributes:
        kind: ``bpe`` merges frequent pairs, ``unigram`` prunes a large vocabulary by likelihood.
        vocab_size: Pieces in each vocabulary, the four special ones (padding, unknown, begin, end) counted.
        joint: One vocabulary learnt from both languages, which weight tying across languages needs; otherwise one each.
        dropout: Random segmentations in training; 0 is off. With ``bpe`` the probability that a merge is skipped
            (BPE-dropout; 0.1 is the paper's). With ``unigram`` the smoothing exponent alpha with which a
            segmentation is drawn: the *smaller*, the more varied (0.1 to 0.5 are usual).
        character_coverage: Share of the text's characters that get a piece; the rarest others become unknown.
            1.0 suits small clean corpora, 0.9999 large web text with stray scripts.
        normalization: Rule applied to the text before it is cut: ``nmt_nfkc`` (Unicode NFKC and spaces), ``nfkc``,
            their case-folding variants with ``_cf``, or ``identity``.
        byte_fallback: Write a character without a piece as its UTF-8 bytes instead of the unknown piece (256 pieces).
        training_lines: At most this many lines of each language, spread evenly over the file, are used to learn the
            pieces. It bounds memory, of which unigram needs several times as much as BPE.
    """

    kind: Literal["bpe", "unigram"] = "bpe"
    vocab_size: PositiveInt = 4000
    joint: bool = True
    dropout: ClosedUnitInterval = 0.0
    character_coverage: ClosedUnitInterval = 1.0
    normalization: Literal["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity"] = "nmt_nfkc"
    byte_fallback: bool = False
    training_lines: PositiveInt = 400_000

    def __post_init__(self) -> None:
        if self.vocab_size <= SPECIAL_PIECES:
            raise ValueError(
                f"tokenizer.vocab_size={self.vocab_size} leaves no room beside the {SPECIAL_PIECES} special pieces; "
                "4000 suits small corpora, 32000 large ones"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(
                f"tokenizer.dropout={self.dropout} must be at least 0 and below 1; 0 is off and 0.1 is usual"
            )
        if not 0.9 <= self.character_coverage <= 1.0:
            raise ValueError(
                f"tokenizer.character_coverage={self.character_coverage} must lie between 0.9 and 1; 1.0 keeps every "
                "character, 0.9999 suits large web text"
            )


def train_model(lines: Iterable[str], config: TokenizerConfig, what: str) -> bytes:
    """Learns a SentencePiece model; the same lines and settings give the same bytes.

    Args:
        lines: The training text, one sentence each.
        config: How to cut it.
        what: What the text is, for error messages, such as ``"data/train.{en,de}"``.

    Returns:
        The serialized model.

    Raises:
        ValueError: If the vocabulary is larger than the text supports, or too small for its characters.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=config.kind,
            vocab_size=config.vocab_size,
            character_coverage=config.character_coverage,
            normalization_rule_name=config.normalization,
            byte_fallback=config.byte_fallback,
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            input_sentence_size=0,
            shuffle_input_sentence=False,
            num_threads=_TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(_explain(str(error), config, what)) from error
    return model.getvalue()


def _explain(error: str, config: TokenizerConfig, what: str) -> str:
    """Turns SentencePiece's message about the vocabulary's size into ours."""
    size = f"tokenizer.vocab_size={config.vocab_size}"
    if found := re.search(r"too high.*value <= (\d+)", error):
        return f"{size} is more than {what} supports: at most {found[1]} pieces with kind={config.kind}; lower it"
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
        return (
            f"{size} is less than the characters of {what} need: at least {found[1]}; "
            "raise it or lower tokenizer.character_coverage"
        )
    return f"SentencePiece could not learn {config.vocab_size} pieces from {what}: {error}"


def _round_up(size: int) -> int:
    """Rounds a vocabulary up to a multiple of 8, which matrix units favour."""
    return -(-size // 8) * 8


class Tokenizer:
    """Text to token ids and back, with one SentencePiece model for both languages or one for each.

    Ids 0 to 3 are padding, unknown, begin and end. The sizes are rounded up to a multiple of 8, so the last few ids may
    stand for no piece; decoding skips them.

    Args:
        source_model: Serialized SentencePiece model of the source language, or of both.
        target_model: That of the target language; ``None`` if the two share one.
        dropout: Strength of random segmentation when ``sample=True``; see ``TokenizerConfig.dropout``.

    Attributes:
        shared: Whether both languages use one vocabulary.
        source_vocab_size: Size of the source vocabulary, a multiple of 8.
        target_vocab_size: Size of the target vocabulary, a multiple of 8.
        models: The serialized models of both languages, the same one twice if they share it.
    """

    def __init__(self, source_model: bytes, target_model: bytes | None = None, *, dropout: float = 0.0) -> None:
        self.shared = target_model is None
        self.dropout = dropout
        self.models = (source_model, source_model if target_model is None else target_model)
        self._source = _load(self.models[0])
        self._target = self._source if self.shared else _load(self.models[1])
        self.source_vocab_size = _round_up(self._source.get_piece_size())
        self.target_vocab_size = _round_up(self._target.get_piece_size())

    def encode_source(self, lines: list[str], *, sample: bool = False) -> list[list[int]]:
        """Cuts source lines into token ids, without begin and end.

        Args:
            lines: Raw text.
            sample: Draw a random segmentation of strength ``dropout``; see ``set_seed``.

        Returns:
            One list of ids for each line.
        """
        return self._encode(self._source, lines, sample)

    def encode_target(self, lines: list[str], *, sample: bool = False) -> list[list[int]]:
        """Cuts target lines into token ids, as ``encode_source`` does."""
        return self._encode(self._target, lines, sample)

    def _encode(self, model: Any, lines: list[str], sample: bool) -> list[list[int]]:
        if not sample or self.dropout == 0.0:
            return model.encode(lines, out_type=int)
        # A thread of its own draws from a fresh generator, seeded by set_seed: the result depends on nothing before.
        return model.encode(lines, out_type=int, enable_sampling=True, alpha=self.dropout, nbest_size=-1, num_threads=1)

    @staticmethod
    def set_seed(seed: int) -> None:
        """Fixes what the next calls with ``sample=True`` draw.

        Args:
            seed: A number from 0 to 2**32 - 2.
        """
        sentencepiece.set_random_generator_seed(seed)

    def decode_source(self, ids: list[list[int]]) -> list[str]:
        """Joins source token ids into text, as ``decode_target`` does."""
        return _decode(self._source, ids)

    def decode_target(self, ids: list[list[int]]) -> list[str]:
        """Joins target token ids into text.

        Args:
            ids: One list of ids for each sentence. Padding, begin, end and ids beyond the vocabulary are skipped; the
                unknown piece is written as ``⁇``.

        Returns:
            One line of text for each sentence.
        """
        return _decode(self._target, ids)

    def source_pieces(self, ids: list[int]) -> list[str]:
        """Names source ids as readable pieces, special ones among them; ``▁`` marks a word's start."""
        return _pieces(self._source, ids)

    def target_pieces(self, ids: list[int]) -> list[str]:
        """Names target ids as ``source_pieces`` does."""
        return _pieces(self._target, ids)

    def state_dict(self) -> dict[str, Any]:
        """Returns plain values and uint8 tensors, so that ``torch.load(..., weights_only=True)`` reads them."""
        return {
            "format": 1,
            "shared": self.shared,
            "dropout": float(self.dropout),
            "source_model": _to_tensor(self.models[0]),
            "target_model": None if self.shared else _to_tensor(self.models[1]),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "Tokenizer":
        """Rebuilds a tokenizer from ``state_dict``.

        Raises:
            ValueError: If the state is not one of a tokenizer.
        """
        try:
            source, target = state["source_model"], state["target_model"]
            return cls(_to_bytes(source), None if target is None else _to_bytes(target), dropout=state["dropout"])
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"this is not the state of a tokenizer: {error!r}") from error

    def digest(self) -> str:
        """Returns a hash of the models."""
        return hashlib.blake2b(b"|".join(self.models), digest_size=16).hexdigest()

    def __eq__(self, other: object) -> bool:
        """Two tokenizers are equal if they cut text in the same way; the strength of sampling does not matter."""
        return isinstance(other, Tokenizer) and self.shared == other.shared and self.models == other.models

    def __hash__(self) -> int:
        return hash(self.models)

    def __getstate__(self) -> dict[str, Any]:
        # Workers that are spawned get the models' bytes, not the C++ objects.
        return {"models": self.models, "shared": self.shared, "dropout": self.dropout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        source, target = state["models"]
        Tokenizer.__init__(self, source, None if state["shared"] else target, dropout=state["dropout"])


def _load(model: bytes) -> Any:
    """Opens a serialized model and checks that its special ids are ours."""
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise ValueError(f"{len(model)} bytes are not a SentencePiece model") from error
    found = (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id())
    expected = (PAD_ID, UNK_ID, BOS_ID, EOS_ID)
    if found != expected:
        raise ValueError(f"the SentencePiece model has pad, unk, bos, eos = {found}; Heddle needs {expected}")
    return processor


def _decode(model: Any, ids: list[list[int]]) -> list[str]:
    size = model.get_piece_size()
    return [model.decode([i for i in row if i < size and i not in _CONTROL_IDS]) for row in ids]


def _pieces(model: Any, ids: list[int]) -> list[str]:
    size = model.get_piece_size()
    return [model.id_to_piece(i) if i < size else f"<unused {i}>" for i in ids]


def _to_tensor(model: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(model, dtype=np.uint8).copy())


def _to_bytes(model: torch.Tensor) -> bytes:
    return model.cpu().numpy().astype(np.uint8).tobytes()


def train_tokenizer(
    config: TokenizerConfig, sources: Callable[[], Iterator[str]], targets: Callable[[], Iterator[str]], what: str
) -> Tokenizer:
    """Learns a tokenizer from two sides of a corpus.

    Args:
        config: How to cut the text.
        sources: Opens the source lines to learn from.
        targets: Opens the target lines to learn from.
        what: What the text is, for error messages.

    Returns:
        The tokenizer.
    """
    if config.joint:
        return Tokenizer(train_model(_chain(sources, targets), config, what), dropout=config.dropout)
    source = train_model(sources(), config, f"the source side of {what}")
    target = train_model(targets(), config, f"the target side of {what}")
    return Tokenizer(source, target, dropout=config.dropout)


def _chain(*sides: Callable[[], Iterator[str]]) -> Iterator[str]:
    """Goes through one side after the other."""
    for side in sides:
        yield from side()
