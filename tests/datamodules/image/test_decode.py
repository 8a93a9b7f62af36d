from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.image import decode as decoding
from datamodules.image.decode import EncodedImage, ImageError, decode, reduction_for


def gradient(width=40, height=24):
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns * 255 // width, rows * 255 // height, np.full_like(rows, 90)], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def encode(image, kind="PNG", **settings):
    buffer = BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def difference(first, second):
    return np.abs(np.array(first).astype(int) - np.array(second).astype(int)).max()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_lossless_formats(kind):
    settings = {"lossless": True} if kind == "WEBP" else {}
    image = decode(encode(gradient(), kind, **settings), "a")
    assert image.mode == "RGB" and difference(image, gradient()) == 0


def test_a_path_and_its_content_are_the_same(tmp_path: Path):
    path = tmp_path / "a.jpg"
    gradient().save(path)
    assert difference(decode(path, "a"), decode(path.read_bytes(), "a")) == 0
    assert difference(decode(path, "a"), Image.open(path)) == 0


@pytest.mark.parametrize("mode", ["L", "1"])
def test_greyscale(mode):
    grey = gradient().convert(mode)
    image = decode(encode(grey), "a")
    assert image.mode == "RGB"
    assert difference(image, grey.convert("L").convert("RGB")) == 0


def test_sixteen_bits_are_not_clipped():
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    image = decode(encode(Image.fromarray(values)), "a")
    assert difference(np.array(image)[..., 0], values >> 8) == 0


def test_cmyk_as_adobe_inverts_it():
    data = encode(gradient().convert("CMYK"), "JPEG", quality=98, subsampling=0)
    assert Image.open(BytesIO(data)).mode == "CMYK"
    assert difference(decode(data, "a"), gradient()) < 12


def test_a_palette():
    image = gradient().quantize(64)
    assert difference(decode(encode(image), "a"), image.convert("RGB")) == 0


def test_what_is_transparent_is_white():
    image = gradient().convert("RGBA")
    image.putpixel((3, 2), (10, 20, 30, 0))
    decoded = decode(encode(image), "a")
    assert decoded.getpixel((3, 2)) == (255, 255, 255)
    assert decoded.getpixel((4, 2)) == gradient().getpixel((4, 2))
    palette = Image.new("P", (2, 1))
    palette.putpalette([1, 2, 3, 4, 5, 6])
    palette.putpixel((1, 0), 1)
    decoded = decode(encode(palette, transparency=0), "a")
    assert decoded.getpixel((0, 0)) == (255, 255, 255) and decoded.getpixel((1, 0)) == (4, 5, 6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    upright = gradient()
    stored_as = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],  # shown after a quarter turn clockwise
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for step in stored_as[orientation]:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encode(stored, "PNG", exif=exif), "a")
    assert image.size == upright.size and difference(image, upright) == 0


def test_broken_exif_is_ignored():
    data = encode(gradient(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\x01")
    assert decode(data, "a").size == (40, 24)


def test_draft_keeps_as_many_pixels_as_are_wanted():
    data = encode(gradient(512, 384), "JPEG", quality=95)
    assert decode(data, "a", min_size=192).size == (256, 192)
    assert decode(data, "a", min_size=193).size == (512, 384)
    assert decode(data, "a").size == (512, 384)
    # It is a smaller picture of the same thing.
    small = gradient(512, 384).resize((256, 192), Image.Resampling.BOX)
    assert difference(decode(data, "a", min_size=192), small) < 12
    assert [reduction_for(size, 100) for size in (50, 199, 200, 400, 799, 800, 5000)] == [1, 1, 2, 4, 4, 8, 8]


@pytest.mark.parametrize("with_torchvision", [True, False])
@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("RGB", {"subsampling": 0}),
        ("RGB", {"subsampling": 2}),
        ("RGB", {"progressive": True}),
        ("RGB", {"keep_rgb": True}),
        ("L", {}),
        ("CMYK", {}),
        ("RGB", {"orientation": 6}),
    ],
)
def test_pixels_are_those_of_the_image(mode, settings, with_torchvision, monkeypatch):
    if not with_torchvision:
        monkeypatch.setattr(decoding, "_jpeg_decoder", lambda: None)
    settings = dict(settings)
    exif = Image.Exif()
    exif[0x0112] = settings.pop("orientation", 1)
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 130, 3), np.uint8)).convert(mode)
    data = encode(noisy, "JPEG", exif=exif, **settings)
    for reduction in (1, 2):
        expected = np.array(EncodedImage(data, "a").image(reduction))
        assert np.array_equal(EncodedImage(data, "a").pixels(reduction).numpy(), expected)


def test_pixels_of_a_truncated_file():
    data = encode(gradient(300, 300), "JPEG")
    with pytest.raises(ImageError, match=r"^n01/cut.jpg cannot be decoded: .*truncated"):
        EncodedImage(data[: len(data) // 2], "n01/cut.jpg").pixels()


def test_bad_files_are_named():
    data = encode(gradient(300, 300), "JPEG")
    with pytest.raises(ImageError, match=r"^n01/cut.jpg cannot be decoded: .*truncated"):
        decode(data[: len(data) // 2], "n01/cut.jpg")
    with pytest.raises(ImageError, match=r"^n01/list.jpg is not an image that Pillow can read"):
        decode(b"not an image", "n01/list.jpg")
    with pytest.raises(ImageError, match=r"^n01/none.jpg is empty"):
        decode(b"", "n01/none.jpg")
    png = encode(gradient())
    with pytest.raises(ImageError, match=r"^n01/cut.png cannot be decoded"):
        decode(png[: len(png) // 2], "n01/cut.png")
    with pytest.raises(ImageError, match="floating-point"):
        decode(encode(Image.new("F", (4, 4)), "TIFF"), "a.tif")
