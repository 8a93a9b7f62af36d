"""A residual network for small images: the ConvNet that teaches (He et al. 2016, section 4.2).

https://arxiv.org/abs/1512.03385. A DeiT learns most from a ConvNet (Touvron et al. 2021, table 3); this one is small
enough to be trained beside its student.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from lit_models.checks import check_at_least
from lit_models.classification.network import Classifier, HeadLogits


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut, which is a 1x1 convolution where the shape changes.

    Args:
        channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution.
    """

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.convolution2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != out_channels:
            convolution = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(out_channels))

    def forward(self, input: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to (batch, out_channels, height / stride, width / stride)."""
        hidden = functional.relu(self.norm1(self.convolution1(input)))
        return functional.relu(self.norm2(self.convolution2(hidden)) + self.shortcut(input))


class ResNet(Classifier):
    """Stages of residual blocks at full, half, quarter ... resolution; any image size.

    Args:
        num_classes: Classes of the head; 0 for none.
        depth: Weighted layers of the three-stage network, 6n + 2: n blocks a stage (20, 32, 44, 56 ...).
        width: Channels of the first stage; each stage doubles them. The paper's networks for 32 pixels have 16.
        stages: Number of stages; 3 in the paper.
        stem_stride: Stride of the first convolution; 1 in the paper, 2 suits 64 pixels. Its kernel has a side of 3, or
            where that would miss pixels of ``2 * stem_stride - 1``, as the 7 of 4.

    Raises:
        ValueError: If ``depth`` is not 6n + 2, or a number is too small.
    """

    def __init__(
        self, num_classes: int, *, depth: int = 20, width: int = 16, stages: int = 3, stem_stride: int = 1
    ) -> None:
        super().__init__()
        check_at_least("width", width, 1)
        check_at_least("stages", stages, 1)
        check_at_least("stem_stride", stem_stride, 1)
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 26, 32 ...), got {depth}")
        self.settings = {"depth": depth, "width": width, "stages": stages, "stem_stride": stem_stride}
        side = max(3, 2 * stem_stride - 1)
        self.stem = nn.Conv2d(3, width, side, stem_stride, padding=side // 2, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        channels, built = width, []
        for stage in range(stages):
            out_channels = width * 2**stage
            blocks = []
            for block in range((depth - 2) // 6):
                blocks.append(ResidualBlock(channels, out_channels, 2 if stage and not block else 1))
                channels = out_channels
            built.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(built)
        self.num_features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.reset_classifier(num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Map images (batch, 3, height, width) to the last stage's (batch, num_features, rows, columns)."""
        hidden = functional.relu(self.stem_norm(self.stem(images)))
        for stage in self.stages:
            hidden = stage(hidden)
        return hidden

    def forward_head(self, features: Tensor) -> HeadLogits:
        """Average over positions and return the logits of the one head."""
        return HeadLogits(self.head(features.mean((2, 3))), None)

    def reset_classifier(self, num_classes: int) -> None:
        """Make a new head; 0 classes leave the pooled features."""
        check_at_least("num_classes", num_classes, 0)
        self.num_classes = num_classes
        self.head: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_intermediates(self, images: Tensor, layers: Sequence[int] | None = None) -> list[Tensor]:
        """Return the maps (batch, channels, rows, columns) after some stages, counted from 0; all by default."""
        hidden, maps = functional.relu(self.stem_norm(self.stem(images))), []
        for stage in self.stages:
            hidden = stage(hidden)
            maps.append(hidden)
        chosen = range(len(maps)) if layers is None else layers
        if unknown := [layer for layer in chosen if not -len(maps) <= layer < len(maps)]:
            raise ValueError(f"layers {unknown} do not exist: the network has {len(maps)} stages")
        return [maps[layer] for layer in chosen]

    def layer_of(self, name: str) -> int:
        """Return 0 for the stem, the stage's number from 1, and ``num_layers + 1`` for the head."""
        if name.startswith("stages."):
            return int(name.split(".")[1]) + 1
        return 0 if name.startswith("stem") else self.num_layers + 1

    @property
    def num_layers(self) -> int:
        """Number of stages."""
        return len(self.stages)
