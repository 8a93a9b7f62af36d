"""The constructor's arguments of ``SwinTransformer``, read off its weights, and other windows for them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isqrt
from typing import Any, overload

from torch import Tensor
from torch.nn import functional

from lit_models.classification.network import Classifier
from lit_models.pretrained.architectures import mlp_ratio, patch_embedding
from lit_models.pretrained.family import Architecture, Facts, Rule, Size, Wanted, Weights, Windows

# Of the first published SwinV2, swinv2_tiny_patch4_window8_256.
_PUBLISHED_V2_WINDOW = 8
_LAYER = re.compile(r"stages\.(\d+)\.layers\.(\d+)\.")


def complete(weights: Weights, facts: Facts, wanted: Wanted) -> Facts:
    """Return the facts with every stage's windows, and with the size of the images.

    V1's windows are the size of its tables. V2's leave no trace in its weights: they are what the file says, else what
    the person tells, else those of the published networks.

    Raises:
        ValueError: If what the person tells contradicts the file, or cannot be understood.
    """
    stages, told, trained = _told(weights, wanted)
    notices, pretrained = list(facts.notices), facts.pretrained_windows
    if _version(weights) == 1:
        if trained is not None:
            raise ValueError("pretrained_window_size was given, but this is a Swin V1, which has no position MLP")
        windows = tuple(_window_of_table(weights, stage, (facts.windows, told)) for stage in range(stages))
    elif facts.windows is not None:
        windows = facts.windows
        if trained not in (None, pretrained or windows):
            raise ValueError(
                f"pretrained_window_size {plain_windows(trained)} was given, but the file says "
                f"{plain_windows(pretrained or windows)}"
            )
    else:
        windows = trained or told or ((_PUBLISHED_V2_WINDOW,) * 2,) * stages
        if trained is None:
            wish = "taken as the one it was trained with" if told else "assumed: give window_size if it is another"
            notices.append(f"the file does not say its windows: window_size {plain_windows(windows)} is {wish}")
    if told not in (None, windows):
        how = "the bias tables are resized" if _version(weights) == 1 else "the position MLP gives the new bias"
        notices.append(f"window_size {plain_windows(windows)} becomes {plain_windows(told)}: {how}")
    image_size = facts.image_size
    if image_size is None:
        stride = patch_embedding(weights)[1][0] * 2 ** (stages - 1)
        image_size = windows[-1][0] * stride, windows[-1][1] * stride
        if wanted.image_size is None:
            notices.append(f"the file does not say its image size: {image_size[0]} is that of one window in the end")
    return replace(facts, windows=windows, pretrained_windows=pretrained, image_size=image_size, notices=tuple(notices))


def settings(weights: Weights, facts: Facts, rule: Rule, image_size: Size | None) -> dict[str, Any]:
    """Return the arguments of ``SwinTransformer`` with the windows of the weights.

    Args:
        weights: Under this project's names.
        facts: Completed, see :func:`complete`.
        rule: Of the source.
        image_size: Unused: the network takes images of any size.

    Raises:
        ValueError: If shapes contradict each other, or are of a network that this project does not have.
    """
    dim, patch_size = patch_embedding(weights)
    if patch_size[0] != patch_size[1]:
        raise ValueError(f"patches are {patch_size[0]} x {patch_size[1]} pixels; only square ones are supported")
    version, depths = _version(weights), _depths(weights)
    bias = "query_bias" if version == 2 else "query_key_value.bias"
    return {
        "version": version,
        "dim": dim,
        "depths": depths,
        "num_heads": _num_heads(weights),
        "window_size": plain_windows(facts.windows),
        "patch_size": patch_size[0],
        "mlp_ratio": mlp_ratio(weights, dim, "stages.0.layers.0"),
        "qkv_bias": f"stages.0.layers.0.attention.{bias}" in weights.tensors,
        "norm_eps": rule.norm_eps if facts.norm_eps is None else facts.norm_eps,
        "padding": rule.padding,
        "pretrained_window_size": plain_windows(facts.pretrained_windows),
        "unshifted_stages": _unshifted(facts, patch_size[0]) if rule.padding == "fixed" else None,
    }


def change(weights: Weights, described: Mapping[str, Any], wanted: Wanted, rule: Rule | None = None) -> dict[str, Any]:
    """Adapt the weights to other windows and return the network's arguments with them.

    The tables of V1 are resized. The position MLP of V2 stays as it is and is told the windows it was trained with.
    """
    stages = len(described["depths"])
    old: Windows = described["window_size"]
    new, old_windows = per_stage("window_size", wanted.window_size, stages), per_stage("window_size", old, stages)
    if new is None or new == old_windows:
        return dict(described)
    changed = dict(described) | {"window_size": plain_windows(new)}
    if described["padding"] == "fixed":  # for windows that are no more; at the size of a square image it is the same
        changed |= {"padding": "microsoft", "unshifted_stages": None}
    if described["version"] == 2:
        return changed | {"pretrained_window_size": described["pretrained_window_size"] or old}
    for name, table in weights.tensors.items():
        if name.endswith(".bias_table"):
            stage = int(name.split(".")[1])
            weights.tensors[name] = resize_table(table, old_windows[stage], new[stage])
    return changed


def windows_of(network: Classifier) -> tuple[Size, ...]:
    """Return (rows, columns) of each stage's windows of a Swin."""
    windows: Windows = network.settings["window_size"]
    return per_stage("window_size", windows, len(network.settings["depths"]))


