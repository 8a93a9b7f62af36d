"""Images cut into patches, each projected to a token."""

from torch import Tensor, nn
from torch.nn import functional

Size = int | tuple[int, int]


def pair(size: Size) -> tuple[int, int]:
    """Return (height, width) of a size given as one number or as two."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


class PatchEmbedding(nn.Conv2d):
    """Non-overlapping patches, each through one linear layer (Dosovitskiy et al. 2021, section 3.1).

    The weight has a convolution's shape, (dim, 3, height, width), and PyTorch's default initialisation of one, as in
    every public ViT.

    Args:
        image_size: (height, width) of the images, or one number for both.
        patch_size: Likewise of a patch.
        dim: Width of a token.

    Attributes:
        image_size: (height, width) that :meth:`forward` takes.

    Raises:
        ValueError: If the patches do not tile the image.
    """

    def __init__(self, image_size: Size, patch_size: Size, dim: int) -> None:
        _check_tiling(pair(image_size), pair(patch_size))
        super().__init__(3, dim, kernel_size=pair(patch_size), stride=pair(patch_size))
        self.set_image_size(image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.kernel_size[0], self.image_size[1] // self.kernel_size[1]

    def set_image_size(self, image_size: Size) -> None:
        """Take images of another size from now on.

        Raises:
            ValueError: If the patches do not tile the image.
        """
        _check_tiling(pair(image_size), self.kernel_size)
        self.image_size = pair(image_size)

    def forward(self, images: Tensor) -> Tensor:
        """Return the tokens of (batch, 3, height, width), row by row: (batch, patches, dim).

        Raises:
            ValueError: If the images are not RGB or not of the size that the network was built for.
        """
        if images.dim() != 4 or images.shape[1] != 3 or tuple(images.shape[2:]) != self.image_size:
            raise ValueError(
                f"the network takes images (batch, 3, {self.image_size[0]}, {self.image_size[1]}), "
                f"got {tuple(images.shape)}: resize the images, build it with another image_size, or call "
                "set_input_size"
            )
        (rows, columns), (height, width) = self.grid, self.kernel_size
        patches = images.unflatten(2, (rows, height)).unflatten(4, (columns, width)).permute(0, 2, 4, 1, 3, 5)
        # One matrix product, which is faster than the convolution and gives the tokens row by row at once.
        return functional.linear(patches.flatten(3).flatten(1, 2), self.weight.flatten(1), self.bias)


def _check_tiling(image: tuple[int, ...], patch: tuple[int, ...]) -> None:
    if min(*image, *patch) < 1 or image[0] % patch[0] or image[1] % patch[1]:
        sizes = f"image_size {image[0]}x{image[1]} must be a multiple of patch_size {patch[0]}x{patch[1]}"
        raise ValueError(f"{sizes} in height and in width")
