"""``python -m experiments attend``: pictures of what a translator attends to.

    python -m experiments attend --checkpoint runs/my_run --text "the animal did not cross the street because ..."
    python -m experiments attend --checkpoint X --text "..." --target "..." --heads all --layer all --output figures/it

Three pictures, each as PNG and PDF: the encoder's self-attention, the decoder's self-attention, and its
cross-attention. Without ``--target`` the model's own translation is shown.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from torch import Tensor

from datamodules.text.corpus import is_blank
from experiments.attention_plot import ATTENDING, READ, WRITTEN, draw_attention, readable, save
from experiments.command import CommandParser, run
from experiments.errors import UsageError
from experiments.translator import DEVICES, Translator, check_length_penalty
from lit_models.translation.search import beam_search

FORMATS = ("png", "pdf")
MOST_TOKENS = 400


def build_parser() -> CommandParser:
    """Return the parser of the command's options."""
    parser = CommandParser("python -m experiments attend", "Draw the attention of a translator for one sentence.")
    add = parser.add_argument
    add("--checkpoint", required=True, help="checkpoint file, or the directory of a run (its best, else its last)")
    add("--text", required=True, help="the source sentence")
    add("--target", help="the target sentence (default: the model's own translation)")
    add("--layer", default="last", help="a layer's number from 1, last, or all")
    add("--heads", choices=("average", "all"), default="average", help="the mean of the heads, or a panel for each")
    add(
        "--output",
        default="attention",
        metavar="PREFIX",
        help="the files are PREFIX_encoder.png, PREFIX_cross.pdf ...; its directory is made if it is missing",
    )
    add("--beam", type=int, default=5, help="beam size of the model's own translation")
    add("--length-penalty", type=float, default=0.6, metavar="ALPHA", help="GNMT length penalty of that translation")
    add("--device", choices=DEVICES, default="auto", help="where to compute")
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Check what can be checked before the checkpoint is loaded.

    Raises:
        UsageError: A value is out of its range.
    """
    if is_blank(options.text):
        raise UsageError("--text is empty: there is nothing to attend to")
    if options.target is not None and is_blank(options.target):
        raise UsageError("--target is empty; leave it out to see the model's own translation")
    if options.beam < 1:
        raise UsageError(f"--beam {options.beam}: it must be at least 1")
    if options.layer not in ("last", "all") and not (options.layer.isdecimal() and int(options.layer)):
        raise UsageError(f'--layer "{options.layer}": it must be a layer\'s number from 1, last, or all')
    check_length_penalty(options.length_penalty)
    directory = _directory(options.output)
    existing = next(parent for parent in (directory, *directory.parents) if parent.exists())
    if not existing.is_dir():
        raise UsageError(f'--output "{options.output}": "{existing}" is a file, not a directory')


def _directory(prefix: str) -> Path:
    """Return the directory of the files whose names begin with a prefix; ``figures/`` is one itself."""
    return Path(f"{prefix}_").parent.resolve()


def choose_layers(wanted: str, count: int, stack: str) -> list[int]:
    """Return the numbers, from 1, of the layers to draw.

    Raises:
        UsageError: The stack has no such layer.
    """
    if wanted == "all":
        return list(range(1, count + 1))
    number = count if wanted == "last" else int(wanted)
    if number > count:
        raise UsageError(f"--layer {number}: the {'encoder' if stack == 'encoder' else 'decoder'} has {count} layers")
    return [number]


def tokens_of(translator: Translator, options: argparse.Namespace) -> tuple[list[int], list[int]]:
    """Return the source's token ids with EOS, and the target's without: the one given, or the model's own.

    Raises:
        UsageError: The sentence is too long to draw.
    """
    [source] = translator.encode_sources([options.text])
    if source.dropped:
        print(
            f"warning: --text has {len(source.ids) + source.dropped} tokens and the network takes "
            f"{translator.max_source_length}: its end is not read",
            file=sys.stderr,
        )
    if options.target is not None:
        [target] = translator.tokenizer.encode_target([options.target])
    else:
        search = partial(beam_search, beam_size=options.beam, length_penalty=options.length_penalty)
        [[best]] = translator.translate([source.ids], search)
        target = best.tokens
        print(f"translation: {translator.tokenizer.decode_target([target])[0]}", file=sys.stderr)
    longest = max(len(source.ids), len(target) + 1)
    if longest > MOST_TOKENS:
        raise UsageError(f"the sentence has {longest} tokens; a picture of more than {MOST_TOKENS} cannot be read")
    return source.ids, target


def draw(translator: Translator, options: argparse.Namespace) -> list[Path]:
    """Write the pictures.

    Returns:
        The files, in the order of writing.
    """
    config, tokenizer = translator.network.config, translator.tokenizer
    counts = {"encoder": config.encoder_layers, "decoder": config.decoder_layers, "cross": config.decoder_layers}
    chosen = {name: choose_layers(options.layer, count, name) for name, count in counts.items()}
    source_ids, target_ids = tokens_of(translator, options)
    source = [readable(piece) for piece in tokenizer.source_pieces(source_ids)]
    written = [readable(piece) for piece in tokenizer.target_pieces([*target_ids, config.eos_id])]
    read = [readable(piece) for piece in tokenizer.target_pieces([config.bos_id, *target_ids])]
    maps = translator.attention_maps([source_ids], [target_ids])
    stacks = {
        "encoder": ("Encoder self-attention", maps.encoder, source, source, ATTENDING),
        "decoder": ("Decoder self-attention", maps.decoder, written, read, WRITTEN),
        "cross": ("Cross-attention", maps.cross, written, source, WRITTEN),
    }
    _directory(options.output).mkdir(parents=True, exist_ok=True)
    files = []
    for name, (title, layers, rows, columns, row_axis) in stacks.items():
        for layer in chosen[name]:
            weights, which = _heads(layers[layer - 1][0], options.heads)
            full_title = f"{title}, layer {layer} of {len(layers)}, {which}"
            figure = draw_attention(weights, rows, columns, full_title, row_axis=row_axis, column_axis=READ)
            suffix = f"_layer{layer}" if len(chosen[name]) > 1 else ""
            for extension in FORMATS:
                files.append(Path(f"{options.output}_{name}{suffix}.{extension}"))
                save(figure, files[-1])
    return files


def _heads(weights: Tensor, heads: str) -> tuple[Tensor, str]:
    """Return the weights ``(heads, rows, columns)``, or their mean over the heads, and how to call them."""
    count = weights.shape[0]
    return (weights, f"{count} heads") if heads == "all" else (weights.mean(0), f"mean of {count} heads")


def _command(argv: list[str]) -> None:
    options = build_parser().parse_args(argv)
    check_options(options)
    translator = Translator.load(options.checkpoint, options.device, precision="fp32")
    for file in draw(translator, options):
        print(file)


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: The words after ``attend``.

    Returns:
        The exit code.
    """
    return run(_command, argv)
