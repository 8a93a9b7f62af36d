"""Dispatch ``python -m experiments COMMAND`` and import no more than that command needs."""

import importlib
import importlib.util
import sys
from pathlib import Path

from experiments.arguments import complete, split
from experiments.errors import UsageError, near_miss

# command -> (module whose ``main(argv) -> int`` runs it, one line for --help)
COMMANDS = {
    "fit": ("experiments.cli", "train a network: fit -c CONFIG [--key value ...]"),
    "validate": ("experiments.cli", "run the validation split: validate --ckpt_path CHECKPOINT [-c CONFIG]"),
    "test": ("experiments.cli", "run the test split: test --ckpt_path CHECKPOINT [-c CONFIG]"),
    "predict": ("experiments.cli", "write predictions: predict --ckpt_path CHECKPOINT [-c CONFIG]"),
    "translate": ("experiments.translate", "translate lines: translate --checkpoint CHECKPOINT < lines"),
    "classify": ("experiments.classify", "tell what images show: classify --checkpoint CHECKPOINT IMAGE ..."),
    "detect": ("experiments.detect", "find objects: detect --checkpoint CHECKPOINT IMAGE ..."),
    "attend": (
        "experiments.attend",
        "draw attention maps: attend --checkpoint CHECKPOINT (--text TEXT | --image FILE)",
    ),
    "average": ("experiments.average", "average checkpoints: average --output FILE --run RUN --last N"),
    "bench": ("experiments.bench", "measure speed against other libraries: bench translation"),
}
LIGHTNING_COMMANDS = ("fit", "validate", "test", "predict")


def foreign_kernels() -> str | None:
    """Return a message if ``import kernels`` would find another distribution's package of that name."""
    root = Path(__file__).resolve().parent.parent
    spec = importlib.util.find_spec("kernels")
    if spec is None:
        return f'the package "kernels" is missing beside {root / "experiments"}; install with: pip install -e .'
    found = Path(spec.origin).resolve().parent if spec.origin else None
    if found == root / "kernels":
        return None
    return (
        f'"import kernels" finds {found}, which belongs to another distribution; '
        f"run from {root}, or remove the other one with: pip uninstall kernels"
    )


def usage() -> str:
    """Return the text of ``--help``."""
    lines = [f"  {name:<10} {line}" for name, (_, line) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m experiments COMMAND [arguments]",
            "",
            *lines,
            "",
            "python -m experiments COMMAND --help describes one; HEDDLE_TRACEBACK=1 shows where an error arose.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; those of the process if None.

    Returns:
        The exit code, see :mod:`experiments.errors`.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    command = arguments[0]
    if command not in COMMANDS:
        print(
            f'error: unknown command "{command}"{near_miss(command, COMMANDS)} (there are: {", ".join(COMMANDS)})',
            file=sys.stderr,
        )
        return 2
    clash = foreign_kernels()
    if clash:
        print(f"error: {clash}", file=sys.stderr)
        return 2
    if command not in LIGHTNING_COMMANDS:
        return int(importlib.import_module(COMMANDS[command][0]).main(arguments[1:]) or 0)
    try:
        # A missing file is told at once, not after the seconds that importing Lightning takes.
        complete(split(arguments))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(importlib.import_module(COMMANDS[command][0]).main(arguments) or 0)


def run() -> int:
    """Run one command; Ctrl-C while it is imported, which takes seconds, is no traceback."""
    try:
        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run())
