"""``python -m experiments average``: one checkpoint with the mean weights of several.

    python -m experiments average --output averaged.ckpt --run runs/my_run --last 5
    python -m experiments average --output averaged.ckpt --run runs/my_run --best 3
    python -m experiments average --output averaged.ckpt --checkpoints a.ckpt b.ckpt

The result serves ``translate``, ``classify``, ``attend``, ``validate``, ``test`` and ``predict``; no training resumes
from it.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from experiments.command import CommandParser, run
from experiments.errors import UsageError
from experiments.translator import DATA_KEY
from lit_models.checkpoints import CHECKPOINT_KEY, difference
from lit_models.classification.checkpoint import DATA_KEY as IMAGES_KEY
from lit_models.optimization import average_state_dicts

# What belongs to training, and to none of the averaged states.
_DROPPED = ("optimizer_states", "lr_schedulers", "weight_averaging")
# What two checkpoints of one network may differ in.
_VARYING = ("settings", "tokens_seen", "images_seen", "averaged")


def build_parser() -> CommandParser:
    """Return the parser of the command's options."""
    parser = CommandParser("python -m experiments average", "Average the weights of several checkpoints.")
    parser.add_argument("--output", required=True, metavar="FILE", help="the checkpoint to write")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoints", nargs="+", metavar="FILE", help="the checkpoints to average")
    source.add_argument("--run", metavar="RUN", help="the directory of a run whose checkpoints are averaged")
    number = parser.add_mutually_exclusive_group()
    number.add_argument("--last", type=int, metavar="N", help="with --run: its N newest, see checkpoint.keep_last")
    number.add_argument("--best", type=int, metavar="N", help="with --run: its N best, see checkpoint.keep_best")
    return parser


def choose(options: argparse.Namespace) -> list[Path]:
    """Return the files that the options mean.

    Raises:
        UsageError: There are not so many, or the options contradict each other.
    """
    asked = options.last if options.last is not None else options.best
    if options.run is None:
        if asked is not None:
            raise UsageError("--last and --best choose among the checkpoints of a run: give --run too")
        paths = [Path(name) for name in options.checkpoints]
        if len({path.resolve() for path in paths}) < max(2, len(paths)):
            raise UsageError("--checkpoints needs at least two files, each given once")
        return paths
    if asked is None:
        raise UsageError("--run needs --last N or --best N")
    option, kind = ("--last", "last") if options.last is not None else ("--best", "best")
    if asked < 1:
        raise UsageError(f"{option} {asked}: it must be at least 1")
    found = ranked(Path(options.run), kind)
    if len(found) < asked:
        raise UsageError(
            f'{option} {asked}: "{options.run}" has {len(found)} such checkpoints; '
            f"a run keeps as many as checkpoint.keep_{kind} says"
        )
    return found[:asked]


def ranked(directory: Path, kind: str) -> list[Path]:
    """Return the checkpoints of a run, the newest or the best first.

    Args:
        directory: The run, or its folder of checkpoints.
        kind: ``last`` or ``best``.

    Raises:
        UsageError: There is no such directory.
        ValueError: One of the files is not a checkpoint.
    """
    if not directory.is_dir():
        raise UsageError(f'--run "{directory}" is not a directory')
    inner = directory / "checkpoints"
    files = sorted((inner if inner.is_dir() else directory).glob(f"{kind}*.ckpt"))
    read = {path: read_checkpoint(path, mmap=True) for path in files}
    newest_first = sorted(files, key=lambda path: _step(read[path]), reverse=True)
    if kind == "best":
        return _by_score(newest_first, read[newest_first[0]]) if files else []
    # last.ckpt may be the same state as the newest of the others.
    return list({_step(read[path]): path for path in reversed(newest_first)}.values())[::-1]


