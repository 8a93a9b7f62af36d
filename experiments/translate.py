"""``python -m experiments translate``: lines in, translations out, in order and in constant memory.

    echo "the cat sleeps ." | python -m experiments translate --checkpoint runs/my_run
    python -m experiments translate --checkpoint X --input news.en --output news.de --beam 5
    python -m experiments translate --checkpoint X --input news.en --json --n-best 3 --alignments

Lines are read in chunks; within a chunk sentences of like length share a batch, and the translations leave in the order
of the lines. An empty line stays empty.

The fields of a JSON line: ``source``, ``translations`` (best first, each with ``text``, ``score``, ``log_prob``,
``finished``, ``tokens``, and ``alignment`` as pairs of a source and a target token's number, counted from 0) and, with
alignments, ``source_tokens``. A line of an n-best list: the line's number, counted from 1, the text, and the score.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO, get_args

import torch

from datamodules.text.corpus import is_blank
from experiments.checkpoint_path import DEVICES
from experiments.command import CommandParser, run
from experiments.errors import UsageError
from experiments.line_io import open_output, read_chunks
from experiments.translator import PRECISIONS, Alignment, Search, Source, Translator, check_length_penalty
from lit_models.translation.hypotheses import Hypothesis, LengthPenaltyKind
from lit_models.translation.sampling import check_sampling, sample_search
from lit_models.translation.search import beam_search

EMPTY = Hypothesis(tokens=[], score=0.0, log_prob=0.0, finished=True)
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
LENGTH_PENALTY = 0.6
LARGEST_SEED = 2**63 - 1
SAMPLING_DEFAULTS = {"top_k": 0, "top_p": 1.0, "temperature": 1.0, "seed": 0}


def build_parser() -> CommandParser:
    """Return the parser of the command's options."""
    parser = CommandParser("python -m experiments translate", "Translate lines with a checkpoint.")
    add = parser.add_argument
    add("--checkpoint", required=True, help="checkpoint file, or the directory of a run (its best, else its last)")
    add("--input", help="file of source lines; standard input if not given")
    add("--output", help="file to write, complete or not at all; standard output if not given")
    add("--beam", type=int, help="beam size; 1 is greedy search (default: 5, or N of --n-best if that is more)")
    add("--length-penalty", type=float, metavar="ALPHA",
        help=f"strength of the length normalisation (default: {LENGTH_PENALTY})")  # fmt: skip
    add("--length-penalty-kind", choices=get_args(LengthPenaltyKind), default="gnmt",
        help="gnmt: ((5 + length) / 6)^ALPHA, power: length^ALPHA, none: 1")  # fmt: skip
    add(
        "--n-best", type=int, default=1, metavar="N", help="translations of each line; as text: line ||| text ||| score"
    )
    add("--json", action="store_true", help="one JSON object for each line, with scores and tokens")
    add(
        "--alignments", action="store_true", help="with --json: the source token that each target token attends to most"
    )
    add("--sample", action="store_true", help="draw translations at random instead of searching the best")
    add("--top-k", type=int, help="with --sample: draw from this many most probable tokens (default: all)")
    add("--top-p", type=float, help="with --sample: draw from the smallest set with this probability (default: 1.0)")
    add("--temperature", type=float, help="with --sample: below 1 is bolder, above 1 more varied (default: 1.0)")
    add("--seed", type=int, help="with --sample: of the random numbers (default: 0)")
    add("--prefix", metavar="TEXT", help="text that every translation begins with")
    add("--min-length", type=int, default=0, metavar="TOKENS", help="tokens of a translation at least")
    add("--max-length", type=int, metavar="TOKENS", help="tokens of a translation at most (default: source + 50)")
    add("--no-repeat-ngram", type=int, default=0, metavar="N", help="no N tokens in a row come twice; 0 allows it")
    add("--batch-tokens", type=int,
        help="source tokens of a batch at most, padding counted (default: 2048 on a CPU, 16384 on CUDA)")  # fmt: skip
    add("--buffer-lines", type=int, default=4096, help="lines that are read, sorted and translated together at most")
    add("--device", choices=DEVICES, default="auto", help="where to compute")
    add("--precision", choices=PRECISIONS, default="auto", help="auto: bf16 on CUDA, fp32 on a CPU")
    add("--verbose", action="store_true", help="report the speed on standard error even if that is no terminal")
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Check the options against each other and fill in the defaults.

    Raises:
        UsageError: A value is out of its range, or would have no effect.
    """
    for name in ("beam", "n_best", "max_length", "batch_tokens", "buffer_lines"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"{_option(name)} {value}: it must be at least 1")
    for name in ("min_length", "no_repeat_ngram"):
        if getattr(options, name) < 0:
            raise UsageError(f"{_option(name)} {getattr(options, name)}: it must not be negative")
    if options.max_length is not None and options.min_length > options.max_length:
        raise UsageError(f"--min-length {options.min_length} is more than --max-length {options.max_length}")
    if options.prefix is not None and is_blank(options.prefix):
        raise UsageError("--prefix is empty; leave it out to begin translations freely")
    if options.alignments and not options.json:
        raise UsageError("--alignments needs --json")
    if options.sample and options.beam is not None:
        raise UsageError("--sample draws at random and has no --beam; leave one of the two out")
    for name, default in SAMPLING_DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
        elif not options.sample:
            raise UsageError(f"{_option(name)} needs --sample")
    if not 0 <= options.seed <= LARGEST_SEED:
        raise UsageError(f"--seed {options.seed}: it must be from 0 to {LARGEST_SEED}")
    if options.length_penalty_kind == "none" and options.length_penalty is not None:
        raise UsageError("--length-penalty has no effect with --length-penalty-kind none; leave one of the two out")
    if options.length_penalty is None:
        options.length_penalty = LENGTH_PENALTY
    check_length_penalty(options.length_penalty)
    try:
        check_sampling(options.temperature, options.top_k, options.top_p)
    except ValueError as error:
        name, _, reason = str(error).partition(" ")  # it begins with the argument's name
        raise UsageError(f"{_option(name)} {reason}") from error
    options.beam = options.beam or max(5, options.n_best)
    if options.n_best > options.beam and not options.sample:
        raise UsageError(f"--n-best {options.n_best} needs --beam {options.n_best} or more, not {options.beam}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def choose_search(options: argparse.Namespace, device: torch.device) -> Search:
    """Return the search that the options ask for, with its settings."""
    shared = {
        "num_hypotheses": options.n_best,
        "length_penalty": options.length_penalty,
        "length_penalty_kind": options.length_penalty_kind,
        "min_length": options.min_length,
        "no_repeat_ngram_size": options.no_repeat_ngram,
    }
    if not options.sample:
        return partial(beam_search, beam_size=options.beam, **shared)
    generator = torch.Generator(device).manual_seed(options.seed)
    drawing = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    return partial(sample_search, generator=generator, **drawing, **shared)


def batches_by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield the numbers of the sentences in batches, longest first.

    Args:
        lengths: Tokens of each sentence.
        budget: Tokens of a batch at most, padding counted. A longer sentence is a batch by itself.
    """
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


