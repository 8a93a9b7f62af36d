"""Prepared data beside a corpus: what was checked, the tokenizer, and token ids in memory-mapped files.

Everything lies in one directory under names that hold a key of the settings and of the text's hash, so a changed
setting or file never meets stale data. Files appear whole or not at all: they are written elsewhere and renamed.
Old keys are left; removing the whole directory is always safe. A directory that cannot be written is read from, as long
as all that is needed lies in it.
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
from typing import Any, TextIO

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.text.binary import Sequences, SequenceWriter, load_array, smallest_dtype
from datamodules.text.corpus import PairSummary, check_pair, find_file, is_blank, read_lines, read_pairs
from datamodules.text.dataset import TokenizedSplit
from datamodules.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

# A change of what is stored gets a new number, so that files of an older version are not read.
_FORMAT = 2
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
        self._refusal: OSError | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from preparing at the same time.

        A directory that is there but cannot be written needs no lock: nothing is made in it, only found.

        Raises:
            ValueError: If the directory is missing and cannot be made.
        """
        lock = self._open_lock()
        if lock is None:
            yield
            return
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

    def _open_lock(self) -> TextIO | None:
        """Opens the file to lock; ``None`` if the directory is there and cannot be written."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            return (self._directory / ".lock").open("w")
        except OSError as error:
            if not self._directory.is_dir():
                raise _unwritable(self._directory, error) from error
            self._refusal = error
            return None

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
        checked = _read_record(record)
        name = f"{source.resolve()}|{target.resolve()}"
        stamp = [_FORMAT, *([path.stat().st_size, path.stat().st_mtime_ns] for path in (source, target))]
        summary = _known_summary(checked.get(name), stamp)
        # Files with blank lines are read again when they are not allowed, to name the lines.
        if summary is None or (summary.empty and not allow_empty):
            summary = check_pair(source, target, allow_empty=allow_empty)
            checked[name] = {"stamp": stamp, "summary": asdict(summary)}
            if self._refusal is None:  # else it is checked again the next time
                with _renamed_when_done(record) as partial:
                    partial.write_text(json.dumps(checked, indent=1))
        return SplitFiles(Path(prefix).name, source, target, skip_empty, summary)

    def tokenizer(self, files: SplitFiles, config: TokenizerConfig) -> Tokenizer:
        """Learns the tokenizer from a split, or loads it.

        Raises:
            ValueError: If the text does not support the settings, the stored tokenizer is damaged, or it cannot be
                written.
        """
        directory = self._directory / f"tokenizer-{self.tokenizer_key(files, config)}"
        names = ["joint.model"] if config.joint else ["source.model", "target.model"]
        if not directory.is_dir():
            self._refuse_to_write()
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
        try:
            return Tokenizer(*models, dropout=config.dropout)
        except ValueError as error:
            files_read = " or ".join(str(directory / name) for name in names)
            raise ValueError(f"{files_read} is damaged: {error}; remove {directory} and start again") from error

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

        Raises:
            ValueError: If what is stored is damaged, or cannot be written; the message names the file.
        """
        content = (files.summary.digest, files.skip_empty)
        tokens = self._directory / f"{files.prefix}-tokens-{_key(tokenizer.digest(), *content)}"
        text = self._directory / f"{files.prefix}-text-{_key(*content)}"
        dtypes = [smallest_dtype(size - 1) for size in (tokenizer.source_vocab_size, tokenizer.target_vocab_size)]
        if not tokens.is_dir():
            self._refuse_to_write()
            rank_zero_info(f"tokenising {files.pairs:,} pairs of {files}")
            with _renamed_when_done(tokens) as partial:
                _write_tokens(partial, files, tokenizer, dtypes)
        if with_text and not text.is_dir():
            self._refuse_to_write()
            with _renamed_when_done(text) as partial:
                _write_text(partial, files)
        lines = tokens / "lines.npy"
        return TokenizedSplit(
            name=str(files),
            source=Sequences(tokens / "source", dtypes[0]),
            target=Sequences(tokens / "target", dtypes[1]),
            source_text=Sequences(text / "source", _TEXT) if with_text else None,
            target_text=Sequences(text / "target", _TEXT) if with_text else None,
            lines=load_array(lines) if lines.is_file() else None,
        )

    def _refuse_to_write(self) -> None:
        """Stops before work whose result could not be kept."""
        if self._refusal is not None:
            raise _unwritable(self._directory, self._refusal) from self._refusal


def _read_record(record: Path) -> dict[str, Any]:
    """Reads what earlier checks found; a damaged record is as good as none, for the files are checked again."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _known_summary(entry: Any, stamp: list[Any]) -> PairSummary | None:
    """Returns what an earlier check of files with the same stamp found."""
    try:
        return PairSummary(**entry["summary"]) if entry["stamp"] == stamp else None
    except (TypeError, KeyError):
        return None


def _unwritable(path: Path, error: OSError) -> ValueError:
    """Says what could not be written and what to do about it."""
    return ValueError(
        f"cannot write prepared data to {path}: {error.strerror or error}; make room or give permission there, or set "
        "cache_dir to another directory"
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
    """Yields a path beside ``path`` and renames it when all went well; nothing is left otherwise.

    Raises:
        ValueError: If it cannot be written; the message names the path.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException as error:
        _remove(partial)
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise


def _remove(path: Path) -> None:
    """Removes a file or a directory, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
