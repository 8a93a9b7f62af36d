"""Sequences of numbers in memory-mapped files: values end to end, and where each sequence starts.

A corpus of millions of sentences is a file of values (token ids, or bytes of text) and a file of offsets. Reading a
batch touches only its own pages, workers share them, and nothing is parsed at start-up.
"""

import os
from array import array
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FLUSH_VALUES = 1 << 22


def smallest_dtype(largest: int) -> np.dtype[Any]:
    """Returns the smallest unsigned type among uint16 and uint32 that holds ``largest``."""
    return np.dtype(np.uint16 if largest < 1 << 16 else np.uint32)


class SequenceWriter:
    """Writes sequences one after the other, holding no more than a few megabytes.

    Use as a context manager: on success ``<path>.bin`` and ``<path>.offsets.npy`` are complete.

    Args:
        path: Path without suffix.
        dtype: Type of the values.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._path = path
        self._dtype = dtype
        self._offsets = array("q", [0])
        self._end = 0
        self._file = _values_file(path).open("wb", buffering=_FLUSH_VALUES)

    def write_ids(self, rows: list[list[int]]) -> None:
        """Appends rows of numbers."""
        count = sum(map(len, rows))
        # Not ndarray.tofile: on a full disk its error lacks the system's number and reason.
        self._file.write(np.fromiter(chain.from_iterable(rows), self._dtype, count).tobytes())
        self._extend(map(len, rows))

    def write_text(self, lines: list[str]) -> None:
        """Appends lines as UTF-8 bytes; the type of the values must be uint8."""
        encoded = [line.encode() for line in lines]
        self._file.write(b"".join(encoded))
        self._extend(map(len, encoded))

    def _extend(self, lengths: Iterable[int]) -> None:
        for length in lengths:
            self._end += length
            self._offsets.append(self._end)

    def __enter__(self) -> "SequenceWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            np.save(_offsets_file(self._path), np.frombuffer(self._offsets, dtype=np.int64))


class Sequences:
    """Reads what ``SequenceWriter`` wrote, by memory map.

    Pickling hands on the path, not the data, so workers map the same pages.

    Args:
        path: Path without suffix.
        dtype: Type of the values.

    Attributes:
        values: All values, of shape ``(values,)``.
        offsets: Where each sequence starts, and the end, of shape ``(sequences + 1,)``, int64.

    Raises:
        ValueError: If a file is damaged; the message names it.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._path = path
        self._dtype = dtype
        # Plain views of the maps: slicing a numpy.memmap costs ten times as much.
        self.offsets: NDArray[np.int64] = np.asarray(load_array(_offsets_file(path)))
        file = _values_file(path)
        expected, found = int(self.offsets[-1]) * dtype.itemsize, os.path.getsize(file)
        if expected != found:
            raise ValueError(f"{file} has {found} bytes instead of {expected}; remove {path.parent} and start again")
        # An empty file cannot be mapped.
        self.values: NDArray[Any] = np.asarray(np.memmap(file, dtype=dtype, mode="r")) if found else np.empty(0, dtype)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> NDArray[np.int32]:
        """Returns the number of values in each sequence, of shape ``(sequences,)``, int32."""
        return np.diff(self.offsets).astype(np.int32)

    def text(self, index: int) -> str:
        """Returns a sequence of UTF-8 bytes as text."""
        return self.values[self.offsets[index] : self.offsets[index + 1]].tobytes().decode()

    def __getstate__(self) -> tuple[Path, np.dtype[Any]]:
        return self._path, self._dtype

    def __setstate__(self, state: tuple[Path, np.dtype[Any]]) -> None:
        Sequences.__init__(self, *state)


def load_array(file: Path) -> NDArray[Any]:
    """Maps an array that ``numpy.save`` wrote into memory.

    Raises:
        ValueError: If the file is damaged; the message names it.
    """
    try:
        return np.load(file, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file} is damaged; remove {file.parent} and start again") from error


def _values_file(path: Path) -> Path:
    return path.with_name(path.name + ".bin")


def _offsets_file(path: Path) -> Path:
    return path.with_name(path.name + ".offsets.npy")
