"""What a family of public checkpoints is: how it is told apart, and what reading one of its files gives.

A new family is a file beside this one with a :class:`Family`, and a line in ``families.py``.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

Size = tuple[int, int]
Windows = int | Sequence[int | Sequence[int]]
"""Windows of a Swin: one side for all stages, or one side or (rows, columns) for each."""
REPRESENTATION = "representation"
"""Our name of a layer between the features and the head, which some checkpoints have and no network here."""
CropMode = Literal["center", "squash"]
Interpolation = Literal["bicubic", "bilinear"]


def pair(size: int | Sequence[int]) -> Size:
    """Return (height, width) of a size that is one number or both."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights as it was read.

    Attributes:
        path: The file.
        tensors: Weights under their own names; wrappers' prefixes are cut off.
        wrapper: The entry that held the weights (``"model"``, ``"state_dict"`` ...), or None if they are the file.
        entries: The file's other entries.
        config: The ``config.json`` beside the file, or nothing.
        processor: The ``preprocessor_config.json`` beside the file, or nothing.
        outside: Names of tensors outside the network, such as a Lightning module's loss.
        data_parallel: Whether a ``module.`` prefix was cut off.
    """

    path: Path
    tensors: dict[str, Tensor]
    wrapper: str | None = None
    entries: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    outside: tuple[str, ...] = ()
    data_parallel: bool = False


@dataclass(frozen=True)
class Rule:
    """What a source does, where its file does not say otherwise: the table is in ``rules.py``.

    Attributes:
        norm_eps: Epsilon of the layer norms.
        mean: Of the RGB channels, pixels in [0, 1].
        std: Likewise.
        crop: Fraction of the resized image that evaluation keeps.
        crop_mode: ``"center"`` crops, ``"squash"`` resizes both sides.
        interpolation: Of evaluation.
        position_antialias: Whether a position table is resized with an antialiased filter.
        position_mode: Interpolation of a position table.
        position_corners: Whether the corners of the old and the new table coincide.
        large_crop_mode: What takes the place of ``crop_mode`` from 384 pixels on, if anything.
        padding: Of a Swin, how the source treats maps that its windows do not divide.
    """

    norm_eps: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: float
    crop_mode: CropMode
    interpolation: Interpolation
    position_antialias: bool
    position_mode: Interpolation = "bicubic"
    position_corners: bool = False
    large_crop_mode: CropMode | None = None
    padding: str | None = None


@dataclass(frozen=True)
class Wanted:
    """What a person asks for, or tells of a file that is silent; None leaves it to the file.

    Attributes:
        image_size: (height, width) of the images to come.
        num_heads: Attention heads of the checkpoint; of a Swin, of each stage.
        window_size: Windows of a Swin.
        pretrained_window_size: Windows that the position MLP of a Swin V2 was trained with.
    """

    image_size: Size | None = None
    num_heads: int | Sequence[int] | None = None
    window_size: Windows | None = None
    pretrained_window_size: Windows | None = None


@dataclass(frozen=True)
class Facts:
    """What a file says about itself beside its shapes; None where it is silent.

    Attributes:
        num_heads: Attention heads.
        image_size: (height, width) of the network's input.
        norm_eps: Epsilon of the layer norms.
        pool: ``"token"`` or ``"average"``.
        preprocessing: Some of ``mean``, ``std``, ``crop``, ``crop_mode``, ``interpolation``.
        class_names: Of the head's classes.
        notices: What the person should know.
        windows: Of a Swin, (rows, columns) of each stage's windows.
        pretrained_windows: Likewise, of which its position MLP was trained, if they are others.
    """

    num_heads: int | None = None
    image_size: Size | None = None
    norm_eps: float | None = None
    pool: str | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    class_names: list[str] | None = None
    notices: tuple[str, ...] = ()
    windows: tuple[Size, ...] | None = None
    pretrained_windows: tuple[Size, ...] | None = None


@dataclass
class Weights:
    """Weights under this project's names.

    Attributes:
        tensors: Name to float32 tensor.
        origin: Name to the checkpoint's own name.
        unused: The checkpoint's names of what has no place.
    """

    tensors: dict[str, Tensor]
    origin: dict[str, str]
    unused: list[str]

    def shape(self, name: str, dims: int) -> tuple[int, ...]:
        """Return the shape of a weight.

        Raises:
            ValueError: If it is missing or has another number of dimensions.
        """
        if name not in self.tensors:
            raise ValueError(f"there is no weight for {name!r}: the file is incomplete or another architecture")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != dims:
            raise ValueError(f"{self.origin[name]!r} has shape {shape}; a tensor of {dims} dimensions is expected")
        return shape

    def drop(self, module: str) -> str | None:
        """Leave out a module's weights; return their first original name, or None if there are none."""
        names = [name for name in self.tensors if name.startswith(f"{module}.")]
        for name in names:
            del self.tensors[name]
        dropped = [self.origin.pop(name) for name in names]
        self.unused += dropped
        return dropped[0] if dropped else None


@dataclass(frozen=True)
class Architecture:
    """How one of this project's networks is described by its weights.

    Attributes:
        network: Its name in ``lit_models.classification.registry``.
        complete: Returns the facts with what a person tells, and what is assumed where nobody does.
        settings: Returns the constructor's arguments for the weights as they are; the image size wanted tells apart
            what shapes cannot.
        change: Adapts the weights from these arguments to what is wanted, and returns the new arguments.
        heads: Prefixes of the weights of the classifiers.
    """

    network: str
    complete: Callable[[Weights, Facts, Wanted], Facts]
    settings: Callable[[Weights, Facts, Rule, Size | None], dict[str, Any]]
    change: Callable[[Weights, Mapping[str, Any], Wanted, Rule], dict[str, Any]]
    heads: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A checkpoint that a family has read.

    Attributes:
        name: Of the source, for messages.
        architecture: Of the network.
        weights: Under this project's names.
        rule: What the source does where its file does not say otherwise.
        facts: What the file says.
        representation: Name of a layer between the features and the head, which the networks do not have, or None.
    """

    name: str
    architecture: Architecture
    weights: Weights
    rule: Rule
    facts: Facts
    representation: str | None = None


@dataclass(frozen=True)
class Family:
    """A layout of public checkpoints.

    Attributes:
        name: For messages.
        matches: Whether a file with these names of tensors is one of the family.
        read: Renames a file's weights and collects what it says.
    """

    name: str
    matches: Callable[[Set[str]], bool]
    read: Callable[[Checkpoint], Source]
