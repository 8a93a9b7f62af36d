"""Downloads that resume, are checked, and fail with a message that says what to do."""

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info

_BLOCK = 1 << 20
_REPORT_EVERY = 100 << 20


def download(
    url: str,
    path: Path,
    *,
    check: Callable[[Path], None],
    attempts: int = 4,
    timeout: float = 30.0,
    pause: float = 1.0,
) -> None:
    """Downloads a file, unless it is there.

    What has arrived is kept beside it as ``part.<name>``; the next attempt, or the next run, asks the server for the
    rest. The file gets its name only when it is whole and has passed the check.

    Args:
        url: Address of the file.
        path: Where it belongs; directories are created.
        check: Raises ``ValueError`` if a file is not what it must be.
        attempts: How often to try before giving up.
        timeout: Seconds without an answer after which an attempt has failed.
        pause: Seconds before the second attempt; each further pause is twice as long.

    Raises:
        FileNotFoundError: If the server cannot be reached or does not have the file; the message says where to put it.
        ValueError: If the file that arrived is not what it must be.
    """
    if path.exists():
        return
    # In front of the name, so that the check sees its suffix.
    part = path.with_name(f"part.{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(attempts):
        try:
            _continue(url, part, timeout)
            break
        except (OSError, http.client.HTTPException) as error:
            final = isinstance(error, urllib.error.HTTPError) and error.code in (401, 403, 404, 410)
            if final or attempt == attempts - 1:
                raise FileNotFoundError(_failed(url, path, part, error)) from error
            rank_zero_info(f"{url}: {error}; trying again")
            time.sleep(pause * 2**attempt)
    try:
        check(part)
    except ValueError as error:
        part.unlink()
        raise ValueError(f"what came from {url} is not the file and was removed: {error}") from error
    part.replace(path)


def _continue(url: str, part: Path, timeout: float) -> None:
    """Asks for what is missing of a file and appends it.

    Raises:
        OSError: If the connection fails or ends early.
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
            if total == str(have):
                return
            part.unlink()
            raise ConnectionError(f"{have:,} bytes were there but the file has {total}; starting again") from error
        raise
    with response:
        if have and response.status != 206:
            # The server sends the whole file again.
            have = 0
        length = response.headers.get("Content-Length")
        expected = have + int(length) if length is not None else None
        with part.open("ab" if have else "wb") as file:
            _copy(response, file, url, expected)
        found = part.stat().st_size
        if expected is not None and found != expected:
            raise ConnectionError(f"the connection ended after {found:,} of {expected:,} bytes")


def _copy(response: Any, file: Any, url: str, expected: int | None) -> None:
    """Copies a response to a file and reports on large ones."""
    reported = file.tell()
    while block := response.read(_BLOCK):
        file.write(block)
        if file.tell() - reported >= _REPORT_EVERY:
            reported = file.tell()
            share = f" of {expected / 1e6:,.0f}" if expected else ""
            rank_zero_info(f"{url}: {reported / 1e6:,.0f}{share} MB")


def _failed(url: str, path: Path, part: Path, error: Exception) -> str:
    """Says what could not be fetched and what to do about it."""
    reason = error.reason if isinstance(error, urllib.error.URLError) and error.reason else error
    kept = f"; {part.stat().st_size:,} bytes are kept and the next run continues there" if part.exists() else ""
    return f"cannot download {url}: {reason}{kept}. Without a connection, fetch it elsewhere and put it at {path}"