def average_files(paths: Sequence[Path], output: Path) -> None:
    """Write a checkpoint with the mean weights of several; everything else is that of the newest.

    Args:
        paths: Checkpoints of one network with one tokenizer or the same classes.
        output: The file, replaced only when the new one is whole.

    Raises:
        FileNotFoundError: One of the files is missing.
        ValueError: One is not a checkpoint, or they are of different networks, tokenizers or classes.
        CheckpointWriteError: The file could not be written.
    """
    checkpoints = [read_checkpoint(path, mmap=True) for path in paths]
    for path, checkpoint in zip(paths[1:], checkpoints[1:], strict=True):
        _check_same(paths[0], checkpoints[0], path, checkpoint)
    newest = max(checkpoints, key=_step)
    averaged = {key: value for key, value in newest.items() if key not in _DROPPED}
    averaged["state_dict"] = average_state_dicts([checkpoint["state_dict"] for checkpoint in checkpoints])
    averaged[CHECKPOINT_KEY] = {**newest.get(CHECKPOINT_KEY, {}), "averaged": [path.name for path in paths]}
    AtomicCheckpointIO().save_checkpoint(averaged, output)


def _step(checkpoint: Mapping[str, Any]) -> int:
    return int(checkpoint.get("global_step", 0))


def _by_score(files: list[Path], newest: Mapping[str, Any]) -> list[Path]:
    """Order best checkpoints by the scores that the newest of them knows."""
    states = newest.get("callbacks", {})
    state: Mapping[str, Any] = next((value for key, value in states.items() if key.startswith("BestCheckpoint")), {})
    scores = {Path(path).name: float(score) for path, score in state.get("best_k_models", {}).items()}
    known = [path for path in files if path.name in scores]
    if not known:
        return files
    higher_is_better = float(state["best_model_score"]) == max(scores.values())
    return sorted(known, key=lambda path: scores[path.name], reverse=higher_is_better)


def _check_same(path: Path, checkpoint: Mapping[str, Any], other_path: Path, other: Mapping[str, Any]) -> None:
    """Raise if two checkpoints are not of one network and one tokenizer, or the same classes."""
    networks = [
        {key: value for key, value in item.get(CHECKPOINT_KEY, {}).items() if key not in _VARYING}
        for item in (checkpoint, other)
    ]
    lines = [
        line.replace("checkpoint ", "", 1).replace("config ", "not ", 1)
        for line in difference(networks[1], networks[0])
    ]
    if lines:
        raise ValueError(f'"{other_path}" is of another network than "{path}" ({"; ".join(lines[:3])})')
    tokenizers = [dict(item.get(DATA_KEY, {}).get("tokenizer", {})) for item in (checkpoint, other)]
    for tokenizer in tokenizers:
        tokenizer.pop("dropout", None)  # of training alone
    if not _equal(*tokenizers):
        raise ValueError(f'"{other_path}" has another tokenizer than "{path}"')
    classes = [list(item.get(IMAGES_KEY, {}).get("class_names", [])) for item in (other, checkpoint)]
    if classes[0] != classes[1]:
        first = next((f" ({one}, not {two})" for one, two in zip(*classes, strict=False) if one != two), "")
        raise ValueError(f'"{other_path}" has other classes than "{path}"{first}')


def _equal(one: Any, two: Any) -> bool:
    """Compare plain values that may hold tensors."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(_equal(value, two[key]) for key, value in one.items())
    return type(one) is type(two) and bool(one == two)


def _average(argv: list[str]) -> None:
    options = build_parser().parse_args(argv)
    output = Path(options.output)
    if output.is_dir():
        raise UsageError(f'--output "{output}" is a directory; give the name of a file')
    paths = choose(options)
    if output.resolve() in [path.resolve() for path in paths]:
        raise UsageError(f'--output "{output}" is one of the checkpoints to average')
    average_files(paths, output)
    print(f"averaged {', '.join(path.name for path in paths)}")
    print(f"checkpoint     {output}")


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: The words after ``average``.

    Returns:
        The exit code, see :func:`experiments.command.run`.
    """
    return run(_average, argv)
