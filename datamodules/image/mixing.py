"""Mixup and CutMix of a batch with itself in reverse order, on the device."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from datamodules.image.checks import check_between
from datamodules.image.erasing import Box
from datamodules.loading import keyed_seed

STREAM = 2
"""Tells the draws of mixing apart from others that are made from a sample's seed."""


class Mix(NamedTuple):
    """How an image is mixed: the share of itself that it keeps, and the box that it takes from its partner, if any."""

    own: float = 1.0
    box: Box | None = None


@dataclass(frozen=True)
class Mixing:
    """Mixup and CutMix, as timm does them for DeiT.

    Papers: https://arxiv.org/abs/1710.09412 and https://arxiv.org/abs/1905.04899.

    Image i of n is mixed with image n - 1 - i. Labels become class probabilities: smoothed once, then mixed by the same
    share λ, so the loss must not smooth again.

    Attributes:
        mixup_alpha: λ of mixup is drawn from Beta(alpha, alpha); 0 for no mixup.
        cutmix_alpha: The same for CutMix.
        cutmix_minmax: Draw the sides of CutMix's box between these shares of the image's, and not from λ.
        probability: How often a batch, pair or image is mixed.
        switch_probability: How often CutMix is chosen where both are on.
        mode: Whether λ, the choice and the box are drawn once for the ``batch``, for each ``pair`` of partners, or for
            each ``element``.
        label_smoothing: Share of the probability that is spread over all classes, the right one included.
        correct_lambda: Set λ to the share that CutMix's box really leaves, as a box is cut at the image's border. With
            ``cutmix_minmax`` it always is.
        off_epoch: From this epoch on, counted from 0, labels are smoothed and nothing is mixed.
    """

    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    cutmix_minmax: tuple[float, float] | None = None
    probability: float = 1.0
    switch_probability: float = 0.5
    mode: Literal["batch", "pair", "element"] = "batch"
    label_smoothing: float = 0.1
    correct_lambda: bool = True
    off_epoch: int | None = None

    def __post_init__(self) -> None:
        check_between("Mixing: mixup_alpha", self.mixup_alpha, 0)
        check_between("Mixing: cutmix_alpha", self.cutmix_alpha, 0)
        check_between("Mixing: probability", self.probability, 0, 1)
        check_between("Mixing: switch_probability", self.switch_probability, 0, 1)
        check_between("Mixing: label_smoothing", self.label_smoothing, 0, 1)
        if self.off_epoch is not None:
            check_between("Mixing: off_epoch", self.off_epoch, 0)
        if self.mode not in ("batch", "pair", "element"):
            raise ValueError(f"Mixing: mode={self.mode!r} must be batch, pair or element")
        if self.cutmix_minmax is not None:
            low, high = self.cutmix_minmax
            if not 0 <= low <= high <= 1:
                raise ValueError(f"Mixing: cutmix_minmax={self.cutmix_minmax} must be two shares, the smaller first")
        if not (self.mixup_alpha or self._cutmix):
            raise ValueError(
                "Mixing: mixup_alpha and cutmix_alpha are both 0, so that there is nothing to mix; configure no Mixing "
                "and label_smoothing of the model"
            )

    @property
    def _cutmix(self) -> bool:
        return self.cutmix_alpha > 0 or self.cutmix_minmax is not None

    def __call__(
        self, images: Tensor, labels: Tensor, num_classes: int, seeds: Sequence[int], epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Mixes images in place.

        Args:
            images: (batch, channels, height, width), normalised.
            labels: Class numbers, (batch,), int64.
            num_classes: Number of classes.
            seeds: A seed for each image. The batch mode draws from the first; a pair, from that of its first image.
            epoch: Epoch that the batch belongs to, counted from 0.

        Returns:
            ``images``, and class probabilities of shape (batch, num_classes), float32.

        Raises:
            ValueError: If the batch is odd, so that an image has no partner; if the images are not normalised yet, or
                there is not a seed for each.
        """
        spread = self.label_smoothing / num_classes
        targets = torch.full((len(labels), num_classes), spread, device=labels.device)
        targets.scatter_(1, labels[:, None], 1 - self.label_smoothing + spread)
        if self.off_epoch is not None and epoch >= self.off_epoch:
            return images, targets
        self._check(images, seeds)
        height, width = images.shape[-2:]
        if self.mode == "batch":
            mix = self.draw(seeds[0], height, width)
            _mix_batch(images, mix)
            return images, targets.lerp_(targets.flip(0), 1 - mix.own)
        if self.mode == "pair":
            mixes = [self.draw(seed, height, width) for seed in seeds[: len(seeds) // 2]]
            mixes += mixes[::-1]
        else:
            mixes = [self.draw(seed, height, width) for seed in seeds]
        _mix_each(images, mixes)
        taken = torch.tensor([[1 - mix.own] for mix in mixes]).to(targets.device, non_blocking=True)
        return images, targets.lerp_(targets.flip(0), taken)

    def _check(self, images: Tensor, seeds: Sequence[int]) -> None:
        if not images.is_floating_point():
            raise ValueError(f"images of type {images.dtype} cannot be mixed: they must be normalised before")
        if len(images) % 2:
            raise ValueError(
                f"a batch of {len(images)} images cannot be mixed: image i is mixed with image n - 1 - i, and the one "
                "in the middle has no partner; choose an even batch_size"
            )
        if len(seeds) != len(images):
            raise ValueError(f"{len(seeds)} seeds for {len(images)} images: there must be one for each")

    def draw(self, seed: int, height: int, width: int) -> Mix:
        """Draws how a batch, a pair or an image is mixed.

        Args:
            seed: What everything is drawn from.
            height: Height of the images in pixels.
            width: Their width.

        Returns:
            The share and the box.
        """
        rng = Random(keyed_seed(seed, STREAM))
        if rng.random() >= self.probability:
            return Mix()
        # One number whatever the settings, so that those that follow do not depend on them.
        switch = rng.random() < self.switch_probability
        if not (self._cutmix and (switch or not self.mixup_alpha)):
            return Mix(rng.betavariate(self.mixup_alpha, self.mixup_alpha))
        if self.cutmix_minmax is not None:
            box = _box_between(rng, height, width, *self.cutmix_minmax)
        else:
            own = rng.betavariate(self.cutmix_alpha, self.cutmix_alpha)
            box = _box_around(rng, height, width, 1 - own)
            if not self.correct_lambda:
                return Mix(own, box)
        return Mix(1 - (box.bottom - box.top) * (box.right - box.left) / (height * width), box)


def _box_around(rng: Random, height: int, width: int, share: float) -> Box:
    """Draws the centre of a box that has a share of the image, and cuts it at the border."""
    rows, columns = int(height * math.sqrt(share)), int(width * math.sqrt(share))
    y, x = int(rng.random() * height), int(rng.random() * width)
    return Box(
        max(y - rows // 2, 0),
        min(y + (rows + 1) // 2, height),
        max(x - columns // 2, 0),
        min(x + (columns + 1) // 2, width),
    )


def _box_between(rng: Random, height: int, width: int, low: float, high: float) -> Box:
    """Draws a box inside the image whose sides are between two shares of the image's; the largest side is excluded."""
    rows = int(height * low) + int(rng.random() * (int(height * high) - int(height * low)))
    columns = int(width * low) + int(rng.random() * (int(width * high) - int(width * low)))
    top, left = int(rng.random() * (height - rows + 1)), int(rng.random() * (width - columns + 1))
    return Box(top, top + rows, left, left + columns)


def _mix_batch(images: Tensor, mix: Mix) -> None:
    """Mixes all images alike. What two partners exchange is computed once, so that half a batch is copied."""
    if mix.box is not None:
        region = _region(images, mix.box)
        region.copy_(region.flip(0))
    elif not images.is_cuda:
        _mix_each(images, [mix] * len(images))  # what lies in the cache of a CPU is mixed faster
    elif mix.own < 1:
        first, second = images.chunk(2)
        difference = second.flip(0).sub_(first)
        first.add_(difference, alpha=1 - mix.own)
        second.sub_(difference.flip(0), alpha=1 - mix.own)


def _mix_each(images: Tensor, mixes: Sequence[Mix]) -> None:
    """Mixes every image in its own way. Partners follow each other, so that a CPU has both in its cache."""
    rows = images.unbind()
    for number in range(len(rows) // 2):
        first, second = rows[number], rows[-1 - number]
        mix, partners_mix = mixes[number], mixes[-1 - number]
        before = _region(first, partners_mix.box).clone()
        _take(first, _region(second, mix.box), mix)
        _take(second, before, partners_mix)


def _take(image: Tensor, partner: Tensor, mix: Mix) -> None:
    """Mixes what an image takes of its partner into it."""
    if mix.box is not None:
        _region(image, mix.box).copy_(partner)
    elif mix.own < 1:
        image.lerp_(partner, 1 - mix.own)


def _region(images: Tensor, box: Box | None) -> Tensor:
    return images if box is None else images[..., box.top : box.bottom, box.left : box.right]
