"""Lines in and lines out: read as they arrive, checked as UTF-8, written whole or not at all."""

import errno
import os
import select
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

_READ_SIZE = 1 << 16
_BYTE_ORDER_MARK = "\ufeff"
# A write that failed for want of space has no file name, and Pillow's error not even a number.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)
STDOUT = "standard output"


def read_chunks(stream: BinaryIO, name: str, chunk_lines: int) -> Iterator[list[str]]:
    """Yield the lines of a stream in chunks, without their line ends.

    A chunk ends when it is full, or when no more lines are there now: a person or a slow program at the other end of a
    pipe gets answers at once, a file gets full chunks. Only LF and CR LF end a line, no other separator of Unicode.

    Args:
        stream: Where the lines come from.
        name: What it is called in errors, such as ``input.txt`` or ``standard input``.
        chunk_lines: Lines of a chunk at most.

    Raises:
        ValueError: A line is not UTF-8; the message says which and where.
    """
    number = 0
    chunk: list[str] = []
    for raw in _lines_as_they_arrive(stream):
        if raw is None:
            if chunk:
                yield chunk
                chunk = []
            continue
        number += 1
        chunk.append(_decode(raw, name, number))
        if len(chunk) == chunk_lines:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _decode(raw: bytes, name: str, number: int) -> str:
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"line {number} of {name} is not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start + 1}; "
            f"convert the text first, for example with: iconv -f latin1 -t utf-8"
        ) from error
    return line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line


def _lines_as_they_arrive(stream: BinaryIO) -> Iterator[bytes | None]:
    """Yield lines, and None wherever the next line would have to be waited for."""
    descriptor = _waitable(stream)
    if descriptor is None:
        yield from (line.removesuffix(b"\n").removesuffix(b"\r") for line in stream)
        return
    pieces: list[bytes] = []  # of a line whose end has not come yet
    while True:
        if not select.select([descriptor], [], [], 0)[0]:
            yield None
        data = os.read(descriptor, _READ_SIZE)
        if not data:
            break
        first, *others = data.split(b"\n")
        pieces.append(first)
        for other in others:
            yield b"".join(pieces).removesuffix(b"\r")
            pieces = [other]
    if any(pieces):
        yield b"".join(pieces).removesuffix(b"\r")


def _waitable(stream: BinaryIO) -> int | None:
    """Return the descriptor of a pipe, a socket or a terminal, where a line may have to be waited for; else None."""
    try:
        descriptor = stream.fileno()
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except (OSError, ValueError, AttributeError):
        return None
    return None if regular or os.name == "nt" else descriptor


@contextmanager
def open_output(path: str | None) -> Iterator[TextIO]:
    """Open a file that appears complete or not at all, or standard output.

    The lines go to a temporary file beside it, which takes its place at the end. An error or Ctrl-C leaves what was
    there before. A device or a named pipe is written directly.

    Args:
        path: The file, None for standard output.

    Raises:
        FileNotFoundError: The directory is not there.
        ValueError: The path is a directory.
        OSError: The file cannot be written; ``filename`` names it.
    """
    if path is None:
        yield _utf8_stdout()
        return
    target = Path(path)
    if target.is_dir():
        raise ValueError(f'--output "{path}" is a directory; name a file in it')
    if not target.parent.is_dir():
        raise FileNotFoundError(f'--output "{path}": there is no directory "{target.parent}"')
    if target.exists() and not target.is_file():
        with naming(str(target)), target.open("w", encoding="utf-8", newline="\n") as special:
            yield special
        return
    with replaced_when_done(target) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replaced_when_done(target: Path) -> Iterator[Path]:
    """Yield a temporary file that takes the target's place at the end; an error leaves what was there before.

    Args:
        target: The file to write, in a directory that exists.

    Raises:
        OSError: The file cannot be written; ``filename`` names the target.
    """
    target = target.resolve()
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        with naming(str(target)):
            yield temporary
        temporary.chmod(_usual_mode(target))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(target: str) -> Iterator[None]:
    """Name what is written in an error of the system that does not, such as that of a full disk.

    Raises:
        OSError: The error, with ``filename``.
    """
    try:
        yield
    except OSError as error:
        # What says itself which file it means is of a narrower type, such as FileNotFoundError.
        if error.filename is not None or error.errno not in _NO_SPACE or type(error) is not OSError:
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), target) from error


def _usual_mode(target: Path) -> int:
    """Return the permissions of the file that is replaced, or those that a new file would have."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _utf8_stdout() -> TextIO:
    """Return standard output, writing UTF-8 whatever the locale says."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    return sys.stdout
