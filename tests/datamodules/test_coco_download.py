import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from datamodules.coco_download import COCO_2017, Archive, fetch_coco


def zipped(**files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "/"), data)
    return content.getvalue()


@pytest.fixture
def site():
    """A server of two small archives, what it was asked for, and after how many bytes it cuts the next answers."""
    contents = {
        "/zips/train2017.zip": zipped(**{f"train2017__{number}.jpg": bytes([number]) * 3000 for number in range(4)}),
        "/annotations/annotations.zip": zipped(annotations__instances_train2017="{}"),
    }
    asked, cuts = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            start = int(self.headers["Range"][6:-1]) if self.headers["Range"] else 0
            asked.append((self.path, start))
            content = contents[self.path][start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: cuts.pop(0)] if cuts else content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    archives = {
        "train2017": Archive("zips/train2017.zip", len(contents["/zips/train2017.zip"]), "train2017", 4),
        "annotations": Archive(
            "annotations/annotations.zip",
            len(contents["/annotations/annotations.zip"]),
            "annotations",
            "instances_train2017",
        ),
    }
    yield f"http://127.0.0.1:{server.server_address[1]}", archives, contents, asked, cuts
    server.shutdown()
    thread.join()
    server.server_close()


def test_parts_are_fetched_unpacked_and_kept(site, tmp_path):
    url, archives, _, asked, _ = site
    fetch_coco(tmp_path, archives, url, archives)
    assert sorted(path.name for path in (tmp_path / "train2017").iterdir()) == [f"{number}.jpg" for number in range(4)]
    assert (tmp_path / "annotations" / "instances_train2017").read_text() == "{}"
    assert not list((tmp_path / "downloads").iterdir()) and not list(tmp_path.glob(".*"))
    fetch_coco(tmp_path, archives, url, archives)
    assert len(asked) == 2


def test_a_download_that_was_cut_continues(site, tmp_path):
    url, archives, _, asked, cuts = site
    cuts.append(5000)
    fetch_coco(tmp_path, ["train2017"], url, archives)
    assert [start for _, start in asked] == [0, 5000]
    assert (tmp_path / "train2017" / "3.jpg").read_bytes() == bytes([3]) * 3000


def test_what_is_not_the_archive_is_removed(site, tmp_path):
    url, archives, contents, _, _ = site
    contents["/zips/train2017.zip"] = b"<html>Please log in</html>"
    with pytest.raises(ValueError, match=r"train2017\.zip is not the file and was removed: it has 26 bytes instead of"):
        fetch_coco(tmp_path, ["train2017"], url, archives)
    contents["/zips/train2017.zip"] = bytes(archives["train2017"].size)
    with pytest.raises(ValueError, match="it is not a zip archive"):
        fetch_coco(tmp_path, ["train2017"], url, archives)
    assert not (tmp_path / "train2017").exists()


def test_a_directory_appears_whole_or_not_at_all(site, tmp_path):
    url, archives, _, _, _ = site
    archives["train2017"] = Archive(archives["train2017"].path, archives["train2017"].size, "train2017", 5)
    with pytest.raises(ValueError, match=r"train2017\.zip does not hold 5 in train2017/; remove it"):
        fetch_coco(tmp_path, ["train2017"], url, archives)
    assert not (tmp_path / "train2017").exists() and not list(tmp_path.glob(".*"))


def test_a_directory_of_other_files_is_refused(site, tmp_path):
    url, archives, _, asked, _ = site
    (tmp_path / "downloads").mkdir()  # what a first attempt without a network leaves
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "mine.json").write_text("{}")
    message = (
        r"holds annotations, but nothing of COCO 2017 \(train2017, annotations/instances_train2017\), so nothing is "
        r"written there; .* corpus=directory \(--data\.init_args\.corpus=directory\)$"
    )
    with pytest.raises(ValueError, match=message):
        fetch_coco(tmp_path, archives, url, archives)
    assert not asked
    (tmp_path / "downloads" / "part.train2017.zip").write_bytes(b"")  # a download that has begun goes on
    fetch_coco(tmp_path, ["train2017"], url, archives)
    (tmp_path / "downloads").rmdir()
    (tmp_path / "annotations").rename(tmp_path / "mine")
    fetch_coco(tmp_path, ["annotations"], url, archives)  # a part is there, so it is COCO's directory
    assert len(asked) == 2


def test_coco_is_what_its_server_has():
    assert [archive.path for archive in COCO_2017.values()] == [
        "zips/train2017.zip",
        "zips/val2017.zip",
        "annotations/annotations_trainval2017.zip",
    ]
