"""Swin Transformer V1 and V2: attention within windows that every second layer shifts, over ever coarser maps.

Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
https://arxiv.org/abs/2103.14030; Liu et al. 2022, "Swin Transformer V2: Scaling Up Capacity and Resolution",
https://arxiv.org/abs/2111.09883. Maps are (batch, rows, columns, dim) throughout; padding, shift and partition are
index arithmetic within the attention.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels import dropout as drop
from lit_models.checks import check_at_least
from lit_models.classification.blocks import TransformerClassifier, TransformerLayer, plain_settings
from lit_models.classification.network import HeadLogits
from lit_models.layers import (
    CosineWindowAttention,
    LayerNorm,
    Padding,
    ResidualLayerNorm,
    WindowAttention,
    drop_path_rates,
)

Window = int | tuple[int, int]

_TINY: dict[str, Any] = {"dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}
_SMALL: dict[str, Any] = {**_TINY, "depths": (2, 2, 18, 2)}
_BASE: dict[str, Any] = {"dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
_LARGE: dict[str, Any] = {"dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)}
_V2: dict[str, Any] = {"version": 2, "window_size": 8}
# Of Lee et al. 2021, https://arxiv.org/abs/2112.13492: for images of 32 and 64 pixels.
_SMALL_IMAGES: dict[str, Any] = {"depths": (2, 6, 4), "num_heads": (3, 6, 12), "window_size": 4, "mlp_ratio": 2.0}

SIZES: dict[str, dict[str, Any]] = {
    "swin_tiny": _TINY,
    "swin_small": _SMALL,
    "swin_base": _BASE,
    "swin_large": _LARGE,
    "swinv2_tiny": {**_TINY, **_V2},
    "swinv2_small": {**_SMALL, **_V2},
    "swinv2_base": {**_BASE, **_V2},
    "swinv2_large": {**_LARGE, **_V2},
    "swin_32": {**_SMALL_IMAGES, "patch_size": 2},
    "swin_64": {**_SMALL_IMAGES, "patch_size": 4},
}


class AnySizePatchEmbedding(nn.Conv2d):
    """Patches of images of any size, each through one linear layer.

    The weight has a convolution's shape, (dim, 3, size, size), and PyTorch's default initialisation of one.

    Args:
        patch_size: Height and width of a patch.
        dim: Width of a token.
        padded: Zero-pad images to whole patches at the bottom and at the right; False leaves out the pixels there that
            fill no patch, as a convolution does.
    """

    def __init__(self, patch_size: int, dim: int, *, padded: bool) -> None:
        check_at_least("patch_size", patch_size, 1)
        super().__init__(3, dim, kernel_size=patch_size, stride=patch_size)
        self.padded = padded

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, 3, height, width) to (batch, rows, columns, dim)."""
        if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise ValueError(f"the network takes images (batch, 3, height, width), got {tuple(images.shape)}")
        size, (height, width) = self.kernel_size[0], images.shape[2:]
        if self.padded:
            images = pad_to_multiple(images, size, 2)
        elif min(height, width) < size:
            raise ValueError(f"the network has patches of {size} x {size} pixels, got images of {height} x {width}")
        else:
            images = images[:, :, : height - height % size, : width - width % size]
        patches = images.unflatten(2, (-1, size)).unflatten(4, (-1, size)).permute(0, 2, 4, 1, 3, 5)
        return functional.linear(patches.flatten(3), self.weight.flatten(1), self.bias)


