"""``write_whole``: over nobody's files, and again after any interruption."""

import json
import re
from pathlib import Path

import pytest

from datamodules.synthetic.corpus import write_whole

SETTINGS = {"generator": 1, "train": 2}


def write(directory, settings=SETTINGS):
    def parts(unfinished):
        for part in ("train", "val"):
            (unfinished / part).mkdir()
            (unfinished / part / "it").write_text(str(settings))

    whole = all((directory / part / "it").exists() for part in ("train", "val"))
    write_whole(directory, settings, {"train": 1}, ("train", "val"), lambda: whole, parts)
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("name", ["train2017/1.jpg", "_annotations.coco.json", "corpus.json", "prepared/list"])
def test_a_directory_of_other_files_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"name": "mine"}')
    message = (
        f"{tmp_path} holds {Path(name).parts[0]}, but no corpus.json of the built-in corpus, so nothing is written "
        "there; name another directory, or read the data that is there with corpus=directory "
        "(--data.init_args.corpus=directory)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        write(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [Path(name).name]


def test_long_listings_are_cut(tmp_path):
    for name in "abcdefg":
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"holds a, b, c, d, e, \.\.\., but no corpus"):
        write(tmp_path)


def test_a_directory_with_a_record_may_hold_more(tmp_path):
    assert write(tmp_path / "new") == ["corpus.json", "train", "val"]
    (tmp_path / "new" / "notes.txt").touch()
    assert write(tmp_path / "new", {"generator": 2, "train": 2}) == ["corpus.json", "notes.txt", "train", "val"]
    assert json.loads((tmp_path / "new" / "corpus.json").read_text())["generator"] == 2


@pytest.mark.parametrize("steps", range(4))
def test_a_process_that_was_killed_is_made_good(tmp_path, monkeypatch, steps):
    replace, done = Path.replace, []

    def fail(self, target):
        if len(done) == steps:
            raise OSError("the machine stops here")
        done.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # a process that is killed cleans nothing up
    with pytest.raises(OSError, match="stops here"):
        write(tmp_path)
    monkeypatch.undo()
    assert (tmp_path / ".unfinished").exists()
    assert write(tmp_path) == ["corpus.json", "train", "val"]


def test_half_a_record_is_made_good(tmp_path, monkeypatch):
    write_text = Path.write_text

    def fail_at_the_record(self, text, **settings):
        write_text(self, text[: len(text) // 2] if self.name == "corpus.json" else text, **settings)
        if self.name == "corpus.json":
            raise OSError("the machine stops here")

    monkeypatch.setattr(Path, "write_text", fail_at_the_record)
    with pytest.raises(OSError, match="stops here"):
        write(tmp_path)
    monkeypatch.undo()
    assert write(tmp_path) == ["corpus.json", "train", "val"]
