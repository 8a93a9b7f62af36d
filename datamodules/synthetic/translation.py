"""The built-in English-German corpus: sentence pairs from a seeded grammar, for a first run without a download.

It holds what makes translation hard, so that attention has something to show: gender, case and adjective endings, the
second and the last place of the German verb, separable verbs, the participle at the end, numbers whose units come
before the tens, and pronouns whose gender depends on what they stand for. Every English sentence has one translation,
so that a translator that has learnt the grammar reaches a BLEU of 100.

Run `python -m datamodules.synthetic.translation DIRECTORY` to write it.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from datamodules.synthetic.grammar.draws import Draws
from datamodules.synthetic.grammar.numerals import number_in_english, number_in_german
from datamodules.synthetic.grammar.sentences import Pair, draw_pair

__all__ = [
    "EXAMPLES",
    "GENERATOR_VERSION",
    "LECTURE_SENTENCES",
    "MOST_PAIRS",
    "number_in_english",
    "number_in_german",
    "sentence_pairs",
    "write_corpus",
]

# The two sentences that lectures explain attention with. No split contains them.
LECTURE_SENTENCES: tuple[tuple[str, str], ...] = (
    (
        "The animal did not cross the street because it was too tired.",
        "Das Tier überquerte die Straße nicht, weil es zu müde war.",
    ),
    (
        "The animal did not cross the street because it was too wide.",
        "Das Tier überquerte die Straße nicht, weil sie zu breit war.",
    ),
)

# One sentence for each of the other phenomena, to be shown after a training. No split contains them.
EXAMPLES: tuple[tuple[str, str], ...] = (
    (  # verb second, separable prefix last
        "Yesterday the tired farmer woke up early.",
        "Gestern wachte der müde Bauer früh auf.",
    ),
    (  # perfect with the participle last, dative, mixed adjective ending
        "The teacher has already shown the child a beautiful picture.",
        "Der Lehrer hat dem Kind schon ein schönes Bild gezeigt.",
    ),
    (  # verb last, prefix joined to it
        "I know that the young woman will pick up the heavy suitcase tomorrow.",
        "Ich weiß, dass die junge Frau den schweren Koffer morgen abholen wird.",
    ),
    (  # relative pronoun in the dative, verb last
        "The boy to whom the mother gave the book was very happy.",
        "Der Junge, dem die Mutter das Buch gab, war sehr glücklich.",
    ),
    (  # units before tens, in one word
        "The old house costs two hundred and thirty-four thousand five hundred and sixty-seven euros.",
        "Das alte Haus kostet zweihundertvierunddreißigtausendfünfhundertsiebenundsechzig Euro.",
    ),
    (  # subordinate clause first, so that the main clause begins with its verb
        "When the train arrived, the children were waiting in front of the station.",
        "Als der Zug ankam, warteten die Kinder vor dem Bahnhof.",
    ),
)

MOST_PAIRS = 1_000_000

# Whoever changes the grammar, and with it the bytes of the corpus, raises this: older copies are then written anew.
GENERATOR_VERSION = 1

# A grammar that gives nothing new in this many draws has said all that it can say.
_FRUITLESS_DRAWS = 100_000


def sentence_pairs(seed: int = 0) -> Iterator[Pair]:
    """Yields sentence pairs without end: no English and no German sentence twice, none of those shown after training.

    Args:
        seed: A whole number, at least 0. The same seed gives the same pairs on every machine.

    Yields:
        One pair after the other.

    Raises:
        ValueError: If `seed` is negative, or if the grammar has nothing new to say.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}; give a whole number of at least 0")
    draws = Draws(seed)
    shown = LECTURE_SENTENCES + EXAMPLES
    seen = {sentence for pair in shown for sentence in pair}
    fruitless = 0
    while fruitless < _FRUITLESS_DRAWS:
        pair = draw_pair(draws)
        if pair.english in seen or pair.german in seen:
            fruitless += 1
            continue
        seen.add(pair.english)
        seen.add(pair.german)
        fruitless = 0
        yield pair
    count = len(seen) // 2 - len(shown)
    raise ValueError(f"the grammar has nothing new to say after {count:,} sentence pairs; ask for fewer")


def write_corpus(directory: Path, *, seed: int = 0, train: int = 20_000, valid: int = 1_000, test: int = 1_000) -> None:
    """Writes the corpus as `train.en`, `train.de`, `valid.en`, ..., `test.de`: UTF-8, one sentence per line.

    Line n of an English file is translated by line n of the German one. No sentence of either language occurs twice, in
    one split or in two. The test set depends on `seed` and `test` alone, so that more training data leave it as it is.
    Files of these names are replaced, each as a whole: an interrupted run leaves none that is half written.

    Args:
        directory: Where to write; made if it is missing.
        seed: Seed of the grammar, at least 0. The same seed gives the same bytes on every machine.
        train: Number of training pairs.
        valid: Number of validation pairs.
        test: Number of test pairs.

    Raises:
        ValueError: If a number is negative, if more than `MOST_PAIRS` pairs are asked for in all, or if `directory` is
            a file.
        OSError: If the files cannot be written.
    """
    # The test set is drawn first, whatever the size of the others.
    sizes = {"test": test, "valid": valid, "train": train}
    for split, size in sizes.items():
        if size < 0:
            raise ValueError(f"{split} is {size}; give a number of sentence pairs of at least 0")
    total = sum(sizes.values())
    if total > MOST_PAIRS:
        raise ValueError(f"{total:,} sentence pairs are too many; ask for at most {MOST_PAIRS:,} in all three splits")
    pairs = sentence_pairs(seed)
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{error.filename} is a file; give a directory to write the corpus to") from error
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=directory))
    try:
        for split, size in sizes.items():
            _write_split(unfinished, split, islice(pairs, size))
        for file in sorted(unfinished.iterdir()):
            os.replace(file, directory / file.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_split(directory: Path, split: str, pairs: Iterator[Pair]) -> None:
    with (
        open(directory / f"{split}.en", "w", encoding="utf-8", newline="\n") as english,
        open(directory / f"{split}.de", "w", encoding="utf-8", newline="\n") as german,
    ):
        for pair in pairs:
            english.write(pair.english + "\n")
            german.write(pair.german + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the corpus from the command line.

    Args:
        argv: Arguments; those of the process if not given.

    Returns:
        Exit code: 0, or 2 after a message that says what was wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.synthetic.translation",
        description="Writes the built-in English-German corpus.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("directory", type=Path, help="where to write train.en, train.de, valid.*, test.*")
    parser.add_argument("--seed", type=int, default=0, help="seed of the grammar")
    parser.add_argument("--train", type=int, default=20_000, help="number of training pairs")
    parser.add_argument("--valid", type=int, default=1_000, help="number of validation pairs")
    parser.add_argument("--test", type=int, default=1_000, help="number of test pairs")
    arguments = parser.parse_args(argv)
    try:
        write_corpus(
            arguments.directory,
            seed=arguments.seed,
            train=arguments.train,
            valid=arguments.valid,
            test=arguments.test,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {arguments.train:,} + {arguments.valid:,} + {arguments.test:,} pairs to {arguments.directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
