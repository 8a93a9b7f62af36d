import gzip
from pathlib import Path

import pytest

from datamodules.text.corpus import check_pair, find_file, is_blank, list_splits, read_lines, read_pairs

# Everything that str.splitlines breaks at, besides the newline.
BREAKS_OF_SPLITLINES = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"


def write(path: Path, *lines: bytes) -> Path:
    content = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("character", BREAKS_OF_SPLITLINES)
def test_only_newlines_end_a_line(tmp_path: Path, character: str) -> None:
    line = f"one{character}two"
    assert len(line.splitlines()) == 2
    assert list(read_lines(write(tmp_path / "a.en", line.encode(), b"three"))) == [line, "three"]


def test_windows_line_ends_and_byte_order_mark_are_removed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.en", b"\xef\xbb\xbfone\r", b"two\rthree\r", "\ufeffbom".encode())
    assert list(read_lines(path)) == ["one", "two\rthree", "\ufeffbom"]


def test_last_line_needs_no_newline(tmp_path: Path) -> None:
    path = tmp_path / "a.en"
    path.write_bytes(b"one\ntwo")
    assert list(read_lines(path)) == ["one", "two"]


def test_invalid_utf8_names_file_and_line(tmp_path: Path) -> None:
    source = write(tmp_path / "a.en", b"good", b"also good")
    target = write(tmp_path / "a.de", b"gut", b"Stra\xdfe")
    with pytest.raises(ValueError, match=r"a\.de:2: not UTF-8: byte 0xdf at position 5"):
        check_pair(source, target)


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.en.gz", *(str(number).encode() for number in range(10_000)))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"a\.en\.gz: the gzip file is damaged after line \d+"):
        list(read_lines(path))
    path.write_bytes(b"plain text\n")
    with pytest.raises(ValueError, match="damaged after line 0"):
        list(read_lines(path))


def test_unequal_counts_name_both(tmp_path: Path) -> None:
    source = write(tmp_path / "a.en", b"1", b"2", b"3")
    target = write(tmp_path / "a.de", b"1", b"2")
    with pytest.raises(ValueError, match=r"a\.en has 3 lines but .*a\.de has 2"):
        check_pair(source, target)
    with pytest.raises(ValueError, match=r"a\.de has 2 lines but .*a\.en has 3"):
        check_pair(target, source)


@pytest.mark.parametrize("blank", [b"", b" ", b"\t", "\xa0\u2003".encode(), b"\r", "\u200b \ufeff".encode()])
def test_blank_lines_name_file_and_line(tmp_path: Path, blank: bytes) -> None:
    source = write(tmp_path / "a.en", b"1", b"2", b"3")
    target = write(tmp_path / "a.de", b"1", blank, b"3")
    with pytest.raises(ValueError, match=r"1 line is blank: \S*a\.de:2; .*on_empty=skip"):
        check_pair(source, target)
    summary = check_pair(source, target, allow_empty=True)
    assert (summary.lines, summary.empty) == (3, 1)
    assert list(read_pairs(source, target, skip_empty=True)) == [("1", "1"), ("3", "3")]


def test_what_can_be_seen_is_not_blank() -> None:
    assert all(is_blank(line) for line in ("", "\u200b", "\u00ad\u2060", "\u00a0\u200b\u3000\u200e\x85"))
    assert not any(is_blank(line) for line in ("a", "\u200ba", " . ", "\u200b\u0300", "語", "\U0001f600"))


def test_many_blank_lines_are_counted_but_not_all_listed(tmp_path: Path) -> None:
    source = write(tmp_path / "a.en", *[b""] * 20, b"x")
    target = write(tmp_path / "a.de", *[b"x"] * 21)
    with pytest.raises(ValueError, match=r"20 lines are blank: \S+:1, \S+:2, \S+:3, \S+:4, \S+:5, \.\.\."):
        check_pair(source, target)


def test_empty_files_and_all_blank_files_are_refused(tmp_path: Path) -> None:
    empty = write(tmp_path / "a.en"), write(tmp_path / "a.de")
    with pytest.raises(ValueError, match="there is no sentence pair"):
        check_pair(*empty)
    blank = write(tmp_path / "b.en", b""), write(tmp_path / "b.de", b"x")
    with pytest.raises(ValueError, match="blank side"):
        check_pair(*blank, allow_empty=True)


def test_digest_depends_on_text_and_direction_but_not_on_packing(tmp_path: Path) -> None:
    source, target = write(tmp_path / "a.en", b"1", b"2"), write(tmp_path / "a.de", b"3", b"4")
    packed = write(tmp_path / "a.en.gz", b"1", b"2")
    digest = check_pair(source, target).digest
    assert check_pair(packed, target).digest == digest
    assert check_pair(target, source).digest != digest
    assert check_pair(write(tmp_path / "b.en", b"1", b"2 "), target).digest != digest
    # The same bytes cut into other lines.
    assert check_pair(write(tmp_path / "c.en", b"12", b""), target, allow_empty=True).digest != digest


def test_missing_files_say_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"directory .*nowhere does not exist"):
        find_file(tmp_path / "nowhere", "train", "en")
    with pytest.raises(FileNotFoundError, match="holds no file named"):
        find_file(tmp_path, "train", "en")
    for name in ("train.de", "train.fr.gz", "val.de", "val.en", "val.en-de.vocab"):
        write(tmp_path / name, b"x")
    with pytest.raises(FileNotFoundError, match=r"'train' is there in these languages: de, fr"):
        find_file(tmp_path, "train", "en")
    with pytest.raises(FileNotFoundError, match=r"holds .*train\.\{de,fr\}, val\.\{de,en\}"):
        find_file(tmp_path, "valid", "en")
    assert find_file(tmp_path, "train", "fr") == tmp_path / "train.fr.gz"
    assert find_file(tmp_path.parent, f"{tmp_path.name}/train", "de") == tmp_path / "train.de"


def test_plain_and_packed_at_once_are_ambiguous(tmp_path: Path) -> None:
    write(tmp_path / "train.en", b"x")
    write(tmp_path / "train.en.gz", b"x")
    with pytest.raises(ValueError, match=r"both .*train\.en and train\.en\.gz"):
        find_file(tmp_path, "train", "en")


def test_prefixes_with_dots_are_listed(tmp_path: Path) -> None:
    write(tmp_path / "valid.newstest2013.en.gz", b"x")
    write(tmp_path / "train.pt-BR", b"x")
    assert list_splits(tmp_path) == {"train": ["pt-BR"], "valid.newstest2013": ["en"]}
