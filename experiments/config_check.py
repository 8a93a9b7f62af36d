"""Check configuration files and overrides against the signatures they fill, before anything is built.

jsonargparse checks them too, but its messages name only the last part of a key and dump every member of a union.
This check walks the YAML nodes, so a message names the whole key, the file and the line, and the near miss. What it
cannot judge (a type it does not know) it leaves to jsonargparse.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from experiments.arguments import Arguments, Override, needs_checkpoint
from experiments.errors import UsageError, near_miss
from experiments.type_hints import (
    accepts_list,
    accepts_mapping,
    accepts_scalar,
    describe,
    factory_classes,
    import_class,
    item_hint,
    members,
    object_classes,
    parameters_of,
    structured,
    tuple_length,
    without_first,
)

_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


@dataclass(frozen=True)
class Source:
    """Where a value was written: a file, or the command line if ``file`` is None."""

    file: str | None

    def at(self, node: yaml.Node) -> str:
        """Return `` (file, line n)``, empty for the command line."""
        return f" ({self.file}, line {node.start_mark.line + 1})" if self.file else ""


COMMAND_LINE = Source(None)


def check(parser: ArgumentParser, arguments: Arguments) -> dict[type, str]:
    """Check every config file and override of a command.

    Args:
        parser: The parser of the command (not the one above it).
        arguments: The command line.

    Returns:
        The classes that will be built from a section, and its key.

    Raises:
        UsageError: Unknown or repeated key, wrong type, unknown class, or a file that is not YAML.
    """
    documents = [(Source(config), _compose(config)) for config in arguments.configs]
    merged: dict[str, Any] = {}
    for _, node in documents:
        _merge(merged, _plain(node))
    overrides = [override for override in arguments.overrides if override.value is not None]
    for override in overrides:
        _merge(merged, _plain(_override_node(override)))
    checker = _Checker(parser, merged)
    for source, node in documents:
        if not isinstance(node, yaml.MappingNode):
            raise UsageError(f'"{source.file}" holds no keys: a config is a mapping such as "model: ..."')
        checker.sections(node, "", source)
    for override in overrides:
        if not override.key.endswith("help") and override.key != "print_config":
            checker.sections(_override_node(override), "", COMMAND_LINE)
    return checker.built


def check_settings(command: str, settings: Any, checkpoint: Mapping[str, Any]) -> None:
    """Check what several values say together, once they are parsed.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        settings: The parsed configuration of the command.
        checkpoint: What ``--ckpt_path`` holds, empty without one.

    Raises:
        UsageError: A value that would be overridden, would run for ever, or could do nothing.
    """
    trainer = settings.trainer
    if trainer.default_root_dir is not None:
        raise UsageError('"trainer.default_root_dir" is the run directory: use "run_dir"')
    if settings.auto_precision and trainer.precision is not None:
        raise UsageError('"auto_precision" chooses "trainer.precision": give one of them')
    if trainer.log_every_n_steps is not None and trainer.log_every_n_steps < 1:
        raise UsageError(f'"trainer.log_every_n_steps" must be at least 1; got {trainer.log_every_n_steps}')
    if command != "fit":
        if not checkpoint:
            raise UsageError(needs_checkpoint(command))
        return
    endless = trainer.max_steps == -1 and trainer.max_epochs in (-1, None) and trainer.max_time is None
    if endless and not trainer.fast_dev_run and not trainer.overfit_batches:
        raise UsageError('training has no end: set "trainer.max_steps"')
    if settings.test_after_fit and trainer.enable_checkpointing is False:
        raise UsageError(
            '"test_after_fit" needs the checkpoint of the run: "trainer.enable_checkpointing" must not be false'
        )
    if "averaged" in checkpoint.get("heddle", {}):
        raise UsageError(
            f'"{settings.ckpt_path}" is an average of checkpoints, from which no training resumes; '
            "give one of those that it was made of"
        )
    mixed = settings.auto_precision or "mixed" in str(trainer.precision)
    if mixed and trainer.gradient_clip_val and _is_fused(settings.model):
        raise UsageError(
            '"trainer.gradient_clip_val" and a fused optimizer exclude each other in mixed precision: leave out one of '
            'it and "fused: true"'
        )
    every, accumulated = trainer.val_check_interval, trainer.accumulate_grad_batches or 1
    if isinstance(every, int) and every % accumulated and not trainer.fast_dev_run:
        raise UsageError(
            f'"trainer.val_check_interval" ({every} batches) must be a multiple of "trainer.accumulate_grad_batches" '
            f"({accumulated}): validation and its checkpoint would fall within an optimizer step; "
            f"the next multiple is {-(-every // accumulated) * accumulated}"
        )
    step = checkpoint.get("global_step", -1)
    if 0 <= trainer.max_steps <= step:
        raise UsageError(
            f'nothing to train: the checkpoint "{settings.ckpt_path}" is at step {step}, '
            f'"trainer.max_steps" is {trainer.max_steps}'
        )


def _compose(config: str) -> yaml.Node | None:
    try:
        return yaml.compose(Path(config).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError:
        raise UsageError(f'"{config}" is not a text file in UTF-8') from None
    except OSError as error:
        raise UsageError(f'cannot read "{config}": {error.strerror}') from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{config}{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{config}: not valid YAML: {' '.join(str(error).split())}") from None


def _override_node(override: Override) -> yaml.MappingNode:
    """Turn ``a.b=value`` into the nodes of ``{a: {b: value}}``."""
    mark = yaml.Mark("command line", 0, 0, 0, None, 0)
    try:
        node = yaml.compose(override.value or "''", Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        node = None
    if node is None or isinstance(node, yaml.ScalarNode):
        node = yaml.ScalarNode("tag:yaml.org,2002:str", override.value or "", mark, mark)
    for part in reversed(override.key.split(".")):
        key = yaml.ScalarNode("tag:yaml.org,2002:str", part, mark, mark)
        node = yaml.MappingNode("tag:yaml.org,2002:map", [(key, node)], mark, mark)
    assert isinstance(node, yaml.MappingNode)
    return node


def _plain(node: yaml.Node | None) -> Any:
    """Return the dicts, lists and texts of a node."""
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    return node.value if node is not None else None


def _merge(into: dict[str, Any], data: Any) -> None:
    """Lay ``data`` over ``into``, section by section, short forms in full: the last word on a class path counts."""
    if not isinstance(data, Mapping):
        return
    for name, value in data.items():
        key, section = name.removesuffix("+"), into
        if ("class_path" in into or "init_args" in into) and key not in _CLASS_KEYS:
            section = into.setdefault("init_args", {})  # --model.dim is short for --model.init_args.dim
        present = section.get(key)
        if name.endswith("+"):
            section[key] = [*_as_list(present), *_as_list(value)]
        elif isinstance(value, Mapping):
            if isinstance(present, list) and present:
                present[-1] = _as_section(present[-1])  # --trainer.callbacks.monitor is of the last callback
                _merge(present[-1], value)
            else:
                section[key] = _as_section(present)
                _merge(section[key], value)
        elif isinstance(present, dict) and isinstance(value, str):
            present["class_path"] = value  # "--model Class" on the command line
        else:
            section[key] = value


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _as_section(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"class_path": value} if isinstance(value, str) else {}


def _is_fused(model: Any) -> bool:
    """Whether a module's section asks for a fused optimizer."""
    optimizer = model.get("init_args", {}).get("optimizer") or {}
    return isinstance(optimizer, Mapping | Namespace) and bool((optimizer.get("init_args") or {}).get("fused"))


