import csv
from pathlib import Path

import pytest

from experiments.bench import data_memory, record


def test_the_generated_corpus_is_aligned_and_repeatable(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        data_memory.write_pairs(tmp_path / name, "train", 1500, 0)
    texts = {language: (tmp_path / "one" / f"train.{language}").read_text() for language in ("en", "de")}
    assert texts["en"] != texts["de"]
    for language, text in texts.items():
        assert text.count("\n") == 1500
        assert text == (tmp_path / "two" / f"train.{language}").read_text()
    data_memory.write_pairs(tmp_path / "two", "train", 1500, 1)
    assert texts["en"] != (tmp_path / "two" / "train.en").read_text()


def test_every_pair_is_read(tmp_path: Path) -> None:
    data_memory.write_pairs(tmp_path, "train", 2000, 0)
    data_memory.write_pairs(tmp_path, "valid", 100, 1)
    row = data_memory.measure(tmp_path, vocab_size=500, batch_tokens=4000)
    assert row["pairs_read"] == 2000
    assert 0 < row["imports_rss_mb"] <= row["prepare_peak_rss_mb"] <= row["peak_rss_mb"]


def test_too_few_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    assert data_memory.main(["--pairs", "10"]) == 2
    assert "--pairs 10 is too few" in capsys.readouterr().err


@pytest.mark.slow
def test_wmt14s_size_needs_less_than_two_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    assert data_memory.main(["--pairs", "4500000", "--directory", str(tmp_path)]) == 0
    with (tmp_path / "data_memory.csv").open() as file:
        row = next(csv.DictReader(file))
    assert int(row["pairs_read"]) == 4_500_000
    assert int(row["peak_rss_mb"]) < 2000
    assert not list(tmp_path.glob("data_memory_*"))
