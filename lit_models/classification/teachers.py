"""Teachers: networks that are looked at, never trained and never saved."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_models.classification.checkpoint import load_source, same_classes
from lit_models.classification.distillation import TeacherConfig

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_KEY = "distillation.teacher.source"


class Teacher:
    """A frozen network in evaluation mode that sees the student's images, re-normalised to its own statistics.

    It is no ``nn.Module``, so that no optimiser, checkpoint, weight average or ``train()`` of the student's module
    reaches it.

    Args:
        network: Maps images to logits.
        mean: Mean of each colour that the network was trained with, in [0, 1].
        std: Their standard deviations.
        image_size: (height, width) to which images are resized; None for as they are.
    """

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], image_size: tuple[int, int] | None
    ) -> None:
        self.network = network.requires_grad_(False).eval()
        self.image_size = image_size
        self._mean, self._std = _by_colour(mean), _by_colour(std)
        self._scale, self._shift = torch.ones_like(self._std), torch.zeros_like(self._mean)

    def see(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Say with which mean and standard deviation the student's images are normalised."""
        self._scale, self._shift = _by_colour(std) / self._std, (_by_colour(mean) - self._mean) / self._std

    def to(self, device: torch.device, memory_format: torch.memory_format) -> None:
        """Move the network."""
        self.network.to(device).to(memory_format=memory_format)
        self._scale, self._shift = self._scale.to(device), self._shift.to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits (batch, classes) for the student's normalised, mixed images (batch, 3, height, width)."""
        images = images.float() * self._scale + self._shift
        if self.image_size is not None and tuple(images.shape[-2:]) != self.image_size:
            images = functional.interpolate(images, self.image_size, mode="bicubic", antialias=True)
        # Of half or double precision where the trainer's precision is "true".
        return self.network(images.to(next(self.network.parameters()).dtype))


def build_teacher(config: TeacherConfig, class_names: list[str]) -> Teacher:
    """Load a teacher.

    Args:
        config: Which one.
        class_names: The student's classes.

    Raises:
        FileNotFoundError: If its file is missing or its weights cannot be downloaded.
        ValueError: If there is no such network, or its classes are not the student's.
    """
    if config.library is None:
        return _from_file(config, class_names)
    network, num_classes, (mean, std), fixed_size = _from_library(config)
    if num_classes != len(class_names):
        raise ValueError(f"{_KEY}: {config.source} has {num_classes} classes, the data {len(class_names)}")
    return Teacher(network, mean, std, _square(config.image_size) or fixed_size)


def download_teacher(config: TeacherConfig) -> None:
    """Fetch the weights of a network by name, so that several processes need not do so at once."""
    if config.library is not None and config.weights is not None:
        _from_library(config)


def _from_file(config: TeacherConfig, class_names: list[str]) -> Teacher:
    source = load_source(config.source, _KEY)
    if not same_classes(source, class_names):
        theirs = source.class_names or []
        pairs = zip(theirs, class_names, strict=False)
        first = next((f"; the first that differ are {one!r} and {two!r}" for one, two in pairs if one != two), "")
        raise ValueError(
            f'{_KEY}: "{config.source}" has {source.network.num_classes} classes, the data {len(class_names)}; they '
            f"must be the same in the same order{first}"
        )
    facts = source.preprocessing
    return Teacher(source.network, facts["mean"], facts["std"], _square(config.image_size) or source.network.image_size)


def _from_library(config: TeacherConfig) -> tuple[nn.Module, int, Any, tuple[int, int] | None]:
    """Return a network, its number of classes, its mean and std, and the image size if it takes one alone."""
    try:
        return _from_torchvision(config) if config.library == "torchvision" else _from_timm(config)
    except OSError as error:
        raise FileNotFoundError(
            f"{_KEY}: the weights of {config.source} cannot be downloaded ({error}); a file or weights that are "
            "in the cache need no network"
        ) from error


def _from_torchvision(config: TeacherConfig) -> tuple[nn.Module, int, Any, tuple[int, int] | None]:
    from torchvision import models

    if config.name not in models.list_models(models):
        raise ValueError(f"{_KEY}: torchvision has no classification network {config.name!r}")
    weights = None
    if config.weights is not None:
        choices = models.get_model_weights(config.name)
        name = "DEFAULT" if config.weights == "default" else config.weights
        if name not in choices.__members__:
            known = ", ".join(choices.__members__)
            raise ValueError(f"distillation.teacher.weights: {config.name} has no weights {name!r}, only {known}")
        weights = choices[name]
    network = models.get_model(config.name, weights=weights)
    transforms = weights.transforms() if weights is not None else None
    statistics = (transforms.mean, transforms.std) if transforms is not None else _IMAGENET
    num_classes = len(weights.meta["categories"]) if weights is not None else 1000
    return network, num_classes, statistics, _square(getattr(network, "image_size", None))


def _from_timm(config: TeacherConfig) -> tuple[nn.Module, int, Any, tuple[int, int] | None]:
    try:
        import timm
    except ModuleNotFoundError:
        raise ValueError(f"{_KEY}: {config.source} needs timm, which is not installed (pip install timm)") from None
    if not timm.is_model(config.name):
        raise ValueError(f"{_KEY}: timm has no network {config.name!r}")
    if config.weights not in ("default", None):
        raise ValueError(
            f"distillation.teacher.weights: timm names weights with the network (NAME.TAG); got {config.weights!r}"
        )
    network: Any = timm.create_model(config.name, pretrained=config.weights is not None)
    facts = network.pretrained_cfg
    size = tuple(facts["input_size"][-2:]) if facts.get("fixed_input_size") else None
    return network, network.num_classes, (facts["mean"], facts["std"]), size


def _by_colour(values: Sequence[float]) -> Tensor:
    """Return a number for each colour, (1, 3, 1, 1) float32: the trainer's precision may have another default."""
    return torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)


def _square(size: int | None) -> tuple[int, int] | None:
    return None if size is None else (size, size)
