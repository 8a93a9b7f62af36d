"""The attention of a translator as pictures: encoder, decoder and cross-attention of one sentence pair."""

import argparse
import sys
from functools import partial
from pathlib import Path

from torch import Tensor

from datamodules.text.corpus import is_blank
from experiments.attend import choose_layers, save_figure
from experiments.attention_plot import ATTENDING, READ, WRITTEN, draw_attention, readable
from experiments.errors import UsageError
from experiments.translator import Translator, check_length_penalty
from lit_models.translation.search import beam_search

MOST_TOKENS = 400


def check_options(options: argparse.Namespace) -> None:
    """Check what concerns a translator before its checkpoint is loaded, and fill in the defaults.

    Raises:
        UsageError: A value is out of its range.
    """
    options.beam = 5 if options.beam is None else options.beam
    options.length_penalty = 0.6 if options.length_penalty is None else options.length_penalty
    if is_blank(options.text):
        raise UsageError("--text is empty: there is nothing to attend to")
    if options.target is not None and is_blank(options.target):
        raise UsageError("--target is empty; leave it out to see the model's own translation")
    if options.beam < 1:
        raise UsageError(f"--beam {options.beam}: it must be at least 1")
    check_length_penalty(options.length_penalty)


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
    chosen = {
        name: choose_layers(options.layer, count, "encoder" if name == "encoder" else "decoder")
        for name, count in counts.items()
    }
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
    files = []
    for name, (title, layers, rows, columns, row_axis) in stacks.items():
        for layer in chosen[name]:
            weights, which = _heads(layers[layer - 1][0], options.heads)
            full_title = f"{title}, layer {layer} of {len(layers)}, {which}"
            figure = draw_attention(weights, rows, columns, full_title, row_axis=row_axis, column_axis=READ)
            suffix = f"_layer{layer}" if len(chosen[name]) > 1 else ""
            files += save_figure(figure, options.output, f"{name}{suffix}")
    return files


def _heads(weights: Tensor, heads: str) -> tuple[Tensor, str]:
    """Return the weights ``(heads, rows, columns)``, or their mean over the heads, and how to call them."""
    count = weights.shape[0]
    return (weights, f"{count} heads") if heads == "all" else (weights.mean(0), f"mean of {count} heads")


def write_pictures(path: Path, options: argparse.Namespace) -> list[Path]:
    """Write the pictures of the translator in a checkpoint file; return the files, in the order of writing."""
    return draw(Translator.load(str(path), options.device, precision="fp32"), options)
