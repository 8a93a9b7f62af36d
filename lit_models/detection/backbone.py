"""Networks that turn images into the feature map DETR reads: torchvision's ResNets, and the project's classifiers."""

from abc import abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d

from lit_models.checks import check_at_least
from lit_models.classification.network import Classifier
from lit_models.classification.registry import build

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")
WEIGHTS = "IMAGENET1K_V1"


class Backbone(nn.Module):
    """A network from images to one map of features.

    Attributes:
        channels: Channels of the map.
        settings: What :func:`build_backbone` builds the same network from, as plain values.
    """

    channels: int
    settings: Mapping[str, Any]

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return the features (batch, channels, rows, columns) of images (batch, 3, height, width)."""


class ResNetBackbone(Backbone):
    """The last stage of torchvision's ResNet (He et al. 2016; the variant with the stride in the 3x3 convolution).

    Frozen norms have fixed statistics and scales, as is right for batches of few images and pretrained weights. They
    are multiplied into the convolutions before them, which saves a pass over every map. Without pretrained weights
    nothing is right for them to be fixed at: train from scratch with ``frozen_norm=False`` and
    ``trainable_from="conv1"``.

    Args:
        name: ``resnet18``, ``resnet34``, ``resnet50`` or ``resnet101``.
        dilation: DC5: no stride in the last stage but dilation, so that the map has stride 16 in place of 32.
        frozen_norm: Freeze the batch norms; False trains them.
        trainable_from: The first stage that is trained (``conv1``, ``layer1`` ... ``layer4``); None trains nothing.
        weights: ``"IMAGENET1K_V1"``, torchvision's first ImageNet weights, which the published DETRs start from; a file
            with a ResNet's weights in torchvision's names; or None for random ones.
        group_norm: Groups of a group norm in place of every batch norm; it is trained.

    Raises:
        ValueError: If the arguments do not fit together, or the file's weights do not fit the network.
        FileNotFoundError: If there is no such file, or the weights cannot be downloaded.
    """

    def __init__(
        self,
        name: str = "resnet50",
        *,
        dilation: bool = False,
        frozen_norm: bool = True,
        trainable_from: str | None = "layer2",
        weights: str | None = None,
        group_norm: int | None = None,
    ) -> None:
        super().__init__()
        _check_resnet(name, dilation, frozen_norm, trainable_from, weights, group_norm)
        # Without the weights: what was trained is in the checkpoint, and loading it must download nothing.
        self.settings = {
            "type": "ResNetBackbone",
            "name": name,
            "dilation": dilation,
            "frozen_norm": frozen_norm,
            "trainable_from": trainable_from,
            "group_norm": group_norm,
        }
        network = models.get_model(
            name,
            weights=None,
            norm_layer=_norm_layer(frozen_norm, group_norm),
            replace_stride_with_dilation=[False, False, dilation],
        )
        self.conv1, self.bn1 = network.conv1, network.bn1
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        self.channels = network.fc.in_features
        if weights is not None:
            _load(self, *_read_weights(name, weights))
        first = len(STAGES) if trainable_from is None else STAGES.index(trainable_from)
        frozen = {*STAGES[:first], *(["bn1"] if first > 0 else [])}
        for parameter_name, parameter in self.named_parameters():
            parameter.requires_grad_(parameter_name.split(".")[0] not in frozen)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features, (batch, channels, rows, columns), at stride 32, or 16 with dilation."""
        # Channels last is the faster layout of these convolutions, and its maps are rows of tokens already.
        images = images.contiguous(memory_format=torch.channels_last)
        hidden = functional.relu(_conv_norm(self.conv1, self.bn1, images), inplace=True)
        hidden = functional.max_pool2d(hidden, 3, stride=2, padding=1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                hidden = _residual_block(block, hidden)
        return hidden


class ClassifierBackbone(Backbone):
    """A stage of any classifier of the project that gives its intermediate features.

    The head is removed, and what lies behind the stage is frozen, for no gradient reaches it.

    Args:
        network: The classifier.
        stage: Number of its stage or layer, counted from 0, negative from the end.

    Raises:
        ValueError: If there is no such stage.
    """

    def __init__(self, network: Classifier, stage: int = -1) -> None:
        super().__init__()
        network.reset_classifier(0)
        self.network, self.stage = network, stage
        self.settings = {
            "type": "ClassifierBackbone",
            "network": type(network).__name__,
            "network_settings": dict(network.settings),
            "stage": stage,
        }
        # One image's way through a copy without storage tells the channels, and which parameters are used.
        probe = deepcopy(network).to("meta")
        height, width = network.image_size or (224, 224)
        features = probe.forward_intermediates(torch.empty(1, 3, height, width, device="meta"), [stage])[0]
        self.channels = features.shape[1]
        names, parameters = zip(*((n, p) for n, p in probe.named_parameters() if p.requires_grad), strict=True)
        gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is None:
                network.get_parameter(name).requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the stage's features, (batch, channels, rows, columns)."""
        return self.network.forward_intermediates(images, [self.stage])[0]


def build_backbone(backbone: Backbone | Mapping[str, Any] | str) -> Backbone:
    """Return a backbone from itself, its settings, or the name of a ResNet.

    Settings are the arguments of the class that ``type`` names. Those of a ``ClassifierBackbone`` are ``network``, a
    name of the registry, and ``network_settings``; or ``weights``, a public checkpoint that brings both.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If there is no such backbone, or it has no such settings.
    """
    if isinstance(backbone, Backbone):
        return backbone
    settings: dict[str, Any] = {"name": backbone} if isinstance(backbone, str) else dict(backbone)
    kind = settings.pop("type", "ResNetBackbone")
    try:
        if kind == "ResNetBackbone":
            return ResNetBackbone(**settings)
        if kind == "ClassifierBackbone":
            if "weights" in settings:
                from lit_models.pretrained import load_pretrained  # only for those who load weights

                return ClassifierBackbone(load_pretrained(settings.pop("weights"), num_classes=0).network, **settings)
            network = build(settings.pop("network"), 0, settings.pop("network_settings"))
            return ClassifierBackbone(network, **settings)
    except (TypeError, KeyError) as error:
        raise ValueError(f"backbone: a {kind} cannot be built from {backbone}: {error}") from None
    raise ValueError(f"backbone: there is no {kind!r}; there are ResNetBackbone and ClassifierBackbone")


def _check_resnet(
    name: str,
    dilation: bool,
    frozen_norm: bool,
    trainable_from: str | None,
    weights: str | None,
    group_norm: int | None,
) -> None:
    """Raise a ValueError that names the arguments that do not fit together."""
    if name not in RESNETS:
        raise ValueError(f"backbone name must be one of {', '.join(RESNETS)}, got {name!r}")
    if dilation and name in ("resnet18", "resnet34"):
        raise ValueError(f"dilation=True needs the blocks of resnet50 or resnet101, not those of {name}")
    if trainable_from is not None and trainable_from not in STAGES:
        raise ValueError(f"trainable_from must be one of {', '.join(STAGES)} or None, got {trainable_from!r}")
    if group_norm is not None:
        check_at_least("group_norm", group_norm, 1)
        if frozen_norm or weights is not None:
            raise ValueError("group_norm takes the place of the batch norms: it needs frozen_norm=False, weights=None")
        if 64 % group_norm:
            raise ValueError(f"group_norm must divide the 64 channels of the first stage, got {group_norm}")


def _norm_layer(frozen: bool, groups: int | None) -> Any:
    if groups is not None:
        return lambda channels: nn.GroupNorm(groups, channels)
    return FrozenBatchNorm2d if frozen else nn.BatchNorm2d


def _conv_norm(convolution: nn.Conv2d, norm: nn.Module, input: Tensor) -> Tensor:
    """Apply a convolution and its norm; a frozen one becomes the convolution's scale and bias."""
    if not isinstance(norm, FrozenBatchNorm2d):
        return norm(convolution(input))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight, bias = convolution.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
    return functional.conv2d(
        input, weight, bias, convolution.stride, convolution.padding, convolution.dilation, convolution.groups
    )


def _residual_block(block: Any, input: Tensor) -> Tensor:
    """Apply torchvision's BasicBlock or Bottleneck."""
    shortcut = input if block.downsample is None else _conv_norm(block.downsample[0], block.downsample[1], input)
    hidden = functional.relu(_conv_norm(block.conv1, block.bn1, input), inplace=True)
    hidden = _conv_norm(block.conv2, block.bn2, hidden)
    if hasattr(block, "conv3"):
        hidden = _conv_norm(block.conv3, block.bn3, functional.relu(hidden, inplace=True))
    return functional.relu(hidden.add_(shortcut), inplace=True)


def _read_weights(name: str, weights: str) -> tuple[Mapping[str, Tensor], str]:
    """Return a ResNet's weights, and where they come from."""
    if weights == WEIGHTS:
        source = models.get_model_weights(name)[WEIGHTS]
        try:
            return source.get_state_dict(progress=False, check_hash=True), f"{name} {WEIGHTS}"
        except OSError as error:
            raise FileNotFoundError(
                f"backbone weights: {WEIGHTS} of {name} cannot be downloaded from {source.url} ({error}); fetch that "
                "file on another machine and give its path as weights"
            ) from error
    from lit_models.pretrained.reading import read_checkpoint

    if not Path(weights).expanduser().exists():
        raise FileNotFoundError(
            f"backbone weights: {weights!r} is no file; weights are {WEIGHTS}, a file's path or none"
        )
    return read_checkpoint(weights).tensors, weights


def _load(backbone: ResNetBackbone, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into the network; the classifier's are left out."""
    given = {key: value for key, value in tensors.items() if not key.startswith("fc.")}
    needed = backbone.state_dict()
    for key, value in needed.items():
        if key not in given and key.endswith("num_batches_tracked"):
            given[key] = value
    wrong = [key for key, value in needed.items() if key not in given or given[key].shape != value.shape]
    unknown = [key for key in given if key not in needed and not key.endswith("num_batches_tracked")]
    if wrong or unknown:
        raise ValueError(
            f"backbone weights: {source} does not fit {backbone.settings['name']}: {len(wrong)} tensors are missing or "
            f"of another shape, {len(unknown)} are unknown; the first is {(wrong + unknown)[0]}"
        )
    backbone.load_state_dict({key: given[key] for key in needed})