class LineTranslator:
    """Translates chunks of lines that follow one another.

    Args:
        translator: Network and tokenizer.
        options: The command's, checked.
        progress: Told how many more lines have been translated.
    """

    def __init__(self, translator: Translator, options: argparse.Namespace, progress: Callable[[int], None]) -> None:
        self.translator, self.options, self.progress = translator, options, progress
        self.search = choose_search(options, translator.device)
        self.batch_tokens = options.batch_tokens or BATCH_TOKENS[translator.device.type]
        self.prefix = translator.encode_target(options.prefix, "--prefix") if options.prefix else None
        self.lines_before = 0

    def translate(self, lines: list[str]) -> list[str]:
        """Return what to write for each of the next lines, without the last line end."""
        sources = self.translator.encode_sources(lines)
        self._warn_of_long_lines(sources)
        full = [number for number, line in enumerate(lines) if not is_blank(line)]
        self._check_room(full, sources)
        results = [""] * len(lines)
        for number in set(range(len(lines))).difference(full):
            results[number] = self._format(number, lines[number], [], [EMPTY], [""], [[]])
        self.progress(len(lines) - len(full))
        for batch in batches_by_length([len(sources[number].ids) for number in full], self.batch_tokens):
            numbers = [full[position] for position in batch]
            ids = [sources[number].ids for number in numbers]
            found = self.translator.translate(ids, self.search, max_length=self.options.max_length, prefix=self.prefix)
            texts, alignments = self._texts(found), self._align(ids, found)
            for row, number in enumerate(numbers):
                results[number] = self._format(
                    number, lines[number], ids[row][:-1], found[row], texts[row], alignments[row]
                )
            self.progress(len(batch))
        self.lines_before += len(lines)
        return results

    def _texts(self, found: list[list[Hypothesis]]) -> list[list[str]]:
        """Return the text of each hypothesis of each sentence."""
        # One call for all: SentencePiece starts its threads anew for each.
        texts = iter(
            self.translator.tokenizer.decode_target([one.tokens for hypotheses in found for one in hypotheses])
        )
        return [[next(texts) for _ in hypotheses] for hypotheses in found]

    def _warn_of_long_lines(self, sources: list[Source]) -> None:
        for number, source in enumerate(sources, start=self.lines_before + 1):
            if source.dropped:
                limit = self.translator.max_source_length
                print(
                    f"warning: line {number} has {len(source.ids) + source.dropped} tokens and the network takes "
                    f"{limit}: its end is not translated",
                    file=sys.stderr,
                )

    def _check_room(self, numbers: list[int], sources: list[Source]) -> None:
        """Refuse a minimum length or a prefix that does not fit into the longest translation allowed for a line.

        Raises:
            UsageError: The message names the option and the line.
        """
        lengths = torch.tensor([len(sources[number].ids) for number in numbers])
        limits = self.translator.max_lengths(lengths, self.options.max_length).tolist()
        for number, limit in zip(numbers, limits, strict=True):
            where = f"the translation of line {self.lines_before + number + 1} may have at most {limit} tokens"
            if self.options.min_length > limit:
                raise UsageError(f"--min-length {self.options.min_length}: {where} (see --max-length)")
            if self.prefix is not None and len(self.prefix) >= limit:
                raise UsageError(f"--prefix has {len(self.prefix)} tokens: {where}, its end counted (see --max-length)")

    def _align(self, sources: list[list[int]], found: list[list[Hypothesis]]) -> list[list[Alignment]]:
        """Return the alignment of each hypothesis of each sentence; empty lists if none is asked for."""
        alignments: list[list[Alignment]] = [[] for _ in found]
        if not self.options.alignments:
            return alignments
        for rank in range(max(map(len, found))):
            rows = [row for row, hypotheses in enumerate(found) if rank < len(hypotheses)]
            targets = [found[row][rank].tokens for row in rows]
            for row, alignment in zip(
                rows, self.translator.align([sources[row] for row in rows], targets), strict=True
            ):
                alignments[row].append(alignment)
        return alignments

    def _format(
        self,
        number: int,
        line: str,
        source: list[int],
        hypotheses: list[Hypothesis],
        texts: list[str],
        alignments: list[Alignment],
    ) -> str:
        """Return the output of one line: plain text, an n-best list, or JSON."""
        if not self.options.json:
            if self.options.n_best == 1:
                return texts[0]
            index = self.lines_before + number + 1
            scored = zip(texts, hypotheses, strict=True)
            return "\n".join(f"{index} ||| {text} ||| {hypothesis.score:.6f}" for text, hypothesis in scored)
        tokenizer = self.translator.tokenizer
        translations: list[dict[str, Any]] = [
            {
                "text": text,
                "score": hypothesis.score,
                "log_prob": hypothesis.log_prob,
                "finished": hypothesis.finished,
                "tokens": tokenizer.target_pieces(hypothesis.tokens),
            }
            for text, hypothesis in zip(texts, hypotheses, strict=True)
        ]
        record: dict[str, Any] = {"source": line, "translations": translations}
        if self.options.alignments:
            record["source_tokens"] = tokenizer.source_pieces(source)
            for translation, alignment in zip(translations, alignments, strict=True):
                translation["alignment"] = alignment
        return json.dumps(record, ensure_ascii=False)


