import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from datamodules.text.download import download

CONTENT = bytes(range(256)) * 400


@dataclass
class Site:
    """What a local server sends, and what it was asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: list[str | None] = field(default_factory=list)
    # Bytes after which the connection is cut, one for each of the next answers.
    cuts: list[int] = field(default_factory=list)
    honours_ranges: bool = True


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site(files={"/file.bin": CONTENT})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.ranges.append(self.headers["Range"])
            if self.path not in site.files:
                self.send_error(404)
                return
            content = site.files[self.path]
            start = int(self.headers["Range"][6:-1]) if self.headers["Range"] and site.honours_ranges else 0
            if start and start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = start + site.cuts.pop(0) if site.cuts else len(content)
            self.wfile.write(content[start:end])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def check(path: Path) -> None:
    if path.read_bytes() != CONTENT:
        raise ValueError("other bytes")


def fetch(site: Site, path: Path, **settings: float) -> None:
    download(f"{site.url}/file.bin", path, check=check, pause=0.01, **settings)


def test_whole_file(site: Site, tmp_path: Path) -> None:
    fetch(site, tmp_path / "deep" / "file.bin")
    assert (tmp_path / "deep" / "file.bin").read_bytes() == CONTENT
    fetch(site, tmp_path / "deep" / "file.bin")
    assert site.ranges == [None]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file.bin"]


def test_a_cut_connection_is_resumed(site: Site, tmp_path: Path) -> None:
    site.cuts = [1000, 500]
    fetch(site, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert site.ranges == [None, "bytes=1000-", "bytes=1500-"]


def test_the_next_run_continues(site: Site, tmp_path: Path) -> None:
    site.cuts = [1000]
    with pytest.raises(FileNotFoundError, match=r"ended after 1,000 of 102,400 bytes; 1,000 bytes are kept"):
        fetch(site, tmp_path / "file.bin", attempts=1)
    assert not (tmp_path / "file.bin").exists()
    fetch(site, tmp_path / "file.bin", attempts=1)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert site.ranges == [None, "bytes=1000-"]


def test_a_run_that_was_killed_before_the_check(site: Site, tmp_path: Path) -> None:
    (tmp_path / "part.file.bin").write_bytes(CONTENT)
    fetch(site, tmp_path / "file.bin", attempts=1)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(site: Site, tmp_path: Path) -> None:
    (tmp_path / "part.file.bin").write_bytes(CONTENT + b"x")
    fetch(site, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(site: Site, tmp_path: Path) -> None:
    site.honours_ranges = False
    site.cuts = [1000]
    fetch(site, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_wrong_content_is_removed(site: Site, tmp_path: Path) -> None:
    site.files["/file.bin"] = b"<html>Please log in</html>"
    with pytest.raises(ValueError, match=r"what came from .*/file\.bin is not the file and was removed: other bytes"):
        fetch(site, tmp_path / "file.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there_is_not_asked_for_again(site: Site, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cannot download .*/none: .*Not Found.*put it at .*file\.bin"):
        download(f"{site.url}/none", tmp_path / "file.bin", check=check, pause=0.01)
    assert len(site.ranges) == 1


def test_an_unreachable_server_fails_soon(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/file.bin"
        with pytest.raises(FileNotFoundError, match=rf"cannot download {url}: .*refused.*put it at .*file\.bin"):
            download(url, tmp_path / "file.bin", check=check, pause=0.01)


def test_a_silent_server_does_not_hang(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file.bin"
        with pytest.raises(FileNotFoundError, match="timed out"):
            download(url, tmp_path / "file.bin", check=check, attempts=2, timeout=0.1, pause=0.01)
