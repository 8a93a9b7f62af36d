"""Translation data: any directory of line-aligned files, the built-in corpus, Multi30k and WMT14."""

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray

from datamodules.batches import TranslationBatch
from datamodules.loading import NEEDED_SPLITS, ResumableLoader, place
from datamodules.text.batching import TokenBatches
from datamodules.text.corpora import fetch_corpus
from datamodules.text.corpus import find_file
from datamodules.text.dataset import Sampling, TokenizedSplit, TranslationReader, plan_sampled_lengths
from datamodules.text.prepare import PreparedData, SplitFiles
from datamodules.text.tokenizer import Tokenizer, TokenizerConfig

Loader = ResumableLoader[TranslationBatch]


class WMTDataModule(pl.LightningDataModule):
    """Reads line-aligned text files ``<prefix>.<language>``, plain or ``.gz``, and makes batches by token budget.

    Everything is checked before anything is learnt: missing files and languages, unequal line counts, blank lines and
    invalid UTF-8 are errors that name file and line. A SentencePiece tokenizer is learnt from the training split once,
    and token ids are stored in memory-mapped files; both lie in ``cache_dir`` under a key of the settings and the
    text's hash.

    Training batches depend on (seed, epoch) alone and not on ``num_workers``; the loaders resume in mid-epoch. Create
    the Trainer with ``use_distributed_sampler=False``: each process takes its share of the same list of batches.

    Args:
        data_dir: Directory of the text files. Named corpora default to ``data/multi30k``, ``data/wmt14`` and
            ``data/synthetic_translation``.
        corpus: ``directory`` reads the files that are in ``data_dir``. ``synthetic`` writes the built-in corpus there
            first, ``multi30k`` and ``wmt14`` download theirs from the official sources.
        source_language: Language to translate from, as the files' suffix says it.
        target_language: Language to translate into.
        train_prefix: Name of the training files without the language.
        valid_prefix: Name of the validation files; default ``valid``, for ``multi30k`` ``val``, for ``wmt14``
            ``newstest2013``.
        test_prefix: Name of the test files, needed for testing and predicting only; default ``test``, for ``multi30k``
            ``test_2016_flickr``, for ``wmt14`` ``newstest2014`` (all 3,003 lines, sacreBLEU's ``wmt14/full``).
        tokenizer: How text is cut into pieces.
        batch_tokens: Budget of a training batch: sentences times the longest padded row of the larger side.
        eval_batch_tokens: Budget of an evaluation batch; default ``batch_tokens``.
        length_multiple: Rows are padded to a multiple of this, but never beyond ``max_length``.
        max_length: Tokens of the longest row, begin or end token counted. Longer pairs are dropped from training, and
            their number is logged; in evaluation every line stays and a longer row is cut, with a warning.
        on_empty: ``error`` refuses blank lines; ``skip`` leaves such pairs out of training and logs their number.
            Evaluation never leaves out a line: with ``skip`` its blank lines stay.
        num_workers: Processes that read ahead; 0 reads in the training process.
        seed: Decides the order of training batches and the random segmentations.
        cache_dir: Where the tokenizer and token ids are kept; default ``prepared`` in ``data_dir``.

    Attributes:
        name: Name of the corpus, for logs and tables.
        tokenizer: The tokenizer, after ``setup``.

    Raises:
        ValueError: If an argument contradicts another.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        corpus: Literal["directory", "synthetic", "multi30k", "wmt14"] = "directory",
        source_language: str = "en",
        target_language: str = "de",
        train_prefix: str = "train",
        valid_prefix: str | None = None,
        test_prefix: str | None = None,
        tokenizer: TokenizerConfig = TokenizerConfig(),  # noqa: B008  (frozen)
        batch_tokens: PositiveInt = 4096,
        eval_batch_tokens: PositiveInt | None = None,
        length_multiple: PositiveInt = 8,
        max_length: PositiveInt = 256,
        on_empty: Literal["error", "skip"] = "error",
        num_workers: NonNegativeInt = 0,
        seed: NonNegativeInt = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        if data_dir is None and corpus == "directory":
            raise ValueError(
                "no data_dir: name the directory of the <prefix>.<language> files, or choose a corpus that brings "
                "its own: synthetic, multi30k or wmt14"
            )
        if source_language == target_language:
            raise ValueError(f"source_language and target_language are both {source_language!r}; they must differ")
        _check_sizes(batch_tokens, eval_batch_tokens, length_multiple, max_length)
        self.data_dir = Path(data_dir if data_dir is not None else _DIRECTORIES[corpus])
        self.cache_dir = Path(cache_dir) if cache_dir is not None else self.data_dir / "prepared"
        self.corpus = corpus
        self.name = corpus if corpus != "directory" else self.data_dir.name
        self.languages = (source_language, target_language)
        valid, test = _EVALUATION_PREFIXES[corpus]
        self.prefixes = {"train": train_prefix, "valid": valid_prefix or valid, "test": test_prefix or test}
        self.tokenizer_config = tokenizer
        self.batch_tokens = batch_tokens
        self.eval_batch_tokens = eval_batch_tokens or batch_tokens
        self.length_multiple = length_multiple
        self.max_length = max_length
        self.on_empty = on_empty
        self.num_workers = num_workers
        self.seed = seed
        self.tokenizer: Tokenizer
        self._restored: Tokenizer | None = None
        self._splits: dict[str, TokenizedSplit] = {}
        self._orders: dict[str, TokenBatches] = {}

    def prepare_data(self) -> None:
        """Fetches a named corpus, checks the files, learns the tokenizer and tokenises.

        For training, and when no Trainer calls, these are all splits that are there; otherwise those of the stage.

        Raises:
            FileNotFoundError: If the directory, a language or a split that the stage needs is missing, or a download
                fails.
            ValueError: If a file's content is not as it must be, or nothing can be written.
        """
        stage = self.trainer.state.fn if self.trainer is not None else None
        needed = NEEDED_SPLITS[stage.value] if stage is not None else ("train",)
        if self.corpus == "directory":
            # Before anything is written: data_dir may be mistyped.
            for split in self._with_training(needed):
                find_file(self.data_dir, self.prefixes[split], self.languages[0])
        prepared = PreparedData(self.cache_dir)
        with prepared.locked():
            fetch_corpus(self.corpus, self.data_dir, list(self.prefixes.values()), self.languages)
            if "train" in needed:
                needed += tuple(split for split in ("valid", "test") if split not in needed and self._is_there(split))
            files = self._check(prepared, needed)
            tokenizer = self._find_tokenizer(prepared, files)
            for split in needed:
                self._open(prepared, files[split], split, tokenizer)

    def setup(self, stage: str) -> None:
        """Opens the splits of a stage and plans their batches.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            FileNotFoundError: If a split that the stage needs is missing.
            ValueError: If ``batch_tokens`` is smaller than the longest sentence, or a checkpoint that was loaded needs
                another tokenizer.
        """
        needed = NEEDED_SPLITS[stage]
        prepared = PreparedData(self.cache_dir)
        with prepared.locked():
            files = self._check(prepared, needed)
            self.tokenizer = self._find_tokenizer(prepared, files)
            for split in needed:
                self._splits[split] = self._open(prepared, files[split], split, self.tokenizer)
        self._refuse_another_tokenizer()
        for split in needed:
            self._orders[split] = self._plan_training() if split == "train" else self._plan_evaluation(split)
            if split == "train" and files[split].pairs < files[split].summary.lines:
                rank_zero_info(f"{files[split]}: {files[split].summary.empty:,} pairs with a blank side are left out")

    def _with_training(self, splits: tuple[str, ...]) -> tuple[str, ...]:
        """Adds the training split, whose text decides the tokenizer, unless a checkpoint has brought one instead."""
        if "train" in splits or (self._restored is not None and not self._is_there("train")):
            return splits
        return ("train", *splits)

    def _check(self, prepared: PreparedData, splits: tuple[str, ...]) -> dict[str, SplitFiles]:
        """Checks the files of splits, and those that the tokenizer comes from."""
        skip = self.on_empty == "skip"
        return {
            split: prepared.check(
                self.data_dir,
                self.prefixes[split],
                self.languages,
                allow_empty=skip,
                skip_empty=skip and split == "train",
            )
            for split in self._with_training(splits)
        }

    def _find_tokenizer(self, prepared: PreparedData, files: dict[str, SplitFiles]) -> Tokenizer:
        """Returns the tokenizer of the training text, or the checkpoint's where there is no training text."""
        if self._restored is not None and "train" not in files:
            return self._restored
        return prepared.tokenizer(files["train"], self.tokenizer_config)

    def _is_there(self, split: str) -> bool:
        """Says whether any file of a split is there; one of two is for the check to refuse."""
        stem = self.data_dir / self.prefixes[split]
        names = [f"{stem.name}.{language}{end}" for language in self.languages for end in ("", ".gz")]
        return any((stem.parent / name).is_file() for name in names)

    def _open(self, prepared: PreparedData, files: SplitFiles, split: str, tokenizer: Tokenizer) -> TokenizedSplit:
        with_text = split != "train" or self.tokenizer_config.dropout > 0
        return prepared.split(files, tokenizer, with_text=with_text)

    def _plan_training(self) -> TokenBatches:
        split = self._splits["train"]
        source, target = split.source.lengths() + 1, split.target.lengths() + 1
        kept = np.flatnonzero(np.maximum(source, target) <= self.max_length)
        if not len(kept):
            raise ValueError(f"every pair of {split.name} is longer than max_length={self.max_length} tokens; raise it")
        source, target = source[kept], target[kept]
        order = self._token_batches(split, kept, source, target, self.batch_tokens, self.seed)
        if self.tokenizer_config.dropout > 0:
            # Random segmentations are longer than the stored ones: plan for it, or most would not fit their batch.
            planned = plan_sampled_lengths(split, self._sampling(), kept)
            longest = min(self.max_length, self.batch_tokens // self.length_multiple * self.length_multiple)
            source, target = (
                np.maximum(side, np.minimum(plan, longest))
                for side, plan in zip((source, target), planned, strict=True)
            )
            order = self._token_batches(split, kept, source, target, self.batch_tokens, self.seed)
        dropped = len(split) - len(kept)
        rank_zero_info(
            f"{split.name}: {len(kept):,} pairs in {len(order):,} batches of at most {self.batch_tokens:,} tokens "
            f"an epoch, {order.padding:.1%} of them padding; {dropped:,} pairs longer than {self.max_length} tokens "
            "dropped"
        )
        return order

    def _plan_evaluation(self, name: str) -> TokenBatches:
        split = self._splits[name]
        source, target = split.source.lengths() + 1, split.target.lengths() + 1
        if too_long := int((source > self.max_length).sum()):
            rank_zero_warn(
                f"{split.name}: {too_long:,} of {len(split):,} source lines are longer than max_length="
                f"{self.max_length} tokens; they are cut there"
            )
        every = np.arange(len(split))
        source, target = np.minimum(source, self.max_length), np.minimum(target, self.max_length)
        return self._token_batches(split, every, source, target, self.eval_batch_tokens, None)

    def _token_batches(
        self,
        split: TokenizedSplit,
        items: NDArray[np.int64],
        source: NDArray[np.int32],
        target: NDArray[np.int32],
        batch_tokens: int,
        seed: int | None,
    ) -> TokenBatches:
        return TokenBatches(
            source,
            target,
            items=items,
            batch_tokens=batch_tokens,
            length_multiple=self.length_multiple,
            max_length=self.max_length,
            seed=seed,
            **place(),
            name=split.name,
        )

    def _sampling(self) -> Sampling:
        return Sampling(self.tokenizer, self.seed, self.batch_tokens)

    def train_dataloader(self) -> Loader:
        """Returns the training batches, in a new order every epoch."""
        sampling = self._sampling() if self.tokenizer_config.dropout > 0 else None
        return self._loader("train", sampling, with_text=False)

    def val_dataloader(self) -> Loader:
        """Returns the validation batches: every line once, longest first, with the raw lines."""
        return self._loader("valid", None, with_text=True)

    def test_dataloader(self) -> Loader:
        """Returns the test batches, as ``val_dataloader`` does."""
        return self._loader("test", None, with_text=True)

    def predict_dataloader(self) -> Loader:
        """Returns the test batches."""
        return self.test_dataloader()

    def _loader(self, split: str, sampling: Sampling | None, *, with_text: bool) -> Loader:
        reader = TranslationReader(
            self._splits[split],
            max_length=self.max_length,
            length_multiple=self.length_multiple,
            sampling=sampling,
            with_text=with_text,
        )
        return ResumableLoader(
            reader,
            self._orders[split],
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            # A validation of fewer batches than there are must score the same sentences every time.
            restart=split != "train",
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns what translating with a checkpoint needs of the data: the tokenizer, languages and lengths."""
        return {
            "tokenizer": self.tokenizer.state_dict(),
            "name": self.name,
            "source_language": self.languages[0],
            "target_language": self.languages[1],
            "max_length": int(self.max_length),  # a plain int: a restricted type would need code to load
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Checks that a checkpoint was trained with the tokenizer and languages of this data.

        Before ``prepare_data`` it also brings the tokenizer: without training files, the other splits can be read.

        Raises:
            ValueError: If it was not: its network would read other words into the same token ids.
        """
        languages = (state_dict["source_language"], state_dict["target_language"])
        if languages != self.languages:
            raise ValueError(
                f"the checkpoint translates {languages[0]} to {languages[1]}, but the data is configured as "
                f"{self.languages[0]} to {self.languages[1]}; set source_language and target_language accordingly"
            )
        self._restored = Tokenizer.from_state_dict(state_dict["tokenizer"])
        if hasattr(self, "tokenizer"):
            self._refuse_another_tokenizer()

    def _refuse_another_tokenizer(self) -> None:
        if self._restored is not None and self._restored != self.tokenizer:
            raise ValueError(
                "the checkpoint was trained with another tokenizer than the one of this data "
                f"({self._restored.source_vocab_size} and {self.tokenizer.source_vocab_size} source pieces): the "
                f"training files in {self.data_dir} or the tokenizer settings have changed since; use the data and "
                "settings of the run that wrote the checkpoint"
            )


_DIRECTORIES = {
    "synthetic": "data/synthetic_translation",
    "multi30k": "data/multi30k",
    "wmt14": "data/wmt14",
}
_EVALUATION_PREFIXES = {
    "directory": ("valid", "test"),
    "synthetic": ("valid", "test"),
    "multi30k": ("val", "test_2016_flickr"),
    "wmt14": ("newstest2013", "newstest2014"),
}


def _check_sizes(batch_tokens: int, eval_batch_tokens: int | None, length_multiple: int, max_length: int) -> None:
    """Refuses sizes that the command line's types refuse, for callers from Python, and contradictions."""
    sizes = {"batch_tokens": batch_tokens, "length_multiple": length_multiple, "max_length": max_length}
    if eval_batch_tokens is not None:
        sizes["eval_batch_tokens"] = eval_batch_tokens
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1")
    if max_length < 2:
        raise ValueError(f"max_length={max_length} holds no token beside the end token; it must be at least 2")
