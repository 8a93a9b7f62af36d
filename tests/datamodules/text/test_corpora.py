import errno
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.text import corpora
from datamodules.text.corpora import (
    WMT14_PARTS,
    ArchivePart,
    check_lines,
    fetch_corpus,
    fetch_multi30k,
    fetch_wmt14,
    write_synthetic,
)


def serve(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> list[str]:
    """Puts files in place of the network; returns the list of addresses that were asked for."""
    asked: list[str] = []

    def download(url: str, path: Path, *, check: Callable[[Path], None]) -> None:
        if path.exists():
            return
        asked.append(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[url])
        check(path)

    monkeypatch.setattr(corpora, "download", download)
    return asked


def archive(members: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, text in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return content.getvalue()


PARTS = {
    "train": (
        ArchivePart("one.tgz", ("training/one.en", "training/one.de"), 3),
        ArchivePart("sub/two.tgz", ("two.en", "two.de"), 1),
    ),
    "newstest": (ArchivePart("test.tgz", ("test/src.en.sgm", "test/ref.de.sgm"), 2),),
}
SGML = '<srcset>\n<doc>\n<seg id="1">{} 1 &  co</seg>\n<p>\n<seg id="2">{} 2 </seg>\n</p></doc></srcset>\n'
SITE = {
    "http://x/one.tgz": archive({"training/one.en": "a\n\nc\u2028d\n", "training/one.de": "A\nB\nC\n", "z": "z"}),
    "http://x/sub/two.tgz": archive({"./two.en": "e\n", "./two.de": "E\n"}),
    "http://x/test.tgz": archive({"test/src.en.sgm": SGML.format("s", "s"), "test/ref.de.sgm": SGML.format("r", "r")}),
}


def test_wmt14_is_put_together_from_its_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch, SITE)
    fetch_wmt14(tmp_path, ["train", "newstest"], ("de", "en"), "http://x", PARTS)
    # The pair with a blank side is left out of training, on both sides.
    assert (tmp_path / "train.en").read_text() == "a\nc\u2028d\ne\n"
    assert (tmp_path / "train.de").read_text() == "A\nC\nE\n"
    assert (tmp_path / "newstest.en").read_text() == "s 1 & co\ns 2\n"
    assert (tmp_path / "newstest.de").read_text() == "r 1 & co\nr 2\n"
    assert len(asked) == 3
    fetch_wmt14(tmp_path, ["train", "newstest"], ("de", "en"), "http://x", PARTS)
    assert len(asked) == 3
    assert not list((tmp_path / "downloads").glob("*.unpacked"))


def test_an_archive_with_other_counts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, SITE)
    wrong = {"train": (ArchivePart("one.tgz", ("training/one.en", "training/one.de"), 4),)}
    with pytest.raises(ValueError, match=r"one\.en.* has 3 lines instead of 4"):
        fetch_wmt14(tmp_path, ["train"], ("en", "de"), "http://x", wrong)
    assert not (tmp_path / "train.en").exists()


def test_an_archive_without_its_member_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, {**SITE, "http://x/test.tgz": archive({"other": ""})})
    with pytest.raises(ValueError, match=r"does not hold test/src\.en\.sgm and test/ref\.de\.sgm"):
        fetch_wmt14(tmp_path, ["newstest"], ("en", "de"), "http://x", PARTS)
    serve(monkeypatch, {"http://x/one.tgz": SITE["http://x/one.tgz"][:80]})
    with pytest.raises(ValueError, match="not a whole tar archive"):
        fetch_wmt14(tmp_path / "other", ["train"], ("en", "de"), "http://x", PARTS)


def test_the_published_line_counts() -> None:
    assert sum(part.lines for part in WMT14_PARTS["train"]) == 4_520_620
    assert [WMT14_PARTS[split][0].lines for split in ("newstest2013", "newstest2014")] == [3000, 3003]


