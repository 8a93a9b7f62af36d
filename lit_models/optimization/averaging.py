"""The mean of several states of one network."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def average_state_dicts(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    r"""Return :math:`\frac{1}{n} \sum_i w_i` of every weight, summed in float64 and given back in its own dtype.

    Averaging the last checkpoints of one run is part of the recipe of Vaswani et al. 2017, section 6.1
    (https://arxiv.org/abs/1706.03762). Integers and truth values have no mean: they must agree. Names that share one
    tensor in every state (tied weights) share one in the result. No more than two weights of float64 exist at a time,
    so states whose tensors still lie in a file need no memory.

    Args:
        states: State dictionaries with the same names, shapes and dtypes, all on one device.

    Raises:
        ValueError: There is no state, the names, shapes or dtypes differ, or integers do.
    """
    if not states:
        raise ValueError("there are no weights to average")
    first = states[0]
    for number, state in enumerate(states[1:], start=2):
        _check_same(first, state, number)
    averages: dict[str, Tensor] = {}
    seen: dict[tuple[object, ...], Tensor] = {}
    for name in first:
        values = [state[name] for state in states]
        # What was tied has one place in memory, or in the file, under all its names.
        place = tuple((value.data_ptr(), value.dtype, value.shape, value.stride()) for value in values)
        if place not in seen:
            seen[place] = _mean(name, values)
        averages[name] = seen[place]
    return averages


def _check_same(first: Mapping[str, Tensor], state: Mapping[str, Tensor], number: int) -> None:
    """Compare names, shapes and dtypes of a state with those of the first."""
    differing = sorted(first.keys() ^ state.keys())
    if differing:
        raise ValueError(f"state {number} and the first do not have the same names: {_listed(differing)}")
    kinds = [
        f"{name} ({_kind(first[name])} and {_kind(state[name])})"
        for name in first
        if _kind(first[name]) != _kind(state[name])
    ]
    if kinds:
        raise ValueError(f"weights of the first state and state {number} differ in kind: {_listed(kinds)}")


def _mean(name: str, values: Sequence[Tensor]) -> Tensor:
    if not values[0].is_floating_point():
        for number, value in enumerate(values[1:], start=2):
            if not torch.equal(values[0], value):
                raise ValueError(
                    f"{name} holds no floating-point numbers, and state {number} has others than the first"
                )
        return values[0].clone()
    total = values[0].detach().to(torch.float64, copy=True)
    for value in values[1:]:
        total += value.detach()
    return (total / len(values)).to(values[0].dtype)


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
