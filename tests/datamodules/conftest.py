import random
from collections.abc import Callable
from pathlib import Path

import pytest

ENGLISH = ["the", "a", "small", "green", "dog", "cat", "house", "street", "sees", "crosses", "likes", "and", "because"]
GERMAN = ["der", "ein", "kleiner", "grüner", "Hund", "Katze", "Haus", "Straße", "sieht", "quert", "mag", "und", "weil"]


def make_pairs(count: int, seed: int, longest: int = 12) -> list[tuple[str, str]]:
    generator = random.Random(seed)
    pairs = []
    for _ in range(count):
        words = [generator.randrange(len(ENGLISH)) for _ in range(generator.randint(1, longest))]
        pairs.append((" ".join(ENGLISH[word] for word in words), " ".join(GERMAN[word] for word in reversed(words))))
    return pairs


@pytest.fixture
def write_pairs() -> Callable[..., list[tuple[str, str]]]:
    """Writes a made-up parallel split and returns its pairs."""

    def write(directory: Path, prefix: str, count: int, *, seed: int = 0, longest: int = 12) -> list[tuple[str, str]]:
        directory.mkdir(parents=True, exist_ok=True)
        pairs = make_pairs(count, seed, longest)
        for side, language in enumerate(("en", "de")):
            (directory / f"{prefix}.{language}").write_text("".join(pair[side] + "\n" for pair in pairs))
        return pairs

    return write


@pytest.fixture
def toy_corpus(tmp_path: Path, write_pairs: Callable[..., list[tuple[str, str]]]) -> Path:
    """A directory with 300 training, 40 validation and 30 test pairs."""
    directory = tmp_path / "toy"
    write_pairs(directory, "train", 300, seed=1)
    write_pairs(directory, "valid", 40, seed=2)
    write_pairs(directory, "test", 30, seed=3)
    return directory
