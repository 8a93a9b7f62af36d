"""Peak memory of the translation data pipeline on millions of generated sentence pairs.

``python -m experiments bench data_memory --pairs 4500000`` writes a corpus of made-up words, prepares it (checks,
tokenizer, token files) and reads one epoch of batches, the latter two in a process of their own whose peak resident
memory is measured. A row goes to ``experiments/results/data_memory.csv``. It needs about 1 GB of disk a million pairs.
"""

import argparse
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

_SYLLABLES = [first + second for first in "bdfgklmnprstvwz" for second in ("a", "e", "i", "o", "u", "au", "ei", "en")]
_CHUNK = 50_000


def main(argv: list[str]) -> int:
    """Measures and records one row."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments bench data_memory", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "--pairs", type=int, default=4_500_000, help="sentence pairs to generate (4.5 million, as WMT14)"
    )
    parser.add_argument(
        "--directory", type=Path, help="where to work; default a temporary directory, removed afterwards"
    )
    parser.add_argument("--vocab-size", type=int, default=32_000, help="pieces of the joint BPE")
    parser.add_argument("--batch-tokens", type=int, default=25_000, help="token budget of a batch")
    arguments = parser.parse_args(argv)
    if arguments.pairs < 1000:
        print(f"error: --pairs {arguments.pairs} is too few to learn pieces from; give at least 1000", file=sys.stderr)
        return 2
    directory = Path(tempfile.mkdtemp(prefix="data_memory_", dir=arguments.directory))
    try:
        print(f"writing {arguments.pairs:,} pairs to {directory}", flush=True)
        for prefix, pairs, seed in (("train", arguments.pairs, 0), ("valid", 1000, 1)):
            write_pairs(directory, prefix, pairs, seed)
        # A fresh process: the peak is of the pipeline and its imports alone.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            row = pool.submit(measure, directory, arguments.vocab_size, arguments.batch_tokens).result()
    finally:
        shutil.rmtree(directory)
    row = {"pairs": arguments.pairs, **row}
    print("\n".join(f"{name:<22} {value}" for name, value in row.items()))
    from experiments.bench.record import record

    print(record("data_memory", [row], packages=("torch", "sentencepiece", "numpy")))
    return 0


def write_pairs(directory: Path, prefix: str, pairs: int, seed: int) -> None:
    """Writes made-up sentences: words by Zipf's law, about 17 of them in English and 16 in German, 25 tokens each."""
    for language, words_a_line, language_seed in (("en", 17, 0), ("de", 16, 1)):
        generator = np.random.default_rng((seed, language_seed))
        with (directory / f"{prefix}.{language}").open("w") as file:
            for start in range(0, pairs, _CHUNK):
                file.writelines(_sentences(min(_CHUNK, pairs - start), words_a_line, language_seed, generator))


def _words(seed: int, count: int = 120_000) -> list[str]:
    """Makes up words, the most frequent ones shortest."""
    generator = np.random.default_rng(seed)
    lengths = 1 + np.minimum(np.log10(np.arange(1, count + 1)).astype(int), 4)
    syllables = generator.integers(len(_SYLLABLES), size=(count, 5))
    return ["".join(_SYLLABLES[i] for i in row[:length]) for row, length in zip(syllables, lengths, strict=True)]


def _sentences(count: int, words_a_line: int, seed: int, generator: np.random.Generator) -> Iterator[str]:
    if seed not in _VOCABULARIES:
        _VOCABULARIES[seed] = _words(seed)
    words = _VOCABULARIES[seed]
    lengths = np.clip(generator.gamma(3.0, words_a_line / 3.0, count).astype(int), 1, 120)
    # Ranks with probability about 1 / rank.
    ranks = np.exp(generator.random(lengths.sum()) * np.log(len(words))).astype(int) - 1
    start = 0
    for length in lengths.tolist():
        yield " ".join([words[rank] for rank in ranks[start : start + length].tolist()]) + "\n"
        start += length


_VOCABULARIES: dict[int, list[str]] = {}


def measure(directory: Path, vocab_size: int, batch_tokens: int) -> dict[str, Any]:
    """Prepares a corpus and reads one epoch.

    Args:
        directory: Where ``train`` and ``valid`` are.
        vocab_size: Pieces of the joint BPE.
        batch_tokens: Token budget of a batch.

    Returns:
        Peak resident memory in MB (10^6 bytes) after the imports, after preparing and after the epoch; seconds; tokens;
        sizes on disk.
    """
    from datamodules import WMTDataModule
    from datamodules.text.tokenizer import TokenizerConfig

    imported = _peak_mb()
    module = WMTDataModule(
        str(directory),
        tokenizer=TokenizerConfig(vocab_size=vocab_size, character_coverage=0.9999),
        batch_tokens=batch_tokens,
    )
    started = time.perf_counter()
    module.prepare_data()
    module.setup("fit")
    prepared, prepared_mb = time.perf_counter(), _peak_mb()
    tokens = pairs = 0
    loader = module.train_dataloader()
    for batch in loader:
        tokens += int(batch.source_lengths.sum()) + int(batch.target_lengths.sum())
        pairs += len(batch.indices)
    finished = time.perf_counter()
    return {
        "pairs_read": pairs,
        "tokens": tokens,
        "batches": len(loader),
        "imports_rss_mb": imported,
        "prepare_peak_rss_mb": prepared_mb,
        "peak_rss_mb": _peak_mb(),
        "prepare_seconds": round(prepared - started, 1),
        "epoch_seconds": round(finished - prepared, 1),
        "text_mb": _size_mb(directory.glob("train.*")),
        "prepared_mb": _size_mb(path for path in (directory / "prepared").rglob("*") if path.is_file()),
    }


def _peak_mb() -> int:
    """Returns this process's peak resident memory; the kernel counts it in units of 1024 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 1_000_000


def _size_mb(paths: Iterator[Path]) -> int:
    return sum(path.stat().st_size for path in paths) // 1_000_000


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
