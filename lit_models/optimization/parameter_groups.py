"""Which parameters are decayed, and at which share of the learning rate each layer is trained."""

from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer


class Layered(Protocol):
    """What a network says of its parameters, by their names."""

    num_layers: int

    def no_weight_decay(self) -> set[str]:
        """Names that are not decayed."""

    def layer_of(self, name: str) -> int:
        """Depth of a parameter: 0 for the stem, ``num_layers + 1`` for the head."""


def parameter_groups(network: nn.Module, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Sort the trained parameters into groups for an optimiser.

    Not decayed are parameters of one dimension or none, biases, and those that ``network.no_weight_decay()`` names
    (DeiT: position embeddings and tokens). With layer-wise decay the group of layer l also has a key ``lr_scale`` of
    ``layer_decay ** (num_layers + 1 - l)`` (Clark et al. 2020, BEiT), see :func:`set_learning_rates`.

    Names are compared without what wrappers put before them (``module.``, ``_orig_mod.``): DeiT itself decayed what
    it should not for a while because its optimiser was built from the wrapped network.

    Args:
        network: A network with the :class:`Layered` protocol, wrapped or not.
        layer_decay: Factor from layer to layer, in (0, 1]; 1 for none.

    Returns:
        Groups of an optimiser; those that are not decayed have ``weight_decay`` 0, the others none of their own.

    Raises:
        ValueError: If ``layer_decay`` is outside (0, 1], or the network has no layers to decay over.
    """
    bare: Any = _unwrapped(network)
    if not 0.0 < layer_decay <= 1.0:
        raise ValueError(f"layer_decay must be above 0 and at most 1, got {layer_decay}")
    if layer_decay < 1.0 and bare.num_layers == 0:
        raise ValueError(f"layer_decay is {layer_decay}, but {type(bare).__name__} names no layers: use 1")
    excluded = {_bare_name(name) for name in bare.no_weight_decay()}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for full_name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        name = _bare_name(full_name)
        decayed = parameter.ndim > 1 and not name.endswith("bias") and name not in excluded
        layer = bare.layer_of(name) if layer_decay < 1.0 else 0
        group = groups.setdefault((layer, decayed), {"params": []})
        group["params"].append(parameter)
        if not decayed:
            group["weight_decay"] = 0.0
        if layer_decay < 1.0:
            group["lr_scale"] = layer_decay ** (bare.num_layers + 1 - layer)
    return list(groups.values())


def set_learning_rates(optimizer: Optimizer, factor: float = 1.0) -> float:
    """Scale a new optimiser's learning rate, and each group's by its ``lr_scale``.

    Args:
        optimizer: An optimiser of :func:`parameter_groups`, before a scheduler sees it.
        factor: Of all rates, such as the effective batch by that for which the rate was given.

    Returns:
        The peak: the scaled rate of a group without ``lr_scale``.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor * group.get("lr_scale", 1.0)
    return float(optimizer.defaults["lr"]) * factor


def _unwrapped(network: nn.Module) -> nn.Module:
    """Return the network within DistributedDataParallel and torch.compile."""
    inner: Any = network
    while list(inner._modules) in (["module"], ["_orig_mod"]):
        (inner,) = inner._modules.values()
    return inner


def _bare_name(name: str) -> str:
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name