class SpeedReport:
    """Shows lines and lines per second on standard error: a live line on a terminal, one last line if ``verbose``."""

    def __init__(self, verbose: bool) -> None:
        self.live = sys.stderr.isatty()
        self.enabled = verbose or self.live
        self.start, self.shown, self.lines = time.monotonic(), 0.0, 0

    def add(self, lines: int) -> None:
        """Count more lines."""
        self.lines += lines
        if self.live and time.monotonic() - self.shown > 0.5:
            self.shown = time.monotonic()
            print(f"\r{self._text()}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Show the last line."""
        if self.enabled and self.lines:
            print(f"{chr(13) if self.live else ''}{self._text()}", file=sys.stderr)

    def _text(self) -> str:
        seconds = time.monotonic() - self.start
        return f"{self.lines} lines, {self.lines / max(seconds, 1e-9):.1f} lines/s"


@contextlib.contextmanager
def open_input(path: str | None) -> Iterator[tuple[BinaryIO, str]]:
    """Open a file of lines, or standard input, with the name it has in errors.

    Raises:
        UsageError: The file is not there, or is a directory.
    """
    if path is None:
        if sys.stdin.isatty():
            print("one sentence a line; Ctrl-D ends", file=sys.stderr)
        yield sys.stdin.buffer, "standard input"
        return
    if not Path(path).exists() or Path(path).is_dir():
        raise UsageError(f'--input "{path}": {"is a directory" if Path(path).is_dir() else "there is no such file"}')
    with open(path, "rb") as stream:
        yield stream, path


def translate_stream(
    translator: Translator, options: argparse.Namespace, stream: BinaryIO, name: str, output: TextIO
) -> None:
    """Translate all lines of a stream.

    Raises:
        UsageError: There is no line.
        ValueError: A line is not UTF-8.
    """
    report = SpeedReport(options.verbose)
    lines = LineTranslator(translator, options, report.add)
    for chunk in read_chunks(stream, name, options.buffer_lines):
        output.writelines(f"{result}\n" for result in lines.translate(chunk))
        output.flush()
    report.close()
    if not lines.lines_before:
        raise UsageError(f"{name} is empty: there is nothing to translate")


def _command(argv: list[str]) -> None:
    options = build_parser().parse_args(argv)
    check_options(options)
    with open_input(options.input) as (stream, name):
        translator = Translator.load(options.checkpoint, options.device, options.precision)
        with open_output(options.output) as output:
            translate_stream(translator, options, stream, name, output)


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: The words after ``translate``.

    Returns:
        The exit code.
    """
    return run(_command, argv)
