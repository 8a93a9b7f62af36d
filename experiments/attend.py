"""``python -m experiments attend``: pictures of what a translator, an image classifier or a detector attends to.

    python -m experiments attend --checkpoint runs/my_run --text "the animal did not cross the street because ..."
    python -m experiments attend --checkpoint X --text "..." --target "..." --heads all --layer all --output figures/it
    python -m experiments attend --checkpoint deit_small.pth --image photo.jpg --output figures/photo
    python -m experiments attend --checkpoint detr-r50-e632da11.pth --image photo.jpg --points 120,80 300,200

Of a translator three pictures, each as PNG and PDF: the encoder's self-attention, the decoder's self-attention, and its
cross-attention. Without ``--target`` the model's own translation is shown.

Of a ViT, DeiT or CaiT the attention of the class token (and of the distillation token) over the image, and the rollout
through all layers, each as PNG and PDF; the weights themselves are in ``PREFIX_weights.npz``.

Of a DETR the attention of the decoder's last layer over the image for each object that it finds, and that of the
encoder's last layer from points of the image, likewise.
"""

import argparse
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.checkpoint_path import DEVICES
from experiments.classifier import add_preprocessing_options, checkpoint_task, find_weights
from experiments.command import CommandParser, run
from experiments.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf")
TASKS = {"translation": "text", "classification": "image", "detection": "image"}
"""Task of a checkpoint -> option that says what to attend to."""
_ONLY_WITH = {
    "text": ("target", "beam", "length_penalty"),
    "image": ("image_size", "crop", "crop_mode", "points", "threshold"),
}


def build_parser() -> CommandParser:
    """Return the parser of the command's options."""
    parser = CommandParser(
        "python -m experiments attend",
        "Draw the attention of a translator for a sentence, or of a ViT or a DETR for an image.",
    )
    add = parser.add_argument
    add("--checkpoint", required=True,
        help="checkpoint file, a run's directory (its best, else its last), or public weights")  # fmt: skip
    add("--text", help="the source sentence")
    add("--image", metavar="FILE", help="the image")
    add("--layer", default="last", help="a layer's number from 1, last, or all")
    add("--heads", choices=("average", "all"), default="average", help="the mean of the heads, or a panel for each")
    add(
        "--output",
        default="attention",
        metavar="PREFIX",
        help="the files are PREFIX_encoder.png, PREFIX_class.pdf ...; its directory is made if it is missing",
    )
    add("--target", help="with --text: the target sentence (default: the model's own translation)")
    add("--beam", type=int, help="with --text: beam size of the model's own translation (default: 5)")
    add("--length-penalty", type=float, metavar="ALPHA",
        help="with --text: GNMT length penalty of that translation (default: 0.6)")  # fmt: skip
    add_preprocessing_options(parser, "with --image: ")
    add("--points", nargs="+", metavar="X,Y",
        help="of a detector: points to look at its encoder from, in pixels (default: the best objects)")  # fmt: skip
    add("--threshold", type=float, metavar="SCORE",
        help="of a detector: least score of the objects (default: 0.7, 0.3 of sigmoids)")  # fmt: skip
    add("--device", choices=DEVICES, default="auto", help="where to compute")
    return parser


def check_options(options: argparse.Namespace) -> str:
    """Check what can be checked before the checkpoint is loaded.

    Returns:
        ``text`` or ``image``: what to attend to.

    Raises:
        UsageError: A value is out of its range, or an option belongs to the other task.
    """
    if options.text is None and options.image is None:
        raise UsageError(
            "what to attend to is missing: --text for a translator, --image for an image classifier or a detector"
        )
    if options.text is not None and options.image is not None:
        raise UsageError("--text is for a translator, --image for a classifier or a detector; leave one of the two out")
    kind, other = ("text", "image") if options.text is not None else ("image", "text")
    for name in _ONLY_WITH[other]:
        if getattr(options, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} goes with --{other}, not with --{kind}")
    if options.layer not in ("last", "all") and not (options.layer.isdecimal() and int(options.layer)):
        raise UsageError(f'--layer "{options.layer}": it must be a layer\'s number from 1, last, or all')
    directory = _directory(options.output)
    existing = next(parent for parent in (directory, *directory.parents) if parent.exists())
    if not existing.is_dir():
        raise UsageError(f'--output "{options.output}": "{existing}" is a file, not a directory')
    return kind


def _directory(prefix: str) -> Path:
    """Return the directory of the files whose names begin with a prefix; ``figures/`` is one itself."""
    return Path(f"{prefix}_").parent.resolve()


def choose_layers(wanted: str, count: int, stack: str) -> list[int]:
    """Return the numbers, from 1, of the layers to draw.

    Args:
        wanted: The option's value.
        count: Layers that there are.
        stack: What has them, for the error.

    Raises:
        UsageError: The stack has no such layer.
    """
    if wanted == "all":
        return list(range(1, count + 1))
    number = count if wanted == "last" else int(wanted)
    if number > count:
        raise UsageError(f"--layer {number}: the {stack} has {count} layers")
    return [number]


def save_figure(figure: "Figure", prefix: str, name: str) -> list[Path]:
    """Write a figure as ``PREFIX_name`` in each format; return the files.

    Raises:
        OSError: A file cannot be written.
    """
    from experiments.attention_plot import save

    _directory(prefix).mkdir(parents=True, exist_ok=True)
    files = [Path(f"{prefix}_{name}.{extension}") for extension in FORMATS]
    for file in files:
        save(figure, file)
    return files


def _command(argv: list[str]) -> None:
    options = build_parser().parse_args(argv)
    kind = check_options(options)
    pictures = import_module("experiments.attend_translation" if kind == "text" else "experiments.attend_image")
    pictures.check_options(options)
    path = find_weights(options.checkpoint)
    task = checkpoint_task(path)
    if task is not None and TASKS.get(task) != kind:
        right = TASKS.get(task)
        instead = f"give --{right} instead of --{kind}" if right else f"attend draws those of {', '.join(TASKS)}"
        raise UsageError(f'the task of "{path}" is {task}: {instead}')
    if kind == "image" and _is_detector(path, task):
        pictures = import_module("experiments.attend_detection")
        pictures.check_options(options)
    elif kind == "image":
        _refuse_detector_options(options)
    for file in pictures.write_pictures(path, options):
        print(file)


def _is_detector(path: Path, task: str | None) -> bool:
    """Return whether a checkpoint, or a file of public weights, is one of a detector."""
    if task is not None:
        return task == "detection"
    from lit_models.pretrained.detr import is_public_detector

    return is_public_detector(path)


def _refuse_detector_options(options: argparse.Namespace) -> None:
    """Raise a UsageError if an option of detectors is given for another network."""
    for name in ("points", "threshold"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name} is for detectors; the checkpoint is one of an image classifier")


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: The words after ``attend``.

    Returns:
        The exit code.
    """
    return run(_command, argv)