class PatchMerging(nn.Module):
    """Each 2 x 2 patches become one of another width (Liu et al. 2021, section 3.1).

    The four are laid side by side in the order of the public weights: down the left column, then down the right one.

    Args:
        dim: Width of the input.
        out_dim: Width of the output.
        norm_eps: Added to the variance in the norm.
        norm_first: Norm the four patches before the reduction, as V1 does, or the reduced one, as V2 does.
    """

    def __init__(self, dim: int, out_dim: int, norm_eps: float, *, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.norm = LayerNorm(4 * dim if norm_first else out_dim, norm_eps)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Map (batch, rows, columns, dim) to (batch, half the rows, half the columns, out_dim), rounded up."""
        quads = pad_to_multiple(input, 2, 1).unflatten(1, (-1, 2)).unflatten(3, (-1, 2))
        quads = quads.permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(quads)) if self.norm_first else self.norm(self.reduction(quads))


class PostNormLayer(TransformerLayer):
    """A layer of V2: each branch is normed before it is added to the stream (Liu et al. 2022, section 3.2)."""

    def forward(  # type: ignore[override]
        self, branch: None, residual: Tensor, queries: None = None
    ) -> tuple[None, Tensor]:
        """Advance the residual stream, (batch, rows, columns, dim), by one layer; no branch is left to be added."""
        residual = residual + self.normed(self.attention(residual), self.attention_norm)
        return None, residual + self.normed(self.feed_forward(residual), self.feed_forward_norm)

    def normed(self, branch: Tensor, norm: ResidualLayerNorm) -> Tensor:
        """Return what a branch adds to the stream."""
        return self.scale(norm(None, drop(branch, norm.dropout if self.training else 0.0))[0], None)


class SwinStage(nn.Module):
    """The layers of one resolution, after the merging that leads to it."""

    def __init__(self, merging: PatchMerging | None, layers: Sequence[TransformerLayer]) -> None:
        super().__init__()
        self.merging = merging
        self.layers = nn.ModuleList(layers)


class SwinTransformer(TransformerClassifier):
    """Swin Transformer of either version, for images of any size.

    Each stage halves the resolution of the one before it and doubles its width. Nothing but parameters is in the state
    dict, so that neither the size of images nor that of windows is baked in but for the table of V1.

    Args:
        num_classes: Classes of the head; 0 for none.
        version: 1 or 2. V2 norms a branch where it is added, attends by cosines and makes its bias of a small network.
        dim: Width of the first stage.
        depths: Number of layers of each stage; every second one shifts its windows.
        num_heads: Attention heads of each stage, which divide its width.
        window_size: Side of a window in patches, or for each stage one side or (rows, columns).
        patch_size: Height and width of a patch.
        mlp_ratio: Width of the feed-forward networks as a multiple of the stage's.
        qkv_bias: Add a bias to queries, keys (V1 alone) and values.
        drop_path: Stochastic depth: the probability of dropping a sample's residual branch in the last layer; it grows
            from 0 in the first.
        dropout: On the embedded patches, on every branch and inside the feed-forward networks.
        attention_dropout: On the attention weights.
        norm_eps: Added to the variance in layer norms.
        padding: Whose treatment of maps that the windows do not divide, or do not fit into: ``"torchvision"``,
            ``"timm"``, ``"microsoft"`` (also Hugging Face's V1) or ``"fixed"`` (Hugging Face's V2), see ``fit_window``
            in :mod:`lit_models.layers.window_attention`. Of images that patches do not divide torchvision leaves out
            the rest; the others' are zero-padded, as Hugging Face does where timm and Microsoft take no such images.
        pretrained_window_size: Of V2, the windows that the position networks were trained with, as ``window_size``;
            None if they are those of ``window_size``.
        unshifted_stages: With ``padding="fixed"``, how many of the last stages never shift: those whose map was one
            window at the image size that the network was made for; None for none of them.

    Attributes:
        feature_channels: Channels of each stage's map.
        feature_strides: Pixels of the image, down and across, for each position of each stage's map.

    Raises:
        ValueError: If the arguments do not fit together; the message names them.
    """

    sizes: ClassVar[dict[str, dict[str, Any]]] = SIZES

    def __init__(
        self,
        num_classes: int,
        *,
        version: Literal[1, 2] = 1,
        dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int | Sequence[Window] = 7,
        patch_size: int = 4,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        norm_eps: float = 1e-5,
        padding: Padding = "torchvision",
        pretrained_window_size: int | Sequence[Window] | None = None,
        unshifted_stages: int | None = None,
    ) -> None:
        super().__init__(num_classes, plain_settings(locals()))
        _check_stages(version, depths, num_heads, pretrained_window_size)
        if unshifted_stages is not None and (padding != "fixed" or not 0 <= unshifted_stages <= len(depths)):
            raise ValueError(
                f'unshifted_stages must be from 0 to {len(depths)}, and padding "fixed"; got {unshifted_stages} and '
                f'padding "{padding}"'
            )
        shifting = len(depths) - (unshifted_stages or 0)
        windows = _windows("window_size", window_size, len(depths))
        pretrained = _windows("pretrained_window_size", pretrained_window_size, len(depths))
        self.feature_channels = tuple(dim * 2**stage for stage in range(len(depths)))
        self.feature_strides = tuple(patch_size * 2**stage for stage in range(len(depths)))
        self.num_features = self.feature_channels[-1]
        self.patch_embedding = AnySizePatchEmbedding(patch_size, dim, padded=padding != "torchvision")
        self.patch_norm = LayerNorm(dim, norm_eps)
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        stages = []
        for stage, (width, heads, window) in enumerate(zip(self.feature_channels, num_heads, windows, strict=True)):
            attention = partial(
                WindowAttention if version == 1 else CosineWindowAttention,
                width,
                heads,
                window,
                padding=padding,
                qkv_bias=qkv_bias,
                dropout=attention_dropout,
                **({} if version == 1 else {"pretrained_window_size": pretrained[stage]}),
            )
            layers = [
                (TransformerLayer if version == 1 else PostNormLayer)(
                    attention(shifted=layer % 2 == 1 and stage < shifting),
                    width,
                    int(width * mlp_ratio),
                    layer_scale=None,
                    drop_path=next(rates),
                    dropout=dropout,
                    norm_eps=norm_eps,
                )
                for layer in range(depths[stage])
            ]
            merging = PatchMerging(width // 2, width, norm_eps, norm_first=version == 1) if stage else None
            stages.append(SwinStage(merging, layers))
        self.stages = nn.ModuleList(stages)
        self.norm = ResidualLayerNorm(self.num_features, norm_eps, order="pre", dropout=dropout)
        self.initialize()
        self.reset_classifier(num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the positions of the last stage's map, row by row and normed: (batch, rows · columns, channels)."""
        branch, residual = None, self.embed(images)
        for stage in self.stages:
            branch, residual = self._run_stage(stage, branch, residual)
        return self.norm(branch, residual)[0].flatten(1, 2)

    def forward_head(self, features: Tensor) -> HeadLogits:
        """Average (batch, positions, channels) over positions and return the logits of the one head."""
        return HeadLogits(self.head(features.mean(1)), None)

    def embed(self, images: Tensor) -> Tensor:
        """Return the normed patches of images (batch, 3, height, width): (batch, rows, columns, dim)."""
        return self.drop(self.patch_norm(self.patch_embedding(images)))

    def reset_classifier(self, num_classes: int) -> None:
        """Make a new head; 0 classes leave the pooled features."""
        check_at_least("num_classes", num_classes, 0)
        self.num_classes = num_classes
        self.head = self.new_head(num_classes)

    def forward_intermediates(self, images: Tensor, layers: Sequence[int] | None = None) -> list[Tensor]:
        """Return the maps after some stages, before any norm: (batch, channels, rows, columns) each.

        Channels and strides are in ``feature_channels`` and ``feature_strides``.

        Args:
            images: (batch, 3, height, width).
            layers: Stages counted from 0, negative from the end; all by default.

        Raises:
            ValueError: If there is no such stage.
        """
        count = len(self.stages)
        chosen = range(count) if layers is None else layers
        if unknown := [stage for stage in chosen if not -count <= stage < count]:
            raise ValueError(f"layers {unknown} do not exist: the network has {count} stages, from 0 to {count - 1}")
        numbers = [stage % count for stage in chosen]
        branch: Tensor | None = None
        residual, maps = self.embed(images), {}
        for number in range(max(numbers, default=-1) + 1):
            branch, residual = self._run_stage(self.stages[number], branch, residual)
            if number in numbers:
                branch, residual = None, self.add(branch, residual)
                maps[number] = residual.permute(0, 3, 1, 2)
        return [maps[number] for number in numbers]

    def attention_maps(self, images: Tensor) -> list[Tensor]:
        """Refuse: the weights are those of each window, and no picture of a whole map."""
        raise ValueError(
            f"{type(self).__name__} has no attention maps: a position sees its window alone, and window_size is "
            f"{self.settings['window_size']}"
        )

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw the weights as DeiT does; the branches of V2 start at zero (its official ``_init_respostnorm``)."""
        super().initialize()
        for module in self.modules():
            if isinstance(module, PostNormLayer):
                nn.init.zeros_(module.attention_norm.weight)
                nn.init.zeros_(module.feed_forward_norm.weight)

    def no_weight_decay(self) -> set[str]:
        """Return the names of what makes the relative positions and scales the scores, as in the official code."""
        kinds = ("bias_table", "position_mlp", "logit_scale")
        return {name for name, _ in self.named_parameters() if any(kind in name.split(".") for kind in kinds)}

    def layer_of(self, name: str) -> int:
        """Return a parameter's depth as timm counts it: a merging lies beside the layer that follows it.

        0 is what makes the patches, the layers of all stages follow from 1, the final norm goes with the last one, and
        ``num_layers + 1`` is the head.
        """
        if name.startswith("stages."):
            _, stage, kind, layer, *_ = name.split(".")
            before = sum(self.settings["depths"][: int(stage)])
            return before + 1 + (int(layer) if kind == "layers" else 0)
        if name.startswith("norm."):
            return self.num_layers
        return self.num_layers + 1 if name.startswith("head") else 0

    @property
    def num_layers(self) -> int:
        """Number of layers of all stages."""
        return sum(self.settings["depths"])

    def _run_stage(self, stage: nn.Module, branch: Tensor | None, residual: Tensor) -> tuple[Tensor | None, Tensor]:
        if stage.merging is not None:
            branch, residual = None, stage.merging(self.add(branch, residual))  # type: ignore[operator]
        for layer in stage.layers:  # type: ignore[union-attr]
            branch, residual = self.run_layer(layer, branch, residual)
        return branch, residual


def pad_to_multiple(input: Tensor, multiple: int, axis: int) -> Tensor:
    """Append zeros to two neighbouring axes of four, from ``axis`` on, up to a multiple."""
    bottom, right = (-length % multiple for length in input.shape[axis : axis + 2])
    if not bottom and not right:
        return input
    return functional.pad(input, (0, 0) * (2 - axis) + (0, right, 0, bottom))


def _windows(name: str, sizes: int | Sequence[Window] | None, stages: int) -> list[Any]:
    """Return (rows, columns) for each stage, or None for each if there are none."""
    each = list(sizes) if isinstance(sizes, Sequence) else [sizes] * stages
    if len(each) != stages:
        raise ValueError(f"{name} must be one number, or one for each of {stages} stages, got {sizes}")
    windows = [(side, side) if isinstance(side, int) else side and tuple(side) for side in each]
    if any(window and (len(window) != 2 or min(window) < 1) for window in windows):
        raise ValueError(f"{name} must be 1 or more, one number or (rows, columns) in each stage, got {sizes}")
    return windows


def _check_stages(
    version: int, depths: Sequence[int], num_heads: Sequence[int], pretrained_window_size: object
) -> None:
    """Raise a ValueError that names the arguments that do not fit together."""
    if version not in (1, 2):
        raise ValueError(f"version must be 1 or 2, got {version!r}")
    if not depths or len(depths) != len(num_heads):
        raise ValueError(f"depths {list(depths)} and num_heads {list(num_heads)} must have one number for each stage")
    check_at_least("depths", min(depths), 1)
    if version == 1 and pretrained_window_size is not None:
        raise ValueError("pretrained_window_size is of version 2: the table of version 1 is of its window_size")
