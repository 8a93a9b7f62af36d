"""What each source does at evaluation and when it resizes: the one table, used where a file does not say otherwise."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from lit_models.pretrained.family import Facts, Rule, Size

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# A source's own code: facebookresearch/deit (eval crop, bicubic without antialias), timm's default_cfgs and
# resample_abs_pos_embed, Hugging Face's image processors of google/vit-* and facebook/deit-*, torchvision's weights and
# interpolate_embeddings, google-research/vision_transformer (squash; scipy.ndimage.zoom of order 1),
# microsoft/Swin-Transformer (256/224 until 224, squash in its configs of 384 pixels), the image processors of
# microsoft/swin* and the weights of torchvision's swin_t and swin_v2_t.
RULES: Mapping[str, Rule] = {
    # epsilon of the layer norms; mean and std; crop, its mode and interpolation; how a position table is resized
    "deit": Rule(1e-6, *_IMAGENET, 0.875, "center", "bicubic", position_antialias=False),
    "deit3": Rule(1e-6, *_IMAGENET, 1.0, "center", "bicubic", position_antialias=False),
    "cait": Rule(1e-6, *_IMAGENET, 1.0, "center", "bicubic", position_antialias=False),
    "timm": Rule(1e-6, *_IMAGENET, 0.9, "center", "bicubic", position_antialias=True),
    "timm deit3": Rule(1e-6, *_IMAGENET, 1.0, "center", "bicubic", position_antialias=True),
    "timm cait": Rule(1e-6, *_IMAGENET, 1.0, "center", "bicubic", position_antialias=True),
    "hugging face vit": Rule(1e-12, *_HALF, 1.0, "squash", "bilinear", position_antialias=False),
    "hugging face deit": Rule(1e-12, *_IMAGENET, 0.875, "center", "bicubic", position_antialias=False),
    "torchvision": Rule(1e-6, *_IMAGENET, 0.875, "center", "bilinear", position_antialias=False, position_corners=True),
    "google": Rule(1e-6, *_HALF, 1.0, "squash", "bilinear", False, position_mode="bilinear", position_corners=True),
    "swin": Rule(1e-5, *_IMAGENET, 0.875, "center", "bicubic", False, large_crop_mode="squash", padding="microsoft"),
    "timm swin": Rule(1e-5, *_IMAGENET, 0.9, "center", "bicubic", False, padding="timm"),
    "hugging face swin": Rule(1e-5, *_IMAGENET, 1.0, "squash", "bicubic", False, padding="microsoft"),
    "hugging face swin v2": Rule(1e-5, *_IMAGENET, 1.0, "squash", "bicubic", False, padding="fixed"),
    "torchvision swin": Rule(1e-5, *_IMAGENET, 224 / 232, "center", "bicubic", False, padding="torchvision"),
    "torchvision swin v2": Rule(1e-5, *_IMAGENET, 256 / 260, "center", "bicubic", False, padding="torchvision"),
}
_KNOWN = {"crop_mode": ("center", "squash"), "interpolation": ("bicubic", "bilinear")}
_WHOLE_IMAGE_FROM = 384
_IMAGENET_21K = (21841, 21843)


def preprocessing(rule: Rule, facts: Facts, image_size: Size) -> dict[str, Any]:
    """Return how images are prepared for evaluation, with the fields of ``datamodules.image``'s ``Preprocessing``.

    What the file says wins over the source's rule. From 384 pixels on the rules keep the whole image.
    """
    large = min(image_size) >= _WHOLE_IMAGE_FROM
    by_rule = {
        "crop": 1.0 if large else rule.crop,
        "crop_mode": rule.large_crop_mode if large and rule.large_crop_mode else rule.crop_mode,
        "interpolation": rule.interpolation,
        "mean": rule.mean,
        "std": rule.std,
    }
    height, width = image_size
    return {"image_size": height if height == width else image_size, **by_rule, **facts.preprocessing}


def stated(where: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what a file states of its preprocessing, and notices of what it states and nobody here can do.

    Args:
        where: The file or entry, for the notices.
        values: Some of ``crop``, ``crop_mode``, ``interpolation``, ``mean``, ``std``; None where it is silent.

    Raises:
        ValueError: If a mean or a standard deviation is not three numbers, or a crop is not in (0, 1].
    """
    said, notices = {}, []
    for name, value in values.items():
        if value is None or value == "":
            continue
        if name in ("mean", "std"):
            value = tuple(float(channel) for channel in value)
            if len(value) != 3:
                raise ValueError(f"{where} has the {name} {value}; three numbers are expected")
        elif name == "crop" and not 0 < value <= 1:
            raise ValueError(f"{where} has the crop {value}; a fraction in (0, 1] is expected")
        elif value not in _KNOWN.get(name, (value,)):
            notices.append(
                f"{where} has {name} {value!r}, for which there is none here; the source's usual one is used"
            )
            continue
        said[name] = value
    return said, tuple(notices)


@cache
def imagenet_class_names() -> tuple[str, ...]:
    """Return the names of the 1,000 classes of ImageNet-1k, in the order of their WordNet ids."""
    from torchvision.models import ViT_B_16_Weights

    return tuple(ViT_B_16_Weights.DEFAULT.meta["categories"])


def class_names(facts: Facts, num_classes: int, kept: bool) -> list[str] | None:
    """Return the names of the classes of a head that was kept, or None where nobody knows them."""
    if not kept:
        return None
    if facts.class_names is not None:
        return list(facts.class_names) if len(facts.class_names) == num_classes else None
    return list(imagenet_class_names()) if num_classes == 1000 else None


def is_imagenet_21k(num_classes: int) -> bool:
    """Return whether a head of so many classes is one of ImageNet-21k."""
    return num_classes in _IMAGENET_21K
