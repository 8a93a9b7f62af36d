import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from datamodules.text import binary, prepare
from datamodules.text.prepare import PreparedData, SplitFiles
from datamodules.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

LANGUAGES = ("en", "de")
CONFIG = TokenizerConfig(vocab_size=80)


def check(prepared: PreparedData, directory: Path, prefix: str = "train") -> SplitFiles:
    return prepared.check(directory, prefix, LANGUAGES, allow_empty=False, skip_empty=False)


def prepare_all(directory: Path, config: TokenizerConfig = CONFIG) -> Tokenizer:
    prepared = PreparedData(directory / "prepared")
    with prepared.locked():
        files = check(prepared, directory)
        tokenizer = prepared.tokenizer(files, config)
        prepared.split(files, tokenizer, with_text=True)
    return tokenizer


def names(directory: Path, start: str) -> set[str]:
    return {path.name for path in (directory / "prepared").iterdir() if path.name.startswith(start)}


def test_unchanged_data_is_prepared_once(toy_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_all(toy_corpus)
    for name in ("check_pair", "train_tokenizer", "_write_tokens", "_write_text"):
        monkeypatch.setattr(prepare, name, lambda *_, **__: pytest.fail("done again"))
    assert prepare_all(toy_corpus) == first


def test_other_settings_make_another_tokenizer(toy_corpus: Path) -> None:
    first = prepare_all(toy_corpus)
    second = prepare_all(toy_corpus, TokenizerConfig(vocab_size=72))
    assert first.source_vocab_size == 80
    assert second.source_vocab_size == 72
    assert len(names(toy_corpus, "tokenizer-")) == len(names(toy_corpus, "train-tokens-")) == 2
    # The text does not depend on the tokenizer, nor the tokenizer on the strength of sampling.
    assert len(names(toy_corpus, "train-text-")) == 1
    prepare_all(toy_corpus, TokenizerConfig(vocab_size=72, dropout=0.1))
    assert len(names(toy_corpus, "tokenizer-")) == 2


def test_changed_data_makes_another_tokenizer(toy_corpus: Path) -> None:
    first = prepare_all(toy_corpus)
    path = toy_corpus / "train.de"
    stamp = path.stat()
    path.write_text(path.read_text().replace("Hund", "Dachs"))
    second = prepare_all(toy_corpus)
    assert first != second
    assert second.decode_target(second.encode_target(["Dachs"])) == ["Dachs"]
    # Another time of change with the same text: the hash decides.
    path.write_text(path.read_text().replace("Dachs", "Hund"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert prepare_all(toy_corpus) == first
    assert len(names(toy_corpus, "tokenizer-")) == 2


def test_stored_tokens_and_text_are_those_of_the_files(
    toy_corpus: Path, write_pairs: Callable[..., list[tuple[str, str]]]
) -> None:
    pairs = write_pairs(toy_corpus, "train", 300, seed=1)
    prepared = PreparedData(toy_corpus / "prepared")
    with prepared.locked():
        files = check(prepared, toy_corpus)
        tokenizer = prepared.tokenizer(files, CONFIG)
        split = prepared.split(files, tokenizer, with_text=True)
    assert len(split) == 300
    assert split.source_text is not None
    assert split.target_text is not None
    for number in (0, 7, 299):
        source, target = pairs[number]
        start, end = split.source.offsets[number : number + 2]
        assert split.source.values[start:end].tolist() == tokenizer.encode_source([source])[0]
        start, end = split.target.offsets[number : number + 2]
        assert split.target.values[start:end].tolist() == tokenizer.encode_target([target])[0]
        assert (split.source_text.text(number), split.target_text.text(number)) == (source, target)


def test_chunks_do_not_show(toy_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_all(toy_corpus)
    stored = {path.relative_to(toy_corpus): path.read_bytes() for path in toy_corpus.rglob("*.bin")}
    monkeypatch.setattr(prepare, "_CHUNK_LINES", 7)
    for directory in names(toy_corpus, "train-"):
        (toy_corpus / "prepared" / directory).rename(toy_corpus / directory)
    prepare_all(toy_corpus)
    assert all((toy_corpus / path).read_bytes() == content for path, content in stored.items())


def test_training_lines_bound_what_is_learnt_from(toy_corpus: Path) -> None:
    # Every second line is kept: a word that is only in the others is unknown.
    for language in LANGUAGES:
        path = toy_corpus / f"train.{language}"
        lines = path.read_text().splitlines()
        path.write_text("\n".join(line if number % 2 == 0 else "ÿÿÿÿ" for number, line in enumerate(lines)) + "\n")
    sampled = prepare_all(toy_corpus, TokenizerConfig(vocab_size=80, training_lines=150))
    assert 1 in sampled.encode_source(["ÿ"])[0]
    assert 1 not in prepare_all(toy_corpus, TokenizerConfig(vocab_size=80, training_lines=300)).encode_source(["ÿ"])[0]


def test_a_fault_leaves_nothing_half_done(toy_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, rows: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(prepare.SequenceWriter, "write_ids", fail)
        with pytest.raises(ValueError, match=r"cannot write .*train-tokens-\w+: No space left.*cache_dir"):
            prepare_all(toy_corpus)
    assert not names(toy_corpus, "train-tokens")
    assert not names(toy_corpus, ".train")
    # What a killed process left is cleared away.
    (toy_corpus / "prepared" / ".train-tokens-0.1.partial").mkdir()
    (toy_corpus / "prepared" / ".checked.json.1.partial").touch()
    prepare_all(toy_corpus)
    assert not names(toy_corpus, ".train") | names(toy_corpus, ".checked")


def test_runs_that_start_together_do_the_work_once(toy_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def train(*arguments: Any) -> Tokenizer:
        trained.append(1)
        time.sleep(0.1)
        return train_tokenizer(*arguments)

    monkeypatch.setattr(prepare, "train_tokenizer", train)
    # The lock is of the open file, so two threads exclude each other as two processes do.
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(prepare_all, [toy_corpus, toy_corpus])
    assert first == second
    assert trained == [1]


def test_an_unwritable_directory_is_named(toy_corpus: Path) -> None:
    (toy_corpus / "blocked").touch()
    with pytest.raises(ValueError, match=r"cannot write prepared data to .*blocked.*set cache_dir"):
        with PreparedData(toy_corpus / "blocked" / "prepared").locked():
            pass


def make_unwritable(directory: Path) -> None:
    """Takes the place of the lock, which is what a directory without permission to write does, even for root."""
    (directory / ".lock").unlink()
    (directory / ".lock").mkdir()


def test_a_read_only_directory_is_read(toy_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_all(toy_corpus)
    make_unwritable(toy_corpus / "prepared")
    monkeypatch.setattr(prepare, "_renamed_when_done", lambda _: pytest.fail("written"))
    assert prepare_all(toy_corpus) == first
    # A copy has other times of change: the files are checked, and what they need is still there.
    os.utime(toy_corpus / "train.en", ns=(1, 1))
    assert prepare_all(toy_corpus) == first
    with pytest.raises(ValueError, match=r"cannot write prepared data to .*prepared: .*set cache_dir") as caught:
        prepare_all(toy_corpus, TokenizerConfig(vocab_size=72))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_names_the_file(toy_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = PreparedData(toy_corpus / "prepared")
    with prepared.locked():
        files = check(prepared, toy_corpus)
        tokenizer = prepared.tokenizer(files, CONFIG)
        monkeypatch.setattr(binary, "_values_file", lambda _: Path("/dev/full"))
        with pytest.raises(ValueError, match=r"cannot write .*train-tokens-\w+: No space left on device"):
            prepared.split(files, tokenizer, with_text=False)
    assert not names(toy_corpus, "train-tokens") | names(toy_corpus, ".train-tokens")


@pytest.mark.parametrize("content", ["{broken", "[]", '{"a": 1}'])
def test_a_damaged_record_of_checks_is_made_anew(toy_corpus: Path, content: str) -> None:
    first = prepare_all(toy_corpus)
    record = toy_corpus / "prepared" / "checked.json"
    whole = record.read_text()
    record.write_text(content)
    assert prepare_all(toy_corpus) == first
    assert whole[2:-2] in record.read_text()
    record.write_text(whole.replace('"lines"', '"rows"'))
    assert prepare_all(toy_corpus) == first
    assert record.read_text() == whole


def test_damaged_files_are_named(toy_corpus: Path) -> None:
    prepare_all(toy_corpus)
    [tokenizer] = (toy_corpus / "prepared").glob("tokenizer-*")
    [tokens] = (toy_corpus / "prepared").glob("train-tokens-*")
    whole = (tokenizer / "joint.model").read_bytes()
    (tokenizer / "joint.model").write_bytes(whole[:4])
    with pytest.raises(ValueError, match=r"joint\.model is damaged: 4 bytes .*; remove \S+ and start again$"):
        prepare_all(toy_corpus)
    (tokenizer / "joint.model").write_bytes(whole)
    for content in (b"", b"short", b"long enough to be no header of numpy"):
        (tokens / "source.offsets.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"source\.offsets\.npy is damaged; remove \S+ and start again"):
            prepare_all(toy_corpus)