class _Checker:
    """Walks one document; ``merged`` is what all documents together say, for class paths given elsewhere."""

    def __init__(self, parser: ArgumentParser, merged: Mapping[str, Any]) -> None:
        self._merged = merged
        self.built: dict[type, str] = {}
        self._hints = {action.dest: getattr(action, "_typehint", None) for action in parser._actions}

    def sections(self, node: yaml.MappingNode, path: str, source: Source) -> None:
        """Check the keys that the parser itself knows: ``trainer.max_steps``, ``model``, ``seed_everything``."""
        depth = len(path.split(".")) if path else 0
        known = {
            dest.split(".")[depth]
            for dest in self._hints
            if len(dest.split(".")) > depth and dest.split(".")[:depth] == (path.split(".") if path else [])
        } - {"help", "config", "print_config"}
        for key, value in self._entries(node, path, source):
            name = key.value.removesuffix("+")
            full = _join(path, name)
            if name not in known:
                raise UsageError(self._unknown(full, name, known, source, key))
            if full in self._hints and self._hints[full] is not None:
                self.value(value, self._hints[full], full, source)
            elif isinstance(value, yaml.MappingNode):
                self.sections(value, full, source)
            elif isinstance(value, yaml.ScalarNode) and value.tag != "tag:yaml.org,2002:null" and source.file:
                if not (Path(source.file).parent / value.value).is_file() and not Path(value.value).is_file():
                    raise UsageError(f'"{full}" must be a mapping; got "{value.value}"{source.at(value)}')

    def _entries(
        self, node: yaml.MappingNode, path: str, source: Source
    ) -> Iterable[tuple[yaml.ScalarNode, yaml.Node]]:
        """Return the (key, value) nodes, having refused a key that is given twice: YAML would drop the first."""
        first: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value)
            if name in first:
                lines = f"lines {first[name].start_mark.line + 1} and {key.start_mark.line + 1}"
                raise UsageError(f'"{_join(path, name)}" is given twice ({source.file}, {lines})')
            first[name] = key
            if name != "<<":
                yield key, value

    @staticmethod
    def _unknown(full: str, name: str, known: Iterable[str], source: Source, node: yaml.Node) -> str:
        options = sorted(known)
        hint = near_miss(name, options) or (f"; known: {', '.join(options)}" if len(options) <= 12 else "")
        return f'unknown key "{full}"{source.at(node)}{hint}'

    def value(self, node: yaml.Node, hint: Any, path: str, source: Source) -> None:
        """Check one value against its type."""
        if isinstance(node, yaml.MappingNode):
            self._mapping(node, hint, path, source)
        elif isinstance(node, yaml.SequenceNode):
            if not accepts_list(hint):
                raise UsageError(f'"{path}" must be {describe(hint)}; got a list{source.at(node)}')
            length = tuple_length(hint)
            if length is not None and len(node.value) != length:
                raise UsageError(f'"{path}" must be {describe(hint)}; got a list of {len(node.value)}{source.at(node)}')
            item = item_hint(hint)
            for index, child in enumerate(node.value):
                if item is not None:
                    self.value(child, item, f"{path}[{index}]", source)
        elif isinstance(node, yaml.ScalarNode) and not accepts_scalar(hint, node.value, quoted=bool(node.style)):
            bases = [*object_classes(hint), *factory_classes(hint)]
            if not bases:
                raise UsageError(f'"{path}" must be {describe(hint)}; got "{node.value}"{source.at(node)}')
            if not Path(node.value).is_file():  # a file may hold the section
                import_class(node.value, bases, path, source.at(node))

    def _mapping(self, node: yaml.MappingNode, hint: Any, path: str, source: Source) -> None:
        for kind in structured(hint):
            self.built[kind] = path
            return self._fields(node, parameters_of(kind)[0], path, source)
        factories = factory_classes(hint)
        bases = [*object_classes(hint), *factories]
        if not bases:
            if all(member in (int, float, bool, str, type(None)) for member in members(hint)):
                key = next(iter(self._entries(node, path, source)), (node, node))[0]
                name = key.value if isinstance(key, yaml.ScalarNode) else ""
                raise UsageError(f'unknown key "{_join(path, name)}": "{path}" is {describe(hint)}{source.at(node)}')
            return None
        if accepts_mapping(hint) and not any(key.value in _CLASS_KEYS for key, _ in self._entries(node, path, source)):
            return None
        self._object(node, bases, path, source, factories)
        return None

    def _object(
        self, node: yaml.MappingNode, bases: Sequence[type], path: str, source: Source, factories: Mapping[type, int]
    ) -> None:
        """Check ``{class_path: ..., init_args: {...}}``; the code gives the first arguments of a factory itself."""
        entries = {key.value: (key, value) for key, value in self._entries(node, path, source)}
        # Elsewhere in the documents: an item of a list has no key of its own to be found by.
        merged = self._lookup(path) if "[" not in path else None
        elsewhere = merged.get("class_path") if isinstance(merged, Mapping) else merged
        if "class_path" in entries:
            place, name = source.at(entries["class_path"][1]), entries["class_path"][1].value
        elif isinstance(elsewhere, str):
            if Path(elsewhere).is_file():  # "--model FILE" gave the section
                return
            place, name = "", elsewhere
        else:
            key = next(iter(entries), "")
            hint = near_miss(key, _CLASS_KEYS) if key not in _CLASS_KEYS else ""
            raise UsageError(f'"{path}" needs "class_path" and "init_args"; got "{key}"{source.at(node)}{hint}')
        found = import_class(name, bases, f"{path}.class_path", place)
        if found is None:
            return
        positional = max(factories.values(), default=0)
        if isinstance(found, type):
            self.built[found] = path
            positional = next((count for kind, count in factories.items() if issubclass(found, kind)), 0)
        fields, complete = without_first(found, positional), parameters_of(found)[1]
        for key, value in entries.values():
            if key.value == "init_args" and isinstance(value, yaml.MappingNode):
                self._fields(value, fields, f"{path}.init_args", source, complete)
            elif key.value in _CLASS_KEYS:
                continue
            elif source.file is None:  # --model.learning_rate is short for --model.init_args.learning_rate
                short = yaml.MappingNode(node.tag, [(key, value)], node.start_mark, node.end_mark)
                self._fields(short, fields, path, source, complete)
            elif key.value in fields:
                raise UsageError(f'"{path}.{key.value}" belongs under "{path}.init_args"{source.at(key)}')
            else:
                raise UsageError(self._unknown(f"{path}.{key.value}", key.value, _CLASS_KEYS, source, key))

    def _fields(
        self, node: yaml.MappingNode, fields: Mapping[str, Any], path: str, source: Source, complete: bool = True
    ) -> None:
        for key, value in self._entries(node, path, source):
            name = key.value.removesuffix("+")
            if name in fields:
                self.value(value, fields[name], _join(path, name), source)
            elif complete:
                raise UsageError(self._unknown(_join(path, name), name, fields, source, key))

    def _lookup(self, path: str) -> Any:
        found: Any = self._merged
        for part in path.split("."):
            inner = found.get("init_args") if isinstance(found, Mapping) else None
            if isinstance(inner, Mapping) and part not in _CLASS_KEYS:
                found = inner.get(part, found.get(part))
            else:
                found = found.get(part) if isinstance(found, Mapping) else None
            if isinstance(found, list):
                found = found[-1] if found else None
        return found


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
