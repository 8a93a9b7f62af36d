import os
import pickle
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from datamodules.image import shards
from datamodules.image.folder import ImageFolder
from datamodules.image.shards import ShardCache, ShardedImages, write_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(25):
        path = tmp_path / "train" / f"n0{index % 3}" / f"img.{index}.{('JPEG', 'png', 'webp')[index % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([index]) * (index + 1))
    return tmp_path / "train"


@pytest.fixture
def written(folder: Path, tmp_path: Path) -> Path:
    assert write_shards(folder, str(tmp_path / "tars" / "train-%06d.tar"), images_per_shard=10) == 3
    return tmp_path / "tars"


@pytest.fixture
def server(written: Path):
    """Serves the shards and counts what is asked for."""
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            requests.append(self.path)

    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(written)))
    threading.Thread(target=partial(http.serve_forever, 0.01), daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", requests
    http.shutdown()
    http.server_close()


def pack(path: Path, **members: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    return str(path)


def contents(source) -> list[tuple[str, bytes]]:
    return sorted((source.class_names[source.labels[index]], source.read(index)) for index in range(len(source)))


def test_shards_hold_the_folder_in_another_order(folder: Path, written: Path, tmp_path: Path):
    source = ShardedImages(f"{written}/train-{{000000..000002}}.tar", tmp_path / "cache")
    assert contents(source) == contents(ImageFolder(folder))
    assert source.bounds.tolist() == [0, 10, 20, 25]
    assert len(set(source.labels[:10].tolist())) == 3  # classes are mixed
    for index in (0, 9, 10, 24):
        path = source.path(index)
        assert path.startswith(f"{written}/train-00000{index // 10}.tar:") and path.endswith(("jpeg", "png", "webp"))
    again = pickle.loads(pickle.dumps(source))  # as a worker that is spawned gets it
    assert contents(again) == contents(source)


def test_webdataset_reads_them_too(written: Path):
    webdataset = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset(f"{written}/train-{{000000..000002}}.tar", shardshuffle=False))
    assert len(samples) == 25 and {sample["cls"] for sample in samples} == {b"0", b"1", b"2"}


def test_a_shard_is_listed_once_and_again_when_it_changes(written: Path, tmp_path: Path, monkeypatch):
    pattern = f"{written}/train-{{000000..000001}}.tar"
    first = contents(ShardedImages(pattern, tmp_path / "cache"))
    with monkeypatch.context() as patched:
        patched.setattr(shards, "_list_images", None)
        assert contents(ShardedImages(pattern, tmp_path / "cache")) == first
    (written / "train-000002.tar").replace(written / "train-000001.tar")
    assert len(ShardedImages(pattern, tmp_path / "cache")) == 15


def test_remote_shards_are_fetched_once_and_read_alike(written: Path, server, tmp_path: Path):
    address, requests = server
    local = ShardedImages(f"{written}/train-{{000000..000002}}.tar", tmp_path / "one")
    remote = ShardedImages(f"{address}/train-{{000000..000002}}.tar", tmp_path / "two")
    assert remote.class_names == ["n00", "n01", "n02"]
    assert contents(remote) == contents(local)
    assert len(requests) == 4  # three shards and classes.txt


def test_the_cache_is_bounded_and_fetches_again(server, tmp_path: Path):
    address, requests = server
    source = ShardedImages(f"{address}/train-{{000000..000002}}.tar", tmp_path / "cache", cache_bytes=100)
    source = pickle.loads(pickle.dumps(source))  # no files are open
    kept = [path for path in (tmp_path / "cache" / "shards").iterdir() if path.name.endswith(".tar")]
    assert len(kept) <= 1
    before = len(requests)
    assert len(contents(source)) == 25
    assert len(requests) > before


def test_what_was_used_longest_ago_makes_room(written: Path, server, tmp_path: Path):
    address, _ = server
    sizes = [(written / f"train-00000{number}.tar").stat().st_size for number in range(3)]
    cache = ShardCache(tmp_path / "cache", sum(sizes) - 1)
    first = cache.fetch(f"{address}/train-000000.tar")
    second = cache.fetch(f"{address}/train-000001.tar")
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    assert cache.fetch(f"{address}/train-000000.tar") == first  # used again
    cache.fetch(f"{address}/train-000002.tar")
    assert first.exists() and not second.exists()


def test_without_names_classes_are_numbers(tmp_path: Path):
    path = pack(tmp_path / "a.tar", **{"x/1.jpg": b"A", "x/1.cls": b"1", "2.JPG": b"B", "2.cls": b"0\n", "3.json": b""})
    source = ShardedImages(path, tmp_path / "cache")
    assert source.class_names == ["0", "1"]
    assert source.path(0) == f"{path}:x/1.jpg" and source.read(0) == b"A" and source.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.jpg": b"A"}, r"1 keys such as 1 have no label \(.cls\)"),
        ({"1.cls": b"1"}, "1 keys such as 1 have no image"),
        ({"1.jpg": b"A", "1.cls": b"cat"}, "a.tar:1.cls must hold a class number, but holds b'cat'"),
        ({"readme.txt": b"A"}, "a.tar holds no images"),
    ],
)
def test_shards_that_are_none(tmp_path: Path, members, message):
    with pytest.raises(ValueError, match=message):
        ShardedImages(pack(tmp_path / "a.tar", **members), tmp_path / "cache")


def test_broken_and_missing_shards(written: Path, tmp_path: Path):
    path = written / "train-000000.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    for length in (4700, last.offset_data + 1, last.offset_data):  # in a header, and in a member
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"train-000000.tar is not a whole tar file"):
            ShardedImages(str(path), tmp_path / "cache")
    path.write_bytes(b"no archive at all")
    with pytest.raises(ValueError, match="is not a whole tar file"):
        ShardedImages(str(path), tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="train-000003.tar is not there"):
        ShardedImages(f"{written}/train-{{000001..000003}}.tar", tmp_path / "cache")
    (written / "classes.txt").write_text("one\n")
    with pytest.raises(ValueError, match=r"is of class [12], but .*classes.txt names 1 classes"):
        ShardedImages(f"{written}/train-000001.tar", tmp_path / "cache")


def test_random_access_is_by_offset(written: Path, tmp_path: Path):
    source = ShardedImages(f"{written}/train-{{000000..000002}}.tar", tmp_path / "cache")
    expected = [source.read(index) for index in range(25)]
    for index in np.random.default_rng(0).permutation(25):
        assert source.read(index) == expected[index]
