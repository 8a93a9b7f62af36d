"""Prepared data beside a corpus: what was checked, the tokenizer, and token ids in memory-mapped files.

Everything lies in one directory under names that hold a key of the settings and of the text's hash, so a changed
setting or file never meets stale data. Files appear whole or not at all: they are written elsewhere and renamed.
Old keys are left; removing the whole directory is always safe.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.text.binary import Sequences, SequenceWriter, smallest_dtype
from datamodules.text.corpus import PairSummary, check_pair, find_file, is_blank, read_lines, read_pairs
from datamodules.text.dataset import TokenizedSplit
from datamodules.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

# A change of what is stored gets a new number, so that files of an older version are not read.
_FORMAT = 1
_CHUNK_LINES = 10_000
_TEXT = np.dtype(np.uint8)


@dataclass(frozen=True)
class SplitFiles:
    """The two files of a split, and what the check of them found.

    Attributes:
        prefix: Name of the split's files without the language.
        source: File of the source language.
        target: File of the target language.
        skip_empty: Whether pairs with a blank side are left out.
        summary: What the check found.
    """

    prefix: str
    source: Path
    target: Path
    skip_empty: bool
    summary: PairSummary

    def __str__(self) -> str:
        languages = ",".join(path.name.removeprefix(f"{self.prefix}.") for path in (self.source, self.target))
        return f"{self.source.parent / self.prefix}.{{{languages}}}"

    @property
    def pairs(self) -> int:
        """Number of pairs that are used."""
        return self.summary.lines - (self.summary.empty if self.skip_empty else 0)


class PreparedData:
    """Makes prepared data, or finds it made.

    Two processes that start together do the work once: the second waits for the first's lock.

    Args:
        directory: Where prepared data lies; it is created.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from preparing at the same time.

        Raises:
            OSError: If the directory cannot be written.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            lock = (self._directory / ".lock").open("w")
        except OSError as error:
            raise OSError(f"cannot write prepared data to {self._directory}: {error}; set cache_dir") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                rank_zero_info(f"waiting for another process that prepares data in {self._directory}")
                fcntl.flock(lock, fcntl.LOCK_EX)
            # Whoever holds the lock is alone: what is half-written is of a process that died.
            for stale in self._directory.glob(".*.partial"):
                _remove(stale)
            yield

    def check(
        self, data_dir: Path, prefix: str, languages: tuple[str, str], *, allow_empty: bool, skip_empty: bool
    ) -> SplitFiles:
        """Finds and checks the files of a split; unchanged files are checked once.

        Args:
            data_dir: Directory of the files.
            prefix: Name of the files without the language.
            languages: Source and target language.
            allow_empty: Accept blank lines.
            skip_empty: Leave out pairs with a blank side.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If the files are not line-aligned UTF-8 text without blank lines.
        """
        source, target = (find_file(data_dir, prefix, language) for language in languages)
        record = self._directory / "checked.json"
        checked: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
        name = f"{source.resolve()}|{target.resolve()}"
        stamp = [[path.stat().st_size, path.stat().st_mtime_ns] for path in (source, target)]
        known = checked.get(name)
        # Files with blank lines are read again when they are not allowed, to name the lines.
        if known and known["stamp"] == stamp and (allow_empty or not known["summary"]["empty"]):
            summary = PairSummary(**known["summary"])
        else:
            summary = check_pair(source, target, allow_empty=allow_empty)
            checked[name] = {"stamp": stamp, "summary": asdict(summary)}
            with _renamed_when_done(record) as partial:
                partial.write_text(json.dumps(checked, indent=1))
        return SplitFiles(Path(prefix).name, source, target, skip_empty, summary)

    def tokenizer(self, files: SplitFiles, config: TokenizerConfig) -> Tokenizer:
        """Learns the tokenizer from a split, or loads it."""
        directory = self._directory / f"tokenizer-{self.tokenizer_key(files, config)}"
        names = ["joint.model"] if config.joint else ["source.model", "target.model"]
        if not directory.is_dir():
            rank_zero_info(f"learning {config.vocab_size} {config.kind} pieces from {files}")
            stride = -(-files.summary.lines // config.training_lines)

            def opener(path: Path) -> Callable[[], Iterator[str]]:
                return lambda: (line for line in islice(read_lines(path), 0, None, stride) if not is_blank(line))

            tokenizer = train_tokenizer(config, opener(files.source), opener(files.target), str(files))
            with _renamed_when_done(directory) as partial:
                partial.mkdir()
                for name, model in zip(names, tokenizer.models, strict=False):
                    (partial / name).write_bytes(model)
                (partial / "settings.json").write_text(json.dumps(asdict(config), indent=1))
        models = [(directory / name).read_bytes() for name in names]
        return Tokenizer(*models, dropout=config.dropout)

    @staticmethod
    def tokenizer_key(files: SplitFiles, config: TokenizerConfig) -> str:
        """Returns the key of what decides the pieces: the text and the settings, but not how sampling uses them."""
        settings = {name: value for name, value in asdict(config).items() if name != "dropout"}
        return _key(settings, files.summary.digest)

    def split(self, files: SplitFiles, tokenizer: Tokenizer, *, with_text: bool) -> TokenizedSplit:
        """Tokenises a split, or finds it tokenised.

        Args:
            files: The split.
            tokenizer: Cuts it.
            with_text: Store the raw lines too.
        """
        content = (files.summary.digest, files.skip_empty)
        tokens = self._directory / f"{files.prefix}-tokens-{_key(tokenizer.digest(), *content)}"
        text = self._directory / f"{files.prefix}-text-{_key(*content)}"
        dtypes = [smallest_dtype(size - 1) for size in (tokenizer.source_vocab_size, tokenizer.target_vocab_size)]
        if not tokens.is_dir():
            rank_zero_info(f"tokenising {files.pairs:,} pairs of {files}")
            with _renamed_when_done(tokens) as partial:
                _write_tokens(partial, files, tokenizer, dtypes)
        if with_text and not text.is_dir():
            with _renamed_when_done(text) as partial:
                _write_text(partial, files)
        lines = tokens / "lines.npy"
        return TokenizedSplit(
            name=str(files),
            source=Sequences(tokens / "source", dtypes[0]),
            target=Sequences(tokens / "target", dtypes[1]),
            source_text=Sequences(text / "source", _TEXT) if with_text else None,
            target_text=Sequences(text / "target", _TEXT) if with_text else None,
            lines=np.load(lines, mmap_mode="r") if lines.is_file() else None,
        )


def _write_tokens(directory: Path, files: SplitFiles, tokenizer: Tokenizer, dtypes: list[np.dtype[Any]]) -> None:
    directory.mkdir()
    with SequenceWriter(directory / "source", dtypes[0]) as source:
        with SequenceWriter(directory / "target", dtypes[1]) as target:
            for sources, targets in _chunks(files):
                source.write_ids(tokenizer.encode_source(sources))
                target.write_ids(tokenizer.encode_target(targets))
    if files.pairs < files.summary.lines:
        pairs = read_pairs(files.source, files.target)
        kept = (number for number, pair in enumerate(pairs) if not any(map(is_blank, pair)))
        np.save(directory / "lines.npy", np.fromiter(kept, np.int64, files.pairs))


def _write_text(directory: Path, files: SplitFiles) -> None:
    directory.mkdir()
    with SequenceWriter(directory / "source", _TEXT) as source:
        with SequenceWriter(directory / "target", _TEXT) as target:
            for sources, targets in _chunks(files):
                source.write_text(sources)
                target.write_text(targets)


def _chunks(files: SplitFiles) -> Iterator[tuple[list[str], list[str]]]:
    """Reads the pairs that are used, some thousands at a time."""
    pairs: Iterable[tuple[str, str]] = read_pairs(files.source, files.target, skip_empty=files.skip_empty)
    while chunk := list(islice(pairs, _CHUNK_LINES)):
        yield [source for source, _ in chunk], [target for _, target in chunk]


def _key(*content: Any) -> str:
    """Hashes plain values to a short name."""
    text = json.dumps([_FORMAT, *content], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@contextmanager
def _renamed_when_done(path: Path) -> Iterator[Path]:
    """Yields a path beside ``path`` and renames it when all went well; nothing is left otherwise."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        _remove(partial)
        raise


def _remove(path: Path) -> None:
    """Removes a file or a directory, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
