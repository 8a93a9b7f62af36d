"""The directory of one run: where it is, and the files that say what ran."""

import contextlib
import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from experiments.arguments import CONFIGS
from experiments.environment import describe_environment, describe_git
from experiments.errors import UsageError

_NAME_LINE = "# name: "
# Lies in the directory from when a new run takes it until its record is written. Of two runs one can create it.
_CLAIM = ".claim"


@dataclass(frozen=True)
class RunDirectory:
    """A run's directory.

    Attributes:
        path: The directory.
        name: ``<task>/<config>``, such as ``translation/synthetic``.
        is_new: Whether this process made it.
    """

    path: Path
    name: str
    is_new: bool

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    def free_name(self, name: str) -> Path:
        """Return the path of a file that does not exist yet: ``config.yaml``, then ``config-2.yaml`` ..."""
        path, number = self.path / name, 2
        while path.exists():
            path = self.path / f"{Path(name).stem}-{number}{Path(name).suffix}"
            number += 1
        return path

    def discard(self) -> None:
        """Remove the directory of a run that never began, if this process made it; else only the claim to it."""
        self._release()
        if self.is_new and not self.checkpoints.exists():
            shutil.rmtree(self.path, ignore_errors=True)

    def _release(self) -> None:
        with contextlib.suppress(OSError):
            Path(self.path, _CLAIM).unlink(missing_ok=True)

    def record(self, config: str, command: Sequence[str], parent: str | None, precision: str | None = None) -> Path:
        """Write ``config.yaml``, ``command.txt``, ``git.txt``, ``git.diff`` and ``environment.json``.

        A file that is there already stays: the new one gets a number.

        Args:
            config: The text of the whole configuration.
            command: The words of the command line.
            parent: Checkpoint that the run starts from, if any.
            precision: The trainer's precision, which the config may leave to the machine.

        Returns:
            The config file that was written.

        Raises:
            UsageError: A file cannot be written; none of them is left.
        """
        git, diff = describe_git()
        lines = [shlex.join(["python", "-m", "experiments", *command])]
        if parent:
            lines.append(f"# starts from: {Path(parent).resolve()}")
        files = {
            "config.yaml": f"{_NAME_LINE}{self.name}\n{config}",
            "command.txt": "\n".join(lines) + "\n",
            "git.txt": git,
            "git.diff": diff,
            "environment.json": json.dumps({**describe_environment(), "precision": precision}, indent=2) + "\n",
        }
        written: list[Path] = []
        try:
            for name, text in files.items():
                written.append(self.free_name(name))
                written[-1].write_text(text, encoding="utf-8")
        except OSError as error:
            for path in written:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            raise UsageError(f'cannot record the run in "{self.path}": {error.strerror}') from None
        self._release()
        return written[0]


def run_name(config: str | None) -> str:
    """Return ``<task>/<config>`` for a config file.

    Args:
        config: Path of the first config; one that a run wrote carries the name of that run.
    """
    if config is None:
        return "custom/unnamed"
    path = Path(config).resolve()
    if path.is_relative_to(CONFIGS):
        return path.relative_to(CONFIGS).with_suffix("").as_posix()
    with path.open(encoding="utf-8") as file:
        first = file.readline()
    return first.removeprefix(_NAME_LINE).strip() if first.startswith(_NAME_LINE) else f"custom/{path.stem}"


def create(run_dir: str | None, name: str, command: str, checkpoint: str | None) -> RunDirectory:
    """Make the directory of a run.

    Args:
        run_dir: The directory wanted, None for ``runs/<name>/<time>``.
        name: ``<task>/<config>``.
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        checkpoint: The checkpoint that the run starts from.

    Returns:
        The directory. A directory that already holds a run is taken again only to resume that very run or to
        evaluate; otherwise the name gets a number.

    Raises:
        UsageError: The directory cannot be made or written to.
    """
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if run_dir is not None:
        wanted = Path(run_dir)
        resumes = checkpoint is not None and Path(checkpoint).resolve().is_relative_to(wanted.resolve())
        if command != "fit" or resumes:
            return RunDirectory(wanted, name, _make(wanted))
    else:
        wanted = Path("runs", name, stamp if command == "fit" else f"{command}_{stamp}")
    number, path = 1, wanted
    while (is_new := _claim(path)) is None:
        number += 1
        path = wanted.with_name(f"{wanted.name}-{number}")
    if run_dir is not None and path != wanted:
        print(f'"{wanted}" holds a run already; this one goes to "{path}"')
    return RunDirectory(path, name, is_new)


def _claim(path: Path) -> bool | None:
    """Take a directory for a new run; return whether it was made for it, None if it holds another run."""
    is_new = _make(path)
    marker = path / _CLAIM
    try:
        if any(path.iterdir()):
            return None
        marker.touch(exist_ok=False)
        if any(found != marker for found in path.iterdir()):  # a run that took it, and finished its record, meanwhile
            marker.unlink()
            return None
    except FileExistsError:
        return None
    except OSError as error:
        raise UsageError(f'cannot write to the run directory "{path}": {error.strerror}') from None
    return is_new


def _make(path: Path) -> bool:
    """Make a directory; False if it existed."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        if not path.is_dir():
            raise UsageError(f'the run directory "{path}" is a file') from None
        return False
    except OSError as error:
        raise UsageError(f'cannot make the run directory "{path}": {error.strerror}') from None
    return True
