import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from datamodules.text.tokenizer import Tokenizer, TokenizerConfig, train_model, train_tokenizer

ENGLISH = [
    "the small dog sees the green house",
    "a cat crosses the wide street because the dog barks",
    "the dog likes the cat and the cat likes the house",
    "green houses stand along the small streets",
    "because it was tired the cat did not cross",
]
GERMAN = [
    "der kleine Hund sieht das grüne Haus",
    "eine Katze quert die breite Straße, weil der Hund bellt",
    "der Hund mag die Katze und die Katze mag das Haus",
    "grüne Häuser stehen an den kleinen Straßen",
    "weil sie müde war, querte die Katze nicht",
]
SIZES = {("bpe", True): 60, ("bpe", False): 60, ("unigram", True): 44, ("unigram", False): 36}


def make_tokenizer(kind: str = "bpe", joint: bool = True, dropout: float = 0.0, **settings: object) -> Tokenizer:
    config = TokenizerConfig(kind=kind, vocab_size=SIZES[kind, joint], joint=joint, dropout=dropout, **settings)
    return train_tokenizer(config, lambda: iter(ENGLISH), lambda: iter(GERMAN), "the text")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("joint", [True, False])
def test_round_trip(kind: str, joint: bool) -> None:
    tokenizer = make_tokenizer(kind, joint)
    assert tokenizer.shared is joint
    assert tokenizer.decode_source(tokenizer.encode_source(ENGLISH)) == ENGLISH
    assert tokenizer.decode_target(tokenizer.encode_target(GERMAN)) == GERMAN
    ids = {i for row in tokenizer.encode_source(ENGLISH) for i in row}
    assert min(ids) >= 4
    assert max(ids) < tokenizer.source_vocab_size


def test_separate_models_know_only_their_language() -> None:
    tokenizer = make_tokenizer(joint=False)
    assert 1 in tokenizer.encode_source(["Straße"])[0]
    assert 1 not in tokenizer.encode_target(["Straße"])[0]


def test_special_ids_and_sizes() -> None:
    tokenizer = make_tokenizer()
    assert tokenizer.source_pieces([0, 1, 2, 3]) == ["<pad>", "<unk>", "<s>", "</s>"]
    assert tokenizer.source_vocab_size == tokenizer.target_vocab_size == 64
    assert tokenizer.target_pieces([59, 60, 63])[1:] == ["<unused 60>", "<unused 63>"]


def test_decoding_skips_what_is_no_text() -> None:
    tokenizer = make_tokenizer()
    row = tokenizer.encode_target(["der Hund"])[0]
    assert tokenizer.decode_target([[2, *row, 3, 0, 0], [62, *row, 63], []]) == ["der Hund", "der Hund", ""]
    assert "⁇" in tokenizer.decode_target([[1, *row]])[0]


def test_byte_fallback_leaves_nothing_unknown() -> None:
    config = TokenizerConfig(vocab_size=320, byte_fallback=True)
    tokenizer = train_tokenizer(config, lambda: iter(ENGLISH), lambda: iter(GERMAN), "the text")
    ids = tokenizer.encode_source(["日本"])
    assert 1 not in ids[0]
    assert tokenizer.decode_source(ids) == ["日本"]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_training_is_deterministic(kind: str) -> None:
    assert make_tokenizer(kind).models == make_tokenizer(kind).models


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sampling_depends_on_the_seed_alone(kind: str) -> None:
    tokenizer = make_tokenizer(kind, dropout=0.3)
    tokenizer.set_seed(1)
    first = tokenizer.encode_source(ENGLISH, sample=True)
    tokenizer.set_seed(2)
    second = tokenizer.encode_source(ENGLISH, sample=True)
    tokenizer.encode_target(GERMAN, sample=True)
    tokenizer.set_seed(1)
    assert tokenizer.encode_source(ENGLISH, sample=True) == first
    assert first != second
    assert first != tokenizer.encode_source(ENGLISH)
    assert tokenizer.decode_source(first) == tokenizer.decode_source(second) == ENGLISH


def test_sampling_without_dropout_changes_nothing() -> None:
    tokenizer = make_tokenizer()
    assert tokenizer.encode_source(ENGLISH, sample=True) == tokenizer.encode_source(ENGLISH)


@pytest.mark.parametrize("joint", [True, False])
def test_state_loads_with_weights_only(tmp_path: Path, joint: bool) -> None:
    tokenizer = make_tokenizer(joint=joint, dropout=0.1)
    torch.save(tokenizer.state_dict(), tmp_path / "state.pt")
    found = Tokenizer.from_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert found == tokenizer
    assert found.shared is joint
    assert found.dropout == 0.1
    assert found.encode_target(GERMAN) == tokenizer.encode_target(GERMAN)


def test_pickle() -> None:
    tokenizer = make_tokenizer(joint=False)
    found = pickle.loads(pickle.dumps(tokenizer))
    assert found == tokenizer
    assert found.encode_source(ENGLISH) == tokenizer.encode_source(ENGLISH)


def test_other_text_or_sides_make_another_tokenizer() -> None:
    assert make_tokenizer() == make_tokenizer(dropout=0.5)
    assert make_tokenizer() != make_tokenizer("unigram")
    assert make_tokenizer(joint=False) != make_tokenizer(joint=True)


def test_foreign_states_are_refused() -> None:
    with pytest.raises(ValueError, match="not the state of a tokenizer"):
        Tokenizer.from_state_dict({"vocab": []})
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        Tokenizer(b"nonsense")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_vocabulary_larger_than_the_text_supports(kind: str) -> None:
    with pytest.raises(ValueError, match=r"vocab_size=5000 is more than the text supports: at most \d+ pieces") as info:
        train_model(ENGLISH, TokenizerConfig(kind=kind, vocab_size=5000), "the text")
    largest = int(str(info.value).split("at most ")[1].split()[0])
    train_model(ENGLISH, TokenizerConfig(kind=kind, vocab_size=largest), "the text")


def test_vocabulary_smaller_than_the_characters() -> None:
    with pytest.raises(ValueError, match=r"vocab_size=10 is less than .* need: at least \d+") as info:
        train_model(ENGLISH, TokenizerConfig(vocab_size=10), "the text")
    smallest = int(str(info.value).split("at least ")[1].split(";")[0])
    train_model(ENGLISH, TokenizerConfig(vocab_size=smallest), "the text")


def test_no_text() -> None:
    with pytest.raises(ValueError, match="could not learn 60 pieces from the text"):
        train_model(empty_lines(), TokenizerConfig(vocab_size=60), "the text")


def empty_lines() -> Iterator[str]:
    yield from ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 4}, "vocab_size=4 leaves no room"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"character_coverage": 0.5}, "character_coverage=0.5"),
    ],
)
def test_bad_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**settings)


def test_training_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    make_tokenizer()
    assert capfd.readouterr() == ("", "")
