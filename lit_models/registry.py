"""Networks that a checkpoint may name, built from plain values."""

from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from typing import Any


def build_named(
    networks: Mapping[str, str], kind: str, name: str, num_classes: int, settings: Mapping[str, Any]
) -> Any:
    """Build a network from its class name and its settings.

    Args:
        networks: Class name to module: what a checkpoint holds is looked up here, never imported by its own words.
        kind: What messages call a network.
        name: A key of ``networks``.
        num_classes: First argument of the constructor.
        settings: The others.

    Raises:
        ValueError: If there is no such network, or if it has no such settings.
    """
    if name not in networks:
        raise ValueError(f"there is no {kind} {name!r}; there are {', '.join(networks)}")
    network = getattr(import_module(networks[name]), name)
    known = list(signature(network).parameters)[1:]
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"{name} has no settings {', '.join(unknown)}; it has {', '.join(known)}")
    return network(num_classes, **settings)
