"""From an image file to upright RGB pixels."""

import contextlib
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
"""Of the files that are taken for images, in lower case."""
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What puts an image upright, by its EXIF orientation."""
_RGB = 3  # torchvision.io.ImageReadMode


class ImageError(ValueError):
    """A file that is not an image, or a broken one; the message names it."""

    def __init__(self, message: str) -> None:  # one argument, so that a worker's error can be raised again
        super().__init__(message)


class EncodedImage:
    """An image file whose header has been read; its pixels are decoded on demand.

    Greyscale, CMYK (as Adobe stores it), palette and 16-bit images become 8-bit RGB; what is transparent is laid on
    white. An EXIF orientation is applied, unlike in torchvision and timm: width and height are of the upright image.

    Args:
        data: The file's content, or its path.
        name: What messages call it.

    Raises:
        ImageError: If it is not an image.

    Attributes:
        name: What messages call it.
        width: Pixels of a row.
        height: Number of rows.
    """

    def __init__(self, data: bytes | Path, name: str) -> None:
        self.name = name
        self._data = data if isinstance(data, bytes) else data.read_bytes()
        try:
            self._image: Image.Image = Image.open(BytesIO(self._data))
        except Exception as error:  # Pillow's readers raise whatever a broken header makes them stumble over
            raise self._error(error) from error
        self._orientation = _orientation(self._image)
        self.width, self.height = self._image.size[:: -1 if self._orientation >= 5 else 1]

    def image(self, reduction: int = 1) -> Image.Image:
        """Decode the image to RGB.

        Args:
            reduction: 1, 2, 4 or 8: decode a JPEG at this fraction of its size, which is faster. Other formats ignore
                it. Sides are rounded up.

        Raises:
            ImageError: If the image is truncated or broken.
        """
        try:
            if reduction > 1 and self._image.format == "JPEG":
                self._image.draft(None, (self._image.width // reduction, self._image.height // reduction))
            upright = self._image
            if self._orientation in _UPRIGHT:
                upright = upright.transpose(_UPRIGHT[self._orientation])
            return _to_rgb(upright)
        except Exception as error:  # as above
            raise self._error(error) from error

    def pixels(self, reduction: int = 1) -> Tensor:
        """Decode to the pixels of :meth:`image`, of shape (height, width, 3) and uint8, which is faster.

        Args:
            reduction: As there.

        Raises:
            ImageError: As there.
        """
        plain = self._image.format == "JPEG" and self._image.mode == "RGB" and self._orientation not in _UPRIGHT
        if plain and reduction == 1 and (decode_jpeg := _jpeg_decoder()) is not None:
            # The same library and the same bytes as Pillow's, but none that is copied.
            with contextlib.suppress(RuntimeError):  # Pillow, below, is more patient, or says what is wrong
                return decode_jpeg(torch.frombuffer(bytearray(self._data), dtype=torch.uint8), _RGB).permute(1, 2, 0)
        return torch.from_numpy(np.array(self.image(reduction)))

    def _error(self, error: Exception) -> ImageError:
        if not self._data:
            return ImageError(f"{self.name} is empty")
        if isinstance(error, Image.UnidentifiedImageError):
            return ImageError(f"{self.name} is not an image that Pillow can read")
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return ImageError(f"{self.name} cannot be decoded: {reason}")


@cache
def _jpeg_decoder() -> Callable[[Tensor, int], Tensor] | None:
    """Return torchvision's operator, or None if it is built without, as it may be in future."""
    import torchvision.io  # noqa: F401 - registers it

    return getattr(torch.ops.image, "decode_jpeg", None)


def decode(data: bytes | Path, name: str, *, min_size: int | None = None) -> Image.Image:
    """Decode an image file to an upright RGB image.

    Args:
        data: The file's content, or its path.
        name: What messages call it.
        min_size: A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its shorter side keeps this many
            pixels; by default it is decoded at full size.

    Raises:
        ImageError: If it is not an image, or a broken one.
    """
    encoded = EncodedImage(data, name)
    reduction = 1 if min_size is None else reduction_for(min(encoded.width, encoded.height), min_size)
    return encoded.image(reduction)


def reduction_for(size: int, wanted: int) -> int:
    """Return the largest of 1, 2, 4, 8 by which ``size`` pixels can be divided and be no fewer than ``wanted``."""
    return max(reduction for reduction in (1, 2, 4, 8) if reduction == 1 or size >= wanted * reduction)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken metadata of any kind says nothing about the orientation, and the pixels may be whole
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I"):  # 16 bits: the high byte, where Pillow would clip at 255
        return Image.fromarray((np.array(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; 8 or 16 bits are needed")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