def test_multi30k_fetches_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = {
        f"http://x/{name}.{lang}.gz": gzip.compress(b"a\nb\n") for name in ("train", "val") for lang in ("en", "fr")
    }
    asked = serve(monkeypatch, site)
    monkeypatch.setattr(corpora, "MULTI30K_LINES", {"train": 2, "val": 2})
    (tmp_path / "val.fr").write_text("x\ny\n")
    fetch_multi30k(tmp_path, ["train", "val"], ("en", "fr"), "http://x")
    assert asked == ["http://x/train.en.gz", "http://x/train.fr.gz", "http://x/val.en.gz"]
    monkeypatch.setattr(corpora, "MULTI30K_LINES", {"train": 2, "val": 3})
    (tmp_path / "val.fr").unlink()
    with pytest.raises(ValueError, match=r"val\.fr\.gz has 2 lines instead of 3"):
        fetch_multi30k(tmp_path, ["val"], ("en", "fr"), "http://x")


@pytest.mark.parametrize(
    ("prefixes", "languages", "message"),
    [
        (["valid"], ("en", "de"), r"corpus=multi30k has no split 'valid'; it has train, val, test_2016_flickr"),
        (["train"], ("en", "ru"), r"corpus=multi30k has no language 'ru'; it has cs, de, en, fr"),
    ],
)
def test_unknown_splits_and_languages(
    tmp_path: Path, prefixes: list[str], languages: tuple[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fetch_multi30k(tmp_path, prefixes, languages)


def test_line_counts_are_of_newlines(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_text("a\u2028b\n")
    check_lines(tmp_path / "a.en", 1)
    with pytest.raises(ValueError, match="has 1 lines instead of 2"):
        check_lines(tmp_path / "a.en", 2)


def test_the_built_in_corpus_is_written_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    translation = pytest.importorskip("datamodules.synthetic.translation")
    calls: list[Path] = []

    def write_corpus(directory: Path, **settings: int) -> None:
        calls.append(directory)
        for split in ("train", "valid", "test"):
            for language in ("en", "de"):
                (directory / f"{split}.{language}").write_text(f"{translation.GENERATOR_VERSION} {settings}\n")

    monkeypatch.setattr(translation, "write_corpus", write_corpus)
    new = tmp_path / "new"
    write_synthetic(new, ("de", "en"))
    write_synthetic(new, ("en", "de"))
    assert len(calls) == 1
    assert len(list(new.iterdir())) == 7
    assert json.loads((new / "corpus.json").read_text()) == {
        "generator": translation.GENERATOR_VERSION,
        **{"seed": 0, "train": 20_000, "valid": 1_000, "test": 1_000},
    }
    # What is lost, or of another version or size, is written again.
    (new / "valid.en").unlink()
    write_synthetic(new, ("en", "de"))
    monkeypatch.setattr(translation, "GENERATOR_VERSION", 99)
    write_synthetic(new, ("en", "de"))
    assert (new / "valid.en").read_text() == (new / "train.de").read_text()
    assert (new / "valid.en").read_text().startswith("99 ")
    monkeypatch.setitem(corpora.SYNTHETIC_SETTINGS, "train", 10)
    write_synthetic(new, ("en", "de"))
    assert "'train': 10" in (new / "train.en").read_text()
    assert len(calls) == 4
    # Whole files of the same text without a record are the corpus too; a record of somebody else says nothing.
    (new / "corpus.json").write_text('{"name": "mine"}')
    write_synthetic(new, ("en", "de"))
    assert "generator" in (new / "corpus.json").read_text()
    (new / "corpus.json").unlink()
    (new / "test.de").write_text("mine\n")
    with pytest.raises(ValueError, match=r"new holds files that are not the built-in corpus: test\.de; use corpus=dir"):
        write_synthetic(new, ("en", "de"))
    assert (new / "test.de").read_text() == "mine\n"
    assert not (new / ".unfinished").exists()
    with pytest.raises(ValueError, match="no language 'fr'"):
        write_synthetic(tmp_path / "other", ("en", "fr"))


def test_a_full_disk_names_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(corpora, "write_synthetic", fail)
    with pytest.raises(ValueError, match=r"cannot write the corpus synthetic to .*full: No space left on device"):
        fetch_corpus("synthetic", tmp_path / "full", [], ("en", "de"))
