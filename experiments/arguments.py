"""Read a command line before Lightning does: configs first, overrides after, and what is missing named early."""

from dataclasses import dataclass
from pathlib import Path

from experiments.errors import UsageError, near_miss

CONFIGS = Path(__file__).resolve().parent / "configs"
_FLAGS = ("-h", "--help")


@dataclass(frozen=True)
class Override:
    """One ``--key value`` of the command line.

    Attributes:
        key: Dotted key without dashes; a trailing ``+`` appends to a list.
        value: The text given, None if there was none.
    """

    key: str
    value: str | None


@dataclass(frozen=True)
class Arguments:
    """A command line taken apart.

    Attributes:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        configs: The files given with ``-c``, in order.
        overrides: The other options, in order.
        rest: Words that belong to no option.
    """

    command: str
    configs: list[str]
    overrides: list[Override]
    rest: list[str]

    def option(self, key: str) -> str | None:
        """Return the last value given for a key, None if there is none."""
        values = [override.value for override in self.overrides if override.key == key]
        return values[-1] if values else None

    @property
    def asks_for_help(self) -> bool:
        """Whether only a text is wanted."""
        return any(word in _FLAGS for word in self.rest) or any(
            override.key.endswith("help") for override in self.overrides
        )

    def command_line(self) -> list[str]:
        """Return the words for the parser: configs first, so that an override never loses to a file."""
        words = [self.command]
        for config in self.configs:
            words += ["-c", config]
        for override in self.overrides:
            words.append(f"--{override.key}" if override.value is None else f"--{override.key}={override.value}")
        return words + self.rest


def shipped_configs() -> list[str]:
    """Return the paths of the shipped configs; deeper folders hold parts of configs, which do not run alone."""
    return sorted(_relative(path) for path in CONFIGS.glob("*/*.yaml"))


def _relative(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def split(argv: list[str]) -> Arguments:
    """Take a command line apart.

    Args:
        argv: Words that begin with the command's name.

    Raises:
        UsageError: ``-c`` without a file.
    """
    configs: list[str] = []
    overrides: list[Override] = []
    rest: list[str] = []
    words = list(argv[1:])
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name in ("-c", "--config"):
            if not equals and (not words or words[0].startswith("--")):
                raise UsageError(f"{name} needs the path of a configuration file")
            configs.append(value if equals else words.pop(0))
        elif name in _FLAGS or not name.startswith("--"):
            rest.append(word)
        elif equals or name == "--print_config" or not words or words[0].startswith("--"):
            overrides.append(Override(name[2:], value if equals else None))
        else:
            overrides.append(Override(name[2:], words.pop(0)))
    return Arguments(argv[0], configs, overrides, rest)


def complete(arguments: Arguments) -> Arguments:
    """Check the files that are named and find the config of a checkpoint's run.

    Returns:
        The arguments, with ``<run directory>/config.yaml`` of the checkpoint as config if none was given.

    Raises:
        UsageError: No config, or a config or checkpoint that is not there.
    """
    if arguments.asks_for_help:
        return arguments
    configs = list(arguments.configs)
    checkpoint = arguments.option("ckpt_path")
    if arguments.command != "fit" and checkpoint is None and not configs:
        raise UsageError(needs_checkpoint(arguments.command))
    if checkpoint is not None and checkpoint not in ("null", "None"):
        check_checkpoint_path(checkpoint)
        beside = Path(checkpoint).resolve().parent.parent / "config.yaml"
        if not configs and arguments.option("model") is None:
            if not beside.is_file():
                raise UsageError(f"{arguments.command} needs -c CONFIG: there is no {_relative(beside)}")
            configs = [_relative(beside)]
    if not configs and arguments.option("model") is None:
        listed = ", ".join(shipped_configs()) or "none"
        raise UsageError(f"{arguments.command} needs a configuration, -c CONFIG; shipped with Heddle: {listed}")
    for config in configs:
        _check_config_path(config)
    return Arguments(arguments.command, configs, arguments.overrides, arguments.rest)


def needs_checkpoint(command: str) -> str:
    """Return what to say when a command that evaluates has no weights."""
    return f"{command} needs --ckpt_path CHECKPOINT: without one it would use random weights"


def _check_config_path(config: str) -> None:
    path = Path(config)
    if path.is_file():
        return
    if path.is_dir():
        inside = sorted(_relative(found) for found in path.rglob("*.yaml"))
        raise UsageError(f'"{config}" is a directory; its configs: {", ".join(inside) or "none"}')
    siblings = [str(path.parent / found.name) for found in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    hint = near_miss(str(path), siblings + shipped_configs())
    if not hint:
        by_stem = {Path(found).stem: found for found in shipped_configs()}
        hint = near_miss(path.stem, by_stem)
        for stem, found in by_stem.items():
            hint = hint.replace(f'"{stem}"', f'"{found}"')
    raise UsageError(f'there is no config file "{config}"{hint}')


def check_checkpoint_path(checkpoint: str) -> None:
    """Raise if a checkpoint is not a file.

    Raises:
        UsageError: With the nearest file that exists.
    """
    path = Path(checkpoint)
    if path.is_file():
        return
    for candidate in (path / "checkpoints" / "last.ckpt", path / "last.ckpt"):
        if candidate.is_file():
            raise UsageError(f'"{checkpoint}" is a directory; did you mean "{candidate}"?')
    siblings = [str(found) for found in path.parent.glob("*.ckpt")] if path.parent.is_dir() else []
    raise UsageError(f'there is no checkpoint "{checkpoint}"{near_miss(str(path), siblings)}')
