"""Ask type hints what a configuration may hold: which keys, which classes, which scalars."""

import dataclasses
import enum
import functools
import importlib
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from experiments.errors import UsageError, near_miss

_PLAIN = (int, float, complex, str, bytes, bool, dict, list, tuple, set, frozenset, type(None), object)
_LISTS = (list, tuple, set, frozenset, Iterable, Sequence)
# Their classes may be named without their module; they hand on names lazily, so that an import is cheap.
_PROJECT = (
    "lit_models",
    "lit_models.classification",
    "lit_models.detection",
    "datamodules",
    "datamodules.image",
    "experiments.callbacks",
)


def members(hint: Any) -> list[Any]:
    """Return the members of a union, or the hint alone; no config holds the tensor of ``float | Tensor``."""
    if get_origin(hint) is Annotated:
        return members(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        found = [inner for member in get_args(hint) for inner in members(member)]
        return [kind for kind in found if (getattr(kind, "__module__", ""), _name(kind)) != ("torch", "Tensor")]
    return [hint]


def structured(hint: Any) -> list[type]:
    """Return the dataclasses in a hint."""
    return [member for member in members(hint) if isinstance(member, type) and dataclasses.is_dataclass(member)]


def object_classes(hint: Any) -> list[type]:
    """Return the classes of a hint that a config builds from ``class_path`` and ``init_args``."""
    return [
        member
        for member in members(hint)
        if isinstance(member, type)
        and get_origin(member) is None
        and not issubclass(member, (*_PLAIN[:-1], enum.Enum, Path))
        and member is not object
        and not dataclasses.is_dataclass(member)
    ]


def factory_classes(hint: Any) -> dict[type, int]:
    """Return the classes that the callables of a hint make, and how many arguments the code gives by position.

    A config describes ``Callable[[Iterable], Optimizer]`` with the class path of an optimizer and what remains, or
    with that of a class whose objects are called.
    """
    found: dict[Any, int] = {}
    for member in members(hint):
        if get_origin(member) is Callable:
            arguments, result = get_args(member)
            for kind in object_classes(result):
                found[kind] = len(arguments) if isinstance(arguments, list) else 0
    if found:
        found[Callable] = 0
    return found


def without_first(function: Callable[..., Any], count: int) -> dict[str, Any]:
    """Return the parameters of a class or function, less those that the code gives by position."""
    given = list(inspect.signature(function).parameters)[:count]
    return {name: kind for name, kind in parameters_of(function)[0].items() if name not in given}


def accepts_mapping(hint: Any) -> bool:
    """Whether a type accepts a mapping of any keys beside the objects that a config may describe in its place."""
    return any(kind is dict or get_origin(kind) in (dict, Mapping) for kind in members(hint))


def tuple_length(hint: Any) -> int | None:
    """Return how many items a list must have, None if that is not fixed."""
    lists = [member for member in members(hint) if get_origin(member) in _LISTS or member in _LISTS]
    if len(lists) != 1 or get_origin(lists[0]) is not tuple or Ellipsis in get_args(lists[0]):
        return None
    return len(get_args(lists[0]))


def item_hint(hint: Any) -> Any:
    """Return the type of a list's items, None if it is unknown or differs from item to item."""
    for member in members(hint):
        if get_origin(member) in _LISTS and get_args(member):
            kinds = [argument for argument in get_args(member) if argument is not Ellipsis]
            return kinds[0] if all(kind == kinds[0] for kind in kinds) else None
    return None


@functools.cache
def parameters_of(function: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Return what a class or function accepts by name.

    Returns:
        The types by name (Any where there is no hint), and whether the list is complete; it is not where
        ``**kwargs`` go to a place that signatures do not tell.
    """
    if not isinstance(function, type):
        return _parameters(function)
    found: dict[str, Any] = {}
    for klass in function.__mro__:
        if "__init__" not in vars(klass):
            continue
        own, complete = _parameters(klass.__init__)  # type: ignore[misc]
        found = {**own, **found}
        if complete:
            return found, True
    return found, False


def _parameters(function: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    try:
        hints = get_type_hints(function)
    except Exception:  # a forward reference to a module that is imported only for type checkers
        hints = {}
    kinds = inspect.Parameter
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY) and p.name != "self"]
    return {p.name: hints.get(p.name, Any) for p in named}, all(p.kind != kinds.VAR_KEYWORD for p in parameters)


def import_class(name: str, bases: Sequence[type], key: str, place: str) -> Callable[..., Any] | None:
    """Import what a ``class_path`` names.

    Args:
        name: A dotted path, or the bare name of a subclass that is imported already or is one of the project's.
        bases: The classes that are accepted.
        key: The key whose value the name is, for messages.
        place: File and line, for messages.

    Returns:
        The class or function; None where it is no class and cannot be judged here.

    Raises:
        UsageError: There is no such module or class, or it is of another kind.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f'"{key}": there is no class "{name}"{place}')
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        ours = {found: package for package in _PROJECT for found in importlib.import_module(package).__all__}
        if name in ours:  # importing it makes it a subclass that jsonargparse finds
            getattr(importlib.import_module(ours[name]), name)
        known = {found.__name__: found for base in bases for found in _subclasses(base)}
        if name in known:
            return known[name]
        raise UsageError(f'"{key}": there is no class "{name}"{place}{near_miss(name, [*known, *ours])}')
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UsageError(f'"{key}": there is no module "{error.name}"{place}') from None
    found = getattr(module, attribute, None)
    if found is None:
        names = getattr(module, "__all__", None) or dir(module)
        hint = near_miss(attribute, names)
        raise UsageError(f'"{key}": "{module_name}" has no class "{attribute}"{place}{hint}')
    if isinstance(found, type) and not issubclass(found, tuple(bases)):
        wanted = " or ".join(base.__name__ for base in bases)
        raise UsageError(f'"{key}": "{name}" is not a {wanted}{place}')
    return found if callable(found) else None


def _subclasses(base: type) -> list[type]:
    children: list[type] = base.__subclasses__()
    return [base] + [found for child in children for found in _subclasses(child)]


def accepts_scalar(hint: Any, text: str, quoted: bool = False) -> bool:
    """Whether a type accepts a scalar; True where only jsonargparse can tell.

    Args:
        hint: The type; of one that a config builds from a class path, whether jsonargparse knows the class.
        text: The scalar as written, without its quotes.
        quoted: Whether it was written in quotes, which makes it a text and not a number.
    """
    kinds = members(hint)
    if any(kind is Any or kind is str for kind in kinds):
        return True
    if any(not _is_supported(kind) for kind in kinds) and not factory_classes(hint):
        return True
    is_text = not any(get_origin(kind) is Literal for kind in kinds) and not object_classes(hint)
    if quoted and is_text and not factory_classes(hint):
        return True
    parser = ArgumentParser(exit_on_error=False, print_config=None)
    try:
        parser.add_argument("--value", type=hint)
    except ValueError:  # a kind of hint that jsonargparse does not take alone
        return True
    try:
        parser.parse_args([f"--value={text}"])
    except ArgumentError:
        return False
    return True


def _is_supported(kind: Any) -> bool:
    if isinstance(kind, type) and (issubclass(kind, Path) or dataclasses.is_dataclass(kind)):
        return False
    return isinstance(kind, type) or get_origin(kind) in (Literal, list, tuple, dict, set, Iterable, Sequence)


def describe(hint: Any) -> str:
    """Return a type in words, such as ``an int or null``."""
    kinds = members(hint)
    literals = list(dict.fromkeys(value for kind in kinds if get_origin(kind) is Literal for value in _literals(kind)))
    if len(literals) > 3:
        rest = [_word(kind) for kind in kinds if get_origin(kind) is not Literal and kind is not type(None)]
        words = dict.fromkeys([*rest, f"one of {', '.join(literals)}"])
    else:
        words = dict.fromkeys(_word(kind) for kind in kinds if kind is not type(None))
    if type(None) in kinds:
        words["null"] = None
    return " or ".join(words)


def _literals(kind: Any) -> list[str]:
    return [f'"{value}"' if isinstance(value, str) else str(value) for value in get_args(kind)]


def accepts_list(hint: Any) -> bool:
    """Whether a type accepts a list; True where only jsonargparse can tell."""
    return not all(kind in (int, float, bool, str, type(None)) or get_origin(kind) is Literal for kind in members(hint))


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))


def _word(kind: Any) -> str:
    names: Mapping[Any, str] = {int: "an int", float: "a number", bool: "true or false", str: "a text"}
    if kind in names:
        return names[kind]
    if get_origin(kind) is Literal:
        return " or ".join(_literals(kind))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return " or ".join(f'"{value.name}"' for value in kind)
    if get_origin(kind) in _LISTS:
        return f"a list of {len(get_args(kind))}" if get_origin(kind) is tuple else "a list"
    if get_origin(kind) is dict or kind is dict:
        return "a mapping"
    expression = getattr(kind, "_expression", None)  # jsonargparse's restricted numbers
    if expression:
        kind_name = getattr(getattr(kind, "_type", None), "__name__", "number")
        return f"{'an' if kind_name == 'int' else 'a'} {kind_name} {expression.replace('v', '').strip()}"
    return f"a {_name(kind)}"
