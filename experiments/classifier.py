"""An image classifier made ready for use: a checkpoint of this project or public weights, and the steps before it."""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.image.decode import decode
from datamodules.image.evaluation import Preprocessing
from datamodules.image.normalization import normalize
from experiments.checkpoint_path import choose_device, find_checkpoint
from experiments.command import CommandParser
from experiments.errors import UsageError
from lit_models.checkpoints import CHECKPOINT_KEY
from lit_models.classification.checkpoint import load_checkpoint
from lit_models.classification.network import Classifier
from lit_models.pretrained import load_pretrained

COMMAND_OF = {"translation": "translate", "classification": "classify", "detection": "detect"}
"""Task of a checkpoint -> command that uses it."""
_PUBLIC_FILES = ("model.safetensors", "pytorch_model.bin")


def add_preprocessing_options(parser: CommandParser, prefix: str = "") -> None:
    """Add the options that change how an image is prepared."""
    add, default = parser.add_argument, "(default: the checkpoint's)"
    add("--image-size", type=int, metavar="PIXELS", help=f"{prefix}side of the image that the network sees {default}")
    add("--crop", type=float, metavar="SHARE",
        help=f"{prefix}side of the central crop as a share of the shorter side {default}")  # fmt: skip
    add("--crop-mode", choices=("center", "squash"),
        help=f"{prefix}cut the center out, or squash the whole image {default}")  # fmt: skip


def check_preprocessing_options(options: argparse.Namespace) -> None:
    """Check the options of :func:`add_preprocessing_options`.

    Raises:
        UsageError: A value is out of its range.
    """
    if options.image_size is not None and options.image_size < 1:
        raise UsageError(f"--image-size {options.image_size}: it must be at least 1")
    if options.crop is not None and not 0.0 < options.crop <= 1.0:
        raise UsageError(f"--crop {options.crop}: it must be above 0 and at most 1")
    if options.crop is not None and options.crop_mode == "squash":
        raise UsageError("--crop has no effect with --crop-mode squash; leave one of the two out")


def find_weights(path: str) -> Path:
    """Return the file that a path means: itself, the checkpoint of a run, or the weights in a Hugging Face directory.

    Raises:
        UsageError: There is none.
    """
    candidates = [Path(path, name) for name in _PUBLIC_FILES]
    return next((candidate for candidate in candidates if candidate.is_file()), None) or find_checkpoint(path)


def checkpoint_task(path: Path) -> str | None:
    """Return the task of a checkpoint of this project, None of any other file; the weights are not read."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get(CHECKPOINT_KEY)
        return str(saved["task"])
    except Exception:  # whoever loads the file in earnest says what is wrong with it
        return None


@dataclass(frozen=True)
class ImageClassifier:
    """A network on a device, with the names of its classes and the preparation of its images.

    Attributes:
        network: In evaluation mode.
        class_names: One for each class.
        preprocessing: From a decoded image to what the network sees, before normalisation.
        device: Where it computes.
        independent: Whether the network was trained to answer for each class by itself, with binary cross-entropy:
            its probabilities are sigmoids, which need not sum to 1, not a softmax.
    """

    network: Classifier
    class_names: list[str]
    preprocessing: Preprocessing
    device: torch.device
    independent: bool = False

    @classmethod
    def load(
        cls, path: Path, device: str = "auto", public: Mapping[str, Any] | None = None, **changes: Any
    ) -> "ImageClassifier":
        """Load a checkpoint file of this project, or public weights.

        Of public weights, what was loaded and what was not is printed on standard error.

        Args:
            path: The file.
            device: ``auto``, ``cpu`` or ``cuda``.
            public: Arguments of ``load_pretrained`` for public weights; None leaves them.
            changes: Fields of the checkpoint's preprocessing to replace; None leaves them.

        Raises:
            UsageError: There is no such device, the checkpoint is of another task, or ``public`` is given for one of
                this project.
            ValueError: The file cannot be read, or the network has no classes.
        """
        target, task = choose_device(device), checkpoint_task(path)
        changes = {name: value for name, value in changes.items() if value is not None}
        public = {name: value for name, value in (public or {}).items() if value is not None}
        if task and public:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in public)
            raise UsageError(f'{options}: for public weights alone, and "{path}" is a checkpoint of this project')
        if task not in (None, "classification"):
            command = COMMAND_OF.get(task or "")
            use = f"; use: python -m experiments {command} --checkpoint {path}" if command else ""
            raise UsageError(f'"{path}" is no image classifier, its task is {task}{use}')
        independent = False
        if task:
            loaded = load_checkpoint(path)
            network, names, settings = loaded.network, loaded.class_names, loaded.preprocessing
            independent = loaded.checkpoint[CHECKPOINT_KEY].get("settings", {}).get("loss") == "binary_cross_entropy"
            if "image_size" in changes:
                network.set_input_size(changes["image_size"])
        else:
            found = load_pretrained(path, image_size=changes.get("image_size"), **public)
            print(found.report(), file=sys.stderr)
            network, settings = found.network, found.preprocessing
            names = found.class_names or [f"class {number}" for number in range(network.num_classes)]
        if not network.num_classes:
            raise ValueError(f"{path}: the network has no head, so there are no classes to tell apart")
        if not isinstance(settings.get("image_size", 0), int):
            raise ValueError(
                f"{path}: the network sees {settings['image_size']} pixels; give --image-size for a square"
            )
        preprocessing = replace(Preprocessing(**settings), **changes)
        return cls(network.to(target).eval(), list(names), preprocessing, target, independent)

    def read(self, path: str | Path) -> Tensor:
        """Decode an image file and prepare it.

        Returns:
            What the network sees, before normalisation: uint8 of shape ``(3, height, width)``.

        Raises:
            OSError: The file is missing or cannot be read.
            ValueError: It is no image, or a broken one.
        """
        return self.preprocessing(decode(Path(path), str(path)))

    def normalized(self, images: Tensor) -> Tensor:
        """Return uint8 images ``(batch, 3, height, width)`` as the network's float32 input, on its device."""
        return normalize(images.to(self.device), self.preprocessing.mean, self.preprocessing.std)

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probability of each class.

        Args:
            images: uint8 of shape ``(batch, 3, height, width)``.

        Returns:
            float32 of shape ``(batch, classes)``, on the CPU.
        """
        logits = self.network(self.normalized(images)).float()
        return (logits.sigmoid() if self.independent else logits.softmax(-1)).cpu()