def with_windows(network: Classifier, window_size: Windows) -> Classifier:
    """Return a Swin with other windows and the weights of a given one, see :func:`change`."""
    weights = Weights(dict(network.state_dict()), {}, [])
    settings = change(weights, network.settings, Wanted(window_size=window_size))
    changed = type(network)(network.num_classes, **settings)
    changed.load_state_dict(weights.tensors)
    return changed.train(network.training)


def resize_table(table: Tensor, old: Size, new: Size) -> Tensor:
    """Resize a table of relative positions to another window: bicubic for each head, as microsoft/Swin-Transformer.

    Args:
        table: ((2 · rows - 1) · (2 · columns - 1), heads).
        old: (rows, columns) of its window.
        new: (rows, columns) of the other.
    """
    grid = table.T.unflatten(1, (2 * old[0] - 1, 2 * old[1] - 1))[None]
    grid = functional.interpolate(grid, (2 * new[0] - 1, 2 * new[1] - 1), mode="bicubic", align_corners=False)
    return grid[0].flatten(1).T.contiguous()


@overload
def per_stage(name: str, windows: Windows, stages: int) -> tuple[Size, ...]: ...


@overload
def per_stage(name: str, windows: Windows | None, stages: int) -> tuple[Size, ...] | None: ...


def per_stage(name: str, windows: Windows | None, stages: int) -> tuple[Size, ...] | None:
    """Return (rows, columns) of each stage's windows from any way to write them; None for None.

    Raises:
        ValueError: If they are no windows, or not one for each stage.
    """
    if windows is None:
        return None
    each = [windows] * stages if isinstance(windows, int) else list(windows)
    pairs = [(side, side) if isinstance(side, int) else tuple(side) for side in each]
    if len(pairs) != stages or any(len(sides) != 2 or min(sides) < 1 for sides in pairs):
        raise ValueError(
            f"{name} {windows} was given: one side, or one side or (rows, columns) for each of {stages} stages is "
            "expected"
        )
    return tuple(pairs)  # type: ignore[arg-type]


def plain_windows(windows: Sequence[Size] | None) -> Any:
    """Return windows in the shortest way to write them: one number if they are all the same and square."""
    if windows is None:
        return None
    sides = tuple(rows if rows == columns else (rows, columns) for rows, columns in windows)
    return sides[0] if isinstance(sides[0], int) and len({*sides}) == 1 else sides


def windows_within(window: Size, image_size: Size, patch_size: int, stages: int) -> tuple[Size, ...]:
    """Return each stage's windows for images of one size: no larger than its map."""
    maps = [[side // (patch_size * 2**stage) for side in image_size] for stage in range(stages)]
    return tuple((min(window[0], rows), min(window[1], columns)) for rows, columns in maps)


def _told(weights: Weights, wanted: Wanted) -> tuple[int, tuple[Size, ...] | None, tuple[Size, ...] | None]:
    """Return the number of stages, and the windows and the windows of training that a person gave."""
    stages, heads = len(_depths(weights)), _num_heads(weights)
    told_heads = (wanted.num_heads,) if isinstance(wanted.num_heads, int) else wanted.num_heads
    if told_heads is not None and tuple(told_heads) != heads:
        raise ValueError(f"num_heads {wanted.num_heads} was given, but the stages have {heads}")
    told = per_stage("window_size", wanted.window_size, stages)
    return stages, told, per_stage("pretrained_window_size", wanted.pretrained_window_size, stages)


def _unshifted(facts: Facts, patch_size: int) -> int:
    """Return how many stages have a map of no more rows than a window, for images of the size that the file says."""
    assert facts.image_size is not None and facts.windows is not None
    rows = facts.image_size[0] // patch_size
    return sum(rows // 2**stage <= window[0] for stage, window in enumerate(facts.windows))


def _version(weights: Weights) -> int:
    return 2 if "stages.0.layers.0.attention.logit_scale" in weights.tensors else 1


def _depths(weights: Weights) -> tuple[int, ...]:
    depths: dict[int, int] = {}
    for found in map(_LAYER.match, weights.tensors):
        if found is not None:
            stage, layer = int(found[1]), int(found[2])
            depths[stage] = max(depths.get(stage, 0), layer + 1)
    return tuple(depths.get(stage, 0) for stage in range(1 + max(depths, default=-1)))


def _num_heads(weights: Weights) -> tuple[int, ...]:
    """Return the heads of each stage: columns of the table, or scales."""
    axis, name = (0, "logit_scale") if _version(weights) == 2 else (1, "bias_table")
    stages = range(len(_depths(weights)))
    return tuple(weights.shape(f"stages.{stage}.layers.0.attention.{name}", axis + 1)[axis] for stage in stages)


def _window_of_table(weights: Weights, stage: int, told: Sequence[tuple[Size, ...] | None]) -> Size:
    """Return the window of a stage's first table: a square, unless one that was told fits and is none."""
    name = f"stages.{stage}.layers.0.attention.bias_table"
    rows = weights.shape(name, 2)[0]
    for windows in (windows for windows in told if windows is not None):
        height, width = windows[stage]
        if (2 * height - 1) * (2 * width - 1) == rows:
            return windows[stage]
    side = isqrt(rows)
    if side * side == rows and side % 2:
        return (side + 1) // 2, (side + 1) // 2
    raise ValueError(
        f"{weights.origin[name]!r} has {rows} rows, which no square window has: give the window_size of the "
        "checkpoint, (rows, columns) for each stage"
    )


SWIN = Architecture("SwinTransformer", complete, settings, change, ("head.",))
