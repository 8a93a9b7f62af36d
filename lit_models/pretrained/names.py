"""Renaming of weights between a public layout and this project's, both ways."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lit_models.pretrained.family import Weights

_NUMBER = re.compile(r"(?<=[._])\d+(?=\.)")
_PARTS = ("query", "key", "value")


def rename(name: str, rows: Mapping[str, str]) -> str | None:
    """Return the other name of a weight, or None if it has none.

    Args:
        name: Such as ``"blocks.3.norm1.weight"``.
        rows: Name to name of a parameter, or of a module with ``weight`` and ``bias``; ``*`` stands for one number:
            ``{"blocks.*.norm1": "layers.*.attention_norm"}``. A row without it wins, then one for an earlier number.
    """
    for found in (None, *_NUMBER.finditer(name)):
        pattern = name if found is None else f"{name[: found.start()]}*{name[found.end() :]}"
        module, _, kind = pattern.rpartition(".")
        target = rows.get(pattern)
        if target is None and kind in ("weight", "bias") and module in rows:
            target = f"{rows[module]}.{kind}"
        if target is not None:
            return target if found is None else target.replace("*", found[0])
    return None


def to_ours(tensors: Mapping[str, Tensor], rows: Mapping[str, str], structural: Iterable[str] = ()) -> Weights:
    """Rename a checkpoint's weights, read them as float32 and stack separate query, key and value projections.

    Args:
        tensors: Weights under their own names.
        rows: Their name to ours, see :func:`rename`; the three parts of a stacked projection are called
            ``attention.query``, ``attention.key`` and ``attention.value``.
        structural: Beginnings of names that change what the network computes: one without a place is an error, where
            other weights without a place are merely unused.

    Raises:
        ValueError: If two weights claim one place, or a weight that changes the network has no place.
    """
    weights = Weights({}, {}, [])
    for name, tensor in tensors.items():
        ours = rename(name, rows)
        if ours is None:
            weights.unused.append(name)
        elif ours in weights.tensors:
            raise ValueError(f"{weights.origin[ours]!r} and {name!r} are both there, and only one can be {ours!r}")
        else:
            weights.tensors[ours], weights.origin[ours] = tensor.float(), name
    beginnings = tuple(structural)
    foreign = [name for name in weights.unused if beginnings and name.startswith(beginnings)]
    if foreign:
        more = f" and {len(foreign) - 4} more" if len(foreign) > 4 else ""
        raise ValueError(
            f"it has weights that this project's network does not have, and would compute something else without them: "
            f"{', '.join(foreign[:4])}{more}"
        )
    _stack(weights)
    return weights


def to_theirs(state: Mapping[str, Tensor], rows: Mapping[str, str], *, split: str | None = None) -> dict[str, Tensor]:
    """Rename a network's weights to a public layout.

    Args:
        state: The network's ``state_dict()``.
        rows: Their name to ours; of two names for one place, the first is given.
        split: Cut the stacked projections of the layers whose name begins so into query, key and value.

    Raises:
        ValueError: If the layout has no place for a weight.
    """
    ours: dict[str, str] = {}
    for theirs, own in rows.items():
        ours.setdefault(own, theirs)
    renamed = {}
    for name, tensor in _split(state, split).items():
        theirs_name = rename(name, ours)
        if theirs_name is None:
            raise ValueError(f"the layout has no place for {name!r}")
        renamed[theirs_name] = tensor.detach()
    return renamed


def _stack(weights: Weights) -> None:
    for name in [name for name in weights.tensors if "attention.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in _PARTS]
        for part in parts:
            if part not in weights.tensors:
                raise ValueError(f"{weights.origin[name]!r} is there, but no weight for {part!r}")
            shapes = tuple(weights.tensors[name].shape), tuple(weights.tensors[part].shape)
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"{weights.origin[part]!r} has shape {shapes[1]}, but {weights.origin[name]!r} has {shapes[0]}"
                )
        stacked = name.replace(".query.", ".query_key_value.")
        weights.tensors[stacked] = torch.cat([weights.tensors.pop(part) for part in parts])
        weights.origin[stacked] = weights.origin[name]


def _split(state: Mapping[str, Tensor], beginning: str | None) -> dict[str, Tensor]:
    parts = {}
    for name, tensor in state.items():
        if beginning is not None and name.startswith(beginning) and ".query_key_value." in name:
            for part, piece in zip(_PARTS, tensor.chunk(3), strict=True):
                parts[name.replace(".query_key_value.", f".{part}.")] = piece
        else:
            parts[name] = tensor
    return parts
