import os
from pathlib import Path

import numpy as np
import pytest

from datamodules.image.folder import ImageFolder


def write(directory: Path, *names: str) -> Path:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return directory


def test_images_in_the_order_of_their_names(tmp_path: Path):
    source = ImageFolder(write(tmp_path, "b/2.JPEG", "b/10.png", "a/z.webp", "a/ä.jpg", "b/.hidden.jpg", ".git/x.jpg"))
    assert source.class_names == ["a", "b"]
    assert [source.path(index) for index in range(len(source))] == [
        f"{tmp_path}/{name}" for name in ("a/z.webp", "a/ä.jpg", "b/10.png", "b/2.JPEG")
    ]
    assert source.labels.tolist() == [0, 0, 1, 1] and source.labels.dtype == np.int64
    assert source.read(3) == b"b/2.JPEG"
    assert source.left_out == []


def test_tiny_imagenets_nesting_and_its_lists(tmp_path: Path):
    source = ImageFolder(write(tmp_path, "n01/images/n01_0.JPEG", "n01/n01_boxes.txt", "n02/images/n02_0.JPEG"))
    assert source.path(1) == f"{tmp_path}/n02/images/n02_0.JPEG"
    assert len(source) == 2 and source.left_out == [f"{tmp_path}/n01/n01_boxes.txt"]


def test_a_missing_directory_says_where_imagenet_comes_from(tmp_path: Path):
    with pytest.raises(FileNotFoundError) as error:
        ImageFolder(tmp_path / "train")
    for part in (f"{tmp_path}/train is not there", "image-net.org", "train/<wnid>/*.JPEG", "val/<wnid>/*.JPEG", "sort"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "holds no class folders"),
        (("notes.txt",), "holds no class folders"),
        (("1.jpg", "2.jpg"), "holds 2 images outside of class folders, such as 1.jpg"),
        (("a/1.jpg", "stray.png"), "holds 1 images outside of class folders, such as stray.png"),
        (("a/1.jpg", "b/list.txt", "c/.2.jpg"), "has 2 class folders without images: b, c; images end in .jpg"),
    ],
)
def test_folders_that_are_laid_out_otherwise(tmp_path: Path, names, message):
    with pytest.raises(ValueError, match=message) as error:
        ImageFolder(write(tmp_path, *names))
    assert str(tmp_path) in str(error.value)


def test_a_list_is_kept_until_a_directory_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data, cache = write(tmp_path / "train", "a/sub/1.jpg", "b/2.jpg", "b/x.txt"), tmp_path / "cache"

    def listed(slow):
        source = ImageFolder(data, cache, slow=slow)
        return [source.path(index) for index in range(len(source))], source.class_names, source.left_out

    first = listed(slow=3600)
    assert not cache.exists()  # a quick scan is not kept
    assert listed(slow=-1) == first
    with monkeypatch.context() as patched:
        patched.setattr(ImageFolder, "_scan", None)
        assert listed(slow=-1) == first
    write(data, "a/sub/3.jpg")
    os.utime(data / "a/sub", ns=(0, 123))
    assert f"{data}/a/sub/3.jpg" in listed(slow=-1)[0]
    assert len(ImageFolder(data, cache)) == 3


def test_a_list_that_cannot_be_kept_is_no_error(tmp_path: Path):
    data = write(tmp_path / "train", "a/1.jpg")
    (tmp_path / "file").write_text("")
    assert len(ImageFolder(data, tmp_path / "file" / "cache", slow=-1)) == 1
