import json
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from datamodules.image.decode import EncodedImage, ImageError
from datamodules.image.detection_annotations import DetectionImages
from datamodules.image.detection_geometry import EvaluationGeometry, TrainingGeometry
from datamodules.image.detection_orders import DetectionOrder
from datamodules.image.detection_reader import DetectionLoader, DetectionReader, transform_exactly, transform_fast

SMALL = {"sizes": (40, 56, 64), "max_size": 96, "crop_from": (44, 60), "crop_sides": (30, 48)}


def encoded(image, kind="PNG"):
    data = BytesIO()
    image.save(data, kind)
    return EncodedImage(data.getvalue(), "it")


def noise(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def official(image, region):
    """DETR's steps with torchvision's functions, given what was drawn."""
    if region.flip[0]:
        image = functional.hflip(image)
    if region.resized[0].tolist() != [image.height, image.width]:
        image = functional.resize(image, region.resized[0].tolist())
    left, top, width, height = region.crop[0].tolist()
    image = functional.crop(image, top, left, height, width)
    return functional.resize(image, region.sizes[0].tolist())


@pytest.mark.parametrize(("height", "width"), [(480, 640), (361, 640)])
def test_pixels_are_those_of_the_official_transform(height, width):
    # Row 10: the filter of Pillow is antialiased.
    image = noise(height, width)
    originals = np.tile([height, width], (8, 1))
    regions = TrainingGeometry().regions(originals, np.arange(8), 1)
    assert 0 < (regions.resized != originals).any(axis=1).sum() < 8 and 0 < regions.flip.sum() < 8
    for row in range(8):
        pixels = transform_exactly(encoded(image), regions.row(row))
        assert np.array_equal(pixels.numpy(), np.asarray(official(image, regions.row(row))))
    region = EvaluationGeometry().regions(originals[:1], np.arange(1), 0)
    expected = {480: (1066, 800), 361: (1333, 752)}[height]
    assert official(image, region).size == expected
    assert np.array_equal(transform_exactly(encoded(image), region).numpy(), np.asarray(official(image, region)))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("scale", [1, 4])
def test_boxes_move_with_the_pixels(tmp_path, fast, scale):
    # Rows 9 and 10; with scale 4 the fast transform decodes at half the size or less.
    width, height = 120 * scale, 80 * scale
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for number in range(12):
        left, top = (int(side * generator.uniform(0.05, 0.5)) for side in (width, height))
        right, bottom = int(left + 0.4 * width), int(top + 0.45 * height)
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[top:bottom, left:right] = 255
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.jpg", quality=95)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": width, "height": height})
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": [left, top, right - left, bottom - top]}
        )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]}
    (tmp_path / "x.json").write_text(json.dumps(content))
    source = DetectionImages(tmp_path / "x.json", tmp_path / "images")
    reader = DetectionReader(source, TrainingGeometry(**SMALL, in_source=fast), training=True, fast=fast)
    found = 0
    for epoch in range(6):
        batch = reader.read_batch(np.arange(12), epoch)
        for image, (high, wide), boxes, count in zip(batch.images, batch.sizes, batch.boxes, batch.counts, strict=True):
            bright = image[0] > 127
            assert image[:, high:].sum() == image[:, :, wide:].sum() == 0
            if not count or not bright.any():
                continue
            rows, columns = bright.any(1).nonzero().flatten(), bright.any(0).nonzero().flatten()
            centre_x, centre_y, width_, height_ = (boxes[0] * torch.tensor([wide, high, wide, high])).tolist()
            corners = [centre_x - width_ / 2, centre_y - height_ / 2, centre_x + width_ / 2, centre_y + height_ / 2]
            seen = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
            assert corners == pytest.approx(seen, abs=1.6)
            found += 1
    assert found > 50


def test_the_fast_transform_is_close_to_the_official_one():
    smooth = noise(24, 32).resize((320, 240), Image.Resampling.BICUBIC)
    originals = np.tile([240, 320], (6, 1))
    settings = {"sizes": (160,), "max_size": 300, "crop_from": (240,), "crop_sides": (120, 160)}
    exact = TrainingGeometry(**settings).regions(originals, np.arange(6), 1)
    fast = TrainingGeometry(**settings, in_source=True).regions(originals, np.arange(6), 1)
    for row in range(6):
        pixels = [
            transform(encoded(smooth), regions.row(row)).numpy().astype(int)
            for transform, regions in ((transform_exactly, exact), (transform_fast, fast))
        ]
        assert pixels[0].shape == pixels[1].shape
        assert np.abs(pixels[0] - pixels[1]).max() <= 2


@pytest.fixture
def source(tmp_path):
    """Nine images of several sizes, with 0 to 4 objects."""
    generator = np.random.default_rng(1)
    images, annotations = [], []
    for number in range(9):
        height, width = generator.integers(40, 90, 2).tolist()
        noise(height, width, number).save(tmp_path / f"{number}.png")
        images.append({"id": 100 + number, "file_name": f"{number}.png", "width": width, "height": height})
        for _ in range(number % 5):
            left, top = (side * generator.uniform(0, 0.8) for side in (width, height))
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": 100 + number,
                    "category_id": int(generator.integers(1, 4)),
                    "bbox": [left, top, 0.15 * width, 0.1 * height],
                }
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": f"c{number}"} for number in (1, 2, 3)],
    }
    (tmp_path / "x.json").write_text(json.dumps(content))
    return DetectionImages(tmp_path / "x.json", tmp_path)


