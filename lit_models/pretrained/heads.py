"""Some rows of a checkpoint's head in place of all: the 1,000 classes of ImageNet among those of ImageNet-22k."""

from dataclasses import replace
from pathlib import Path

from lit_models.pretrained.family import Source

# ImageNet's order: microsoft/Swin-Transformer, data/map22kto1k.txt.
_PUBLISHED = "data/map22kto1k.txt of https://github.com/microsoft/Swin-Transformer has those of ImageNet-22k"


def select_rows(source: Source, path: str | Path, num_classes: int | None) -> Source:
    """Return a checkpoint whose heads have the rows that a file lists, in its order.

    Args:
        source: Its weights are changed.
        path: A row, counted from 0, in each line.
        num_classes: Classes wanted, if they are; the number of lines must agree.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the checkpoint has no head, or a line is no row of it; the message has file and line.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"head_rows: there is no file {path}; {_PUBLISHED}")
    heads = [name for name in source.weights.tensors if name.startswith(source.architecture.heads)]
    if not heads or source.representation is not None:
        raise ValueError(f"head_rows was given ({path}), but the checkpoint has no head that reads the features")
    classes = source.weights.tensors[heads[0]].shape[0]
    rows = _read_rows(path, classes)
    if num_classes not in (None, len(rows)):
        raise ValueError(f"{num_classes} classes are wanted, but head_rows {path} lists {len(rows)}")
    for name in heads:
        source.weights.tensors[name] = source.weights.tensors[name][rows]
    facts, names = source.facts, source.facts.class_names
    if names is not None:
        facts = replace(facts, class_names=[names[row] for row in rows] if len(names) == classes else None)
    notice = f"the head has {len(rows)} of the checkpoint's {classes} classes, by {path}"
    return replace(source, facts=replace(facts, notices=(*facts.notices, notice)))


def _read_rows(path: Path, classes: int) -> list[int]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines:
        raise ValueError(f"head_rows: {path} is empty; {_PUBLISHED}")
    for number, line in enumerate(lines, 1):
        if not line.strip().isdecimal() or int(line) >= classes:
            raise ValueError(
                f"head_rows: {path}, line {number}: {line[:40]!r} is no row of a head of {classes} classes "
                f"(0 to {classes - 1})"
            )
    return [int(line) for line in lines]
