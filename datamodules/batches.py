"""What a batch of each task holds: the contract between the datamodules and the models.

This file imports nothing but PyTorch, so that a model can name the types of its input without importing a datamodule.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

PAD_ID = 0
"""Token id that fills rows up to the batch's length; the loss ignores it."""
UNK_ID = 1
"""Token id of a piece that is not in the vocabulary."""
BOS_ID = 2
"""Token id that starts the decoder's input."""
EOS_ID = 3
"""Token id that ends a sentence."""


class TranslationBatch(NamedTuple):
    """A batch of sentence pairs as token ids, right-padded to a common length for each side.

    Attributes:
        source: Source tokens of shape ``(batch, source_length)``, int64; every row ends with ``EOS_ID`` and is
            filled with ``PAD_ID``.
        source_lengths: Tokens in each source row, ``EOS_ID`` counted, of shape ``(batch,)``, int32.
        target_input: What the decoder reads, ``BOS y1 ... yn``, of shape ``(batch, target_length)``, int64.
        target_output: What the decoder shall predict, ``y1 ... yn EOS``, of shape ``(batch, target_length)``, int64.
        target_lengths: ``n + 1`` for each row, of shape ``(batch,)``, int32.
        indices: Line numbers, counted from 0, in the split's files, of shape ``(batch,)``, int64.
        references: Raw target lines in the evaluation splits; empty in training.
        sources: Raw source lines in the evaluation splits; empty in training.
    """

    source: Tensor
    source_lengths: Tensor
    target_input: Tensor
    target_output: Tensor
    target_lengths: Tensor
    indices: Tensor
    references: list[str]
    sources: list[str]


class ImageBatch(NamedTuple):
    """A batch of images of one size for classification.

    Readers make it on the host with uint8 images; the datamodule normalises, erases and mixes on the device
    (``on_after_batch_transfer``), and what the model sees is floating point.

    Attributes:
        images: (batch, 3, height, width), RGB: uint8 on the host, float32 and normalised on the device.
        labels: Class numbers of shape ``(batch,)``, int64; of a mixed image, those of the image itself.
        indices: Item numbers in the split's list of files, of shape ``(batch,)``, int64.
        targets: Class probabilities of shape ``(batch, classes)``, float32, label smoothing folded in, where images
            are mixed; None elsewhere.
        seeds: A seed for each image from which erasing and mixing draw; empty in the evaluation splits.
        epoch: Epoch that the batch belongs to, counted from 0.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    targets: Tensor | None = None
    seeds: tuple[int, ...] = ()
    epoch: int = 0


class DetectionBatch(NamedTuple):
    """A batch of images of their own sizes, padded to a common one, and the objects in them.

    Sizes and counts are plain numbers: the host knows them, so nothing has to wait for the device.

    Attributes:
        images: (batch, 3, height, width), RGB, zero right of and below an image, after normalisation too: uint8 on
            the host, float32 and normalised on the device.
        sizes: (height, width) of each image inside the padding.
        boxes: Boxes as (centre x, centre y, width, height), shares of the un-padded image, of shape
            ``(batch, most, 4)``, float32; zero in the rows after an image's objects. ``most`` is the largest number of
            objects of an image, 0 in a batch of empty images.
        labels: Class numbers of shape ``(batch, most)``, int64; -1 after an image's objects.
        counts: Number of objects of each image.
        image_ids: The image's number in the annotation file.
        original_sizes: (height, width) of the image in its file, by which predictions are scaled.
        step_boxes: Number of objects of all images of the optimiser step, over all processes and micro-batches; 0 in
            the evaluation splits.
        step_images: Number of images of the optimiser step, counted in the same way; 0 in the evaluation splits.
    """

    images: Tensor
    sizes: tuple[tuple[int, int], ...]
    boxes: Tensor
    labels: Tensor
    counts: tuple[int, ...]
    image_ids: tuple[int, ...]
    original_sizes: tuple[tuple[int, int], ...]
    step_boxes: int
    step_images: int = 0


def refuse_other_classes(
    first: str, classes: Sequence[str], second: str, others: Sequence[str], what: str = "classes"
) -> None:
    """Refuses two splits, or a checkpoint and data, that do not number the same classes in the same way.

    Args:
        first: What has ``classes``, for the message.
        classes: Its classes, in the order of their numbers.
        second: What has ``others``.
        others: Its classes.
        what: What the message calls classes.

    Raises:
        ValueError: If they differ; the message lists what is only in one of them.
    """
    if classes == others:
        return
    common = {*classes} & {*others}
    only = [
        f"only in {place}: {', '.join(missing[:10])}{', ...' if len(missing) > 10 else ''}"
        for place, names in ((first, classes), (second, others))
        if (missing := [name for name in names if name not in common])
    ]
    reason = "; ".join(only) or "the same names in another order"
    raise ValueError(f"{first} and {second} differ in their {what} ({len(classes)} and {len(others)}): {reason}")


def preprocessing_differences(theirs: Mapping[str, Any], own: Mapping[str, Any], where: str) -> list[str]:
    """Say in what the images that a network was made for are prepared otherwise than those of the data.

    Args:
        theirs: Some of ``mean``, ``std``, ``crop_mode``, ``crop`` and ``interpolation``; what one of the two does not
            say is not compared, nor is ``image_size``, which fine-tuning changes on purpose.
        own: Likewise of the data.
        where: What holds ``theirs``, for the lines.

    Returns:
        A line for each setting with another value, both values and the setting to change.
    """
    lines = []
    for name in ("mean", "std", "crop_mode", "crop", "interpolation"):
        values = [settings.get(name) for settings in (theirs, own)]
        uncropped = name == "crop" and "squash" in (theirs.get("crop_mode"), own.get("crop_mode"))
        if None not in values and not uncropped and not _alike(*values):
            given, data = (tuple(value) if isinstance(value, list) else value for value in values)
            lines.append(f"{name}: {where} was made with {given}, the data has {data}; see data.{name}")
    return lines


def _alike(one: Any, other: Any) -> bool:
    """Whether two texts are equal, or numbers up to what changes no result that is worth a word."""
    if isinstance(one, str):
        return one == other
    pairs = zip(one, other, strict=True) if isinstance(one, list | tuple) else [(one, other)]
    return all(math.isclose(first, second, abs_tol=1e-3) for first, second in pairs)