def test_a_batch_is_padded_to_its_largest(source):
    batch = DetectionReader(source, EvaluationGeometry(48, 80), training=False).read_batch(np.array([0, 3, 4, 5]), 0)
    assert batch.counts == (0, 3, 4, 0) and batch.image_ids == (100, 103, 104, 105) and batch.step_boxes == 0
    assert batch.boxes.shape == (4, 4, 4) and batch.boxes.dtype == torch.float32
    assert batch.labels.shape == (4, 4) and batch.labels.dtype == torch.int64 and batch.images.dtype == torch.uint8
    assert batch.images.shape[2:] == tuple(map(max, zip(*batch.sizes, strict=True)))
    assert batch.original_sizes == tuple(map(tuple, source.sizes[[0, 3, 4, 5]].tolist()))
    for row, count in enumerate(batch.counts):
        assert (batch.labels[row, :count] >= 0).all() and (batch.labels[row, count:] == -1).all()
        assert (batch.boxes[row, count:] == 0).all()
    # Shares of the un-padded image: the annotation's pixels by the file's size.
    left, top, right, bottom = source.boxes[source.starts[3]]
    height, width = source.sizes[3]
    expected = [
        (left + right) / 2 / width,
        (top + bottom) / 2 / height,
        (right - left) / width,
        (bottom - top) / height,
    ]
    assert batch.boxes[1, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_batch_of_empty_images(source):
    batch = DetectionReader(source, EvaluationGeometry(48, 80), training=False).read_batch(np.array([0, 5]), 0)
    assert batch.boxes.shape == (2, 0, 4) and batch.labels.shape == (2, 0) and batch.counts == (0, 0)
    assert batch.labels.dtype == torch.int64


def make_loaders(source, world_size, accumulated, length, groups=0, workers=0):
    for rank in range(world_size):
        reader = DetectionReader(source, TrainingGeometry(**SMALL), training=True, seed=3, num_workers=workers)
        order = DetectionOrder(9, 2, seed=0, groups=groups, aspects=reader.aspects, rank=rank, world_size=world_size)
        yield DetectionLoader(reader, order, step=lambda: (accumulated, length), num_workers=workers)


@pytest.mark.parametrize(
    ("world_size", "accumulated", "length", "groups"),
    [(1, 1, 4, 0), (1, 3, 4, 3), (2, 1, 2, 2), (2, 2, 2, 0), (1, 2, 3, 0), (4, 1, 1, 1)],
)
def test_step_boxes_are_those_of_all_ranks_and_micro_batches(source, world_size, accumulated, length, groups):
    # Lightning ends an optimiser step with the last batch of a pass, and may end passes before an epoch ends.
    loaders = list(make_loaders(source, world_size, accumulated, length, groups))
    seen = []
    for _ in range(4):
        passes = [[batch for batch, _ in zip(loader, range(length), strict=False)] for loader in loaders]
        for start in range(0, length, accumulated):
            step = [batch for share in passes for batch in share[start : min(start + accumulated, length)]]
            total = sum(sum(batch.counts) for batch in step)
            assert {batch.step_boxes for batch in step} == {total}
            seen.append(total)
    assert len(set(seen)) > 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_pass_gives_the_same_batches_and_steps(source, workers):
    def plain(batches):
        return [[field.tolist() if isinstance(field, torch.Tensor) else field for field in batch] for batch in batches]

    [whole] = make_loaders(source, 1, 3, 4, groups=2)
    expected = plain(list(whole) + list(whole))
    [first] = make_loaders(source, 1, 3, 4, groups=2, workers=workers)
    begun, state = [], None
    for batch in first:
        begun.append(batch)
        if len(begun) == 2:  # in the middle of an optimiser step
            state = first.state_dict()
            break
    [second] = make_loaders(source, 1, 3, 4, groups=2, workers=workers)
    second.load_state_dict(state)
    rest = list(second)
    assert plain(begun + rest + list(second)) == expected and len(rest) == 2


def test_a_file_of_another_size_is_named(source, tmp_path):
    height, width = source.sizes[2].tolist()
    noise(height, width).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "2.png")
    reader = DetectionReader(source, EvaluationGeometry(48, 80), training=False)
    message = rf"2\.png has {height} x {width} pixels, but .*x\.json says {width} x {height} of image 102, perhaps"
    with pytest.raises(ImageError, match=message):
        reader.read_batch(np.array([2]), 0)


def test_bad_files_are_left_out_or_black(source, tmp_path):
    (tmp_path / "4.png").write_bytes(b"nothing")
    indices = np.array([4, 3])
    with pytest.raises(ImageError, match=r"4\.png is not an image"):
        DetectionReader(source, EvaluationGeometry(48, 80), training=False).read_batch(indices, 0)
    skipping = DetectionReader(source, EvaluationGeometry(48, 80), training=False, on_bad_image="skip")
    batch = skipping.read_batch(indices, 0)
    assert batch.image_ids == (103,) and batch.boxes.shape == (1, 3, 4) and skipping.bad_images() == [4]
    assert batch.images.shape == (1, 3, *batch.sizes[0])
    assert "4.png is not an image" in skipping.describe(4)
    assert len(skipping.read_batch(np.array([4]), 0).labels) == 0

    training = DetectionReader(source, TrainingGeometry(**SMALL), training=True, on_bad_image="skip")
    batch = training.read_batch(indices, 0)
    assert batch.counts[0] == 0 and batch.images[0].sum() == 0 and batch.images[1].sum() > 0
    assert batch.boxes.shape[1] == batch.counts[1] and len(batch.sizes) == 2
