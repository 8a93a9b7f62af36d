"""``translate``: the same translations in every form, in order, and one clear line for every mistake."""

import argparse
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_translator import MAX_LENGTH, PAIRS, write_checkpoint

from experiments.line_io import open_output, read_chunks
from experiments.translate import batches_by_length, main

# What kernels.backend says once, at the first use.
WHAT_RUNS = "heddle: attention, norms and losses run in PyTorch: the tensors are on cpu\n"
LINES = [source for source, _ in PAIRS][:12]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "last.ckpt"))


@pytest.fixture
def translate(checkpoint, capsys, monkeypatch):
    """Run the command on lines of standard input; returns exit code, output lines and standard error."""

    def call(lines, *options, model=checkpoint):
        data = lines if isinstance(lines, bytes) else "".join(f"{line}\n" for line in lines).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        code = main(["--checkpoint", model, "--device", "cpu", *map(str, options)])
        captured = capsys.readouterr()
        return code, captured.out.split("\n")[:-1], captured.err

    return call


def test_order_is_kept_whatever_the_batches(translate):
    lines = [*LINES, "the cat", "the animal sees a tree and the dog .", *LINES[::-1]]
    code, together, error = translate(lines)
    assert code == 0 and error == "" and len(together) == len(lines)
    assert len(set(together)) > 3, "the sentences differ, so do their translations"
    for options in (["--buffer-lines", 3], ["--batch-tokens", 1], ["--batch-tokens", 40, "--buffer-lines", 7]):
        assert translate(lines, *options)[1] == together
    assert [translate([line])[1][0] for line in lines[:3]] == together[:3]


def test_empty_lines_stay_empty(translate):
    code, output, _ = translate(["", LINES[0], "   ", LINES[1], "\u200b\xa0\ufeff"])
    assert code == 0
    assert [bool(line) for line in output] == [False, True, False, True, False]
    _, output, _ = translate(["", LINES[0]], "--json", "--alignments")
    assert json.loads(output[0])["translations"][0]["text"] == ""


def test_only_line_feeds_end_lines(translate):
    _, expected, _ = translate(LINES[:2])
    data = f"{LINES[0]}\r\n{LINES[1]}".encode()
    assert translate(b"\xef\xbb\xbf" + data)[1] == expected
    assert len(translate("the cat\u2028sees\x0bthe\x85dog\n".encode())[1]) == 1


def test_files(translate, tmp_path):
    source, target = tmp_path / "in.en", tmp_path / "out.de"
    source.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    code, output, _ = translate([], "--input", source, "--output", target)
    assert code == 0 and output == []
    assert target.read_text(encoding="utf-8").splitlines() == translate(LINES)[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.en", "out.de"]


def test_failure_leaves_the_old_output(translate, tmp_path):
    target = tmp_path / "out.de"
    target.write_text("as it was\n")
    code, _, error = translate(LINES[0].encode() + b"\n\xff\n", "--output", target, "--buffer-lines", 1)
    assert code == 2 and "line 2 of standard input is not UTF-8: byte 0xff at position 1" in error
    assert target.read_text() == "as it was\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out.de"]


def test_output_permissions_are_those_of_a_new_file(translate, tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    translate(LINES[:1], "--output", tmp_path / "out.de")
    assert (tmp_path / "out.de").stat().st_mode == plain.stat().st_mode


def test_n_best_as_text(translate):
    code, output, _ = translate([*LINES[:2], ""], "--n-best", 3, "--beam", 4)
    rows = [line.split(" ||| ") for line in output]
    assert code == 0 and [int(number) for number, _, _ in rows] == [1, 1, 1, 2, 2, 2, 3]
    scores = [float(score) for _, _, score in rows[:3]]
    assert scores == sorted(scores, reverse=True)
    _, best, _ = translate(LINES[:2], "--beam", 4)
    assert [rows[0][1], rows[3][1]] == best


def test_json_has_scores_tokens_and_alignments(translate):
    options = ["--json", "--alignments", "--n-best", 2, "--length-penalty", 1.0, "--length-penalty-kind", "power"]
    code, output, _ = translate(LINES[:3], *options)
    assert code == 0
    plain = translate(LINES[:3], *options[3:], "--n-best", 1)[1]
    for line, text, row in zip(LINES, plain, output, strict=False):
        record = json.loads(row)
        assert record["source"] == line
        assert "".join(record["source_tokens"]).replace("▁", " ").strip() == line
        assert len(record["translations"]) == 2
        assert record["translations"][0]["text"] == text
        for translation in record["translations"]:
            length = len(translation["tokens"]) + translation["finished"]
            assert translation["score"] == pytest.approx(translation["log_prob"] / length, rel=1e-5)
            assert [target for _, target in translation["alignment"]] == list(range(len(translation["tokens"])))
            assert all(0 <= place < len(record["source_tokens"]) for place, _ in translation["alignment"])
    assert "▁" in output[0], "not escaped"


def test_prefix(translate):
    code, output, _ = translate(LINES[:3], "--prefix", "die grüne")
    assert code == 0 and all(line.startswith("die grüne") for line in output)
    code, output, error = translate(LINES[:3], "--prefix", "die Ωmega Katze 語")
    assert code == 2 and output == []
    assert error.count("\n") == 1 and "'Ωmega', '語'" in error and "--prefix" in error


def test_sampling_is_seeded(translate):
    first = translate(LINES, "--sample", "--seed", 3)[1]
    assert translate(LINES, "--sample", "--seed", 3)[1] == first
    assert translate(LINES, "--sample", "--seed", 4)[1] != first
    assert translate(LINES, "--sample", "--top-k", 1)[1] == translate(LINES, "--beam", 1)[1]
    assert translate(LINES, "--sample", "--top-p", 1e-6, "--temperature", 0.1)[1] == translate(LINES, "--beam", 1)[1]


def test_length_limits(translate):
    records = [json.loads(row) for row in translate(LINES, "--json", "--max-length", 3, "--beam", 2)[1]]
    assert all(len(record["translations"][0]["tokens"]) <= 3 for record in records)
    records = [json.loads(row) for row in translate(LINES, "--json", "--min-length", 9, "--no-repeat-ngram", 1)[1]]
    for record in records:
        tokens = record["translations"][0]["tokens"]
        assert len(tokens) >= 8 and len(set(tokens)) == len(tokens)


def test_the_line_without_room_is_named(translate):
    lines = [" ".join(LINES[:2]), "", LINES[0], "the"]
    code, output, error = translate(lines, "--min-length", 53, "--buffer-lines", 1)
    assert code == 2 and len(output) == 3
    assert error.startswith("error: --min-length 53: the translation of line 4 may have at most 52 tokens")


def test_long_lines_are_cut_with_a_warning(translate):
    long = " ".join(["the cat sees"] * 20)
    code, output, error = translate([LINES[0], long, LINES[1]], "--buffer-lines", 1)
    assert code == 0 and len(output) == 3
    assert error.startswith("warning: line 2 has ") and f"takes {MAX_LENGTH}: its end is not translated" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--beam", 0], "--beam 0: it must be at least 1"),
        (["--n-best", 9, "--beam", 4], "--n-best 9 needs --beam 9 or more, not 4"),
        (["--top-k", 5], "--top-k needs --sample"),
        (["--seed", 5], "--seed needs --sample"),
        (["--sample", "--beam", 3], "--sample draws at random and has no --beam"),
        (["--sample", "--temperature", 0], "--temperature is 0.0; it must be above 0"),
        (["--sample", "--temperature", "inf"], "--temperature is inf"),
        (["--sample", "--top-p", "nan"], "--top-p is nan; it must be above 0 and at most 1"),
        (["--sample", "--seed", -1], "--seed -1: it must be from 0 to"),
        (["--sample", "--seed", 2**64], f"--seed {2**64}: it must be from 0 to"),
        (["--length-penalty", "nan"], "--length-penalty nan: it must be a finite number of at least 0"),
        (["--length-penalty", "inf"], "--length-penalty inf"),
        (["--length-penalty=-1"], "--length-penalty -1.0"),
        (
            ["--length-penalty-kind", "none", "--length-penalty", 0.6],
            "--length-penalty has no effect with --length-penalty-kind none",
        ),
        (["--prefix", ""], "--prefix is empty"),
        (["--prefix", "\u200b "], "--prefix is empty"),
        (["--min-length", 500], "--min-length 500: the translation of line 1 may have at most "),
        (
            ["--prefix", "die", "--max-length", 1],
            "--prefix has 1 tokens: the translation of line 1 may have",
        ),
        (["--alignments"], "--alignments needs --json"),
        (["--max-length", 3, "--min-length", 4], "--min-length 4 is more than --max-length 3"),
        (["--min-length", -1], "--min-length -1: it must not be negative"),
        (["--bema", 3], 'unknown argument "--bema"; did you mean "--beam"?'),
        (["--check", "x"], 'unknown argument "--check"'),
        (["--beam", "many"], "--beam: invalid int value: 'many'"),
        (["--device", "gpu"], "--device: invalid choice: 'gpu'"),
        (["--input", "no/such/file.en"], '--input "no/such/file.en": there is no such file'),
        (["--input", "tests"], '--input "tests": is a directory'),
        (["--output", "no/such/file.de"], 'there is no directory "no/such"'),
        (["--output", "tests"], '--output "tests" is a directory'),
    ],
)
def test_mistakes_are_one_line(translate, options, message):
    code, output, error = translate(LINES[:1], *options)
    assert code == 2 and output == []
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_no_cuda_device(translate):
    code, _, error = translate(LINES[:1], "--device", "cuda")
    assert code == 2 and "PyTorch finds no CUDA device" in error


def test_empty_input(translate, tmp_path):
    code, output, error = translate([], "--output", tmp_path / "out")
    assert code == 2 and output == [] and error == "error: standard input is empty: there is nothing to translate\n"
    assert not list(tmp_path.iterdir())


def test_run_directories(translate, checkpoint, tmp_path):
    expected = translate(LINES)[1]
    run = Path(checkpoint).parent.parent
    assert translate(LINES, model=str(run))[1] == expected
    best = write_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"not read")
    assert translate(LINES, model=str(tmp_path))[1] == expected
    code, _, error = translate(LINES, model=str(best.with_name("bset.ckpt")))
    assert code == 2 and "there is no checkpoint" in error and 'best.ckpt"?' in error
    code, _, error = translate(LINES, model=str(Path(__file__).parent))
    assert code == 2 and "is a directory without checkpoints/best.ckpt" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no checkpoint at all", "is not a PyTorch checkpoint"),
        (b"cats\nand dogs\n", "is not a PyTorch checkpoint"),
        (b"", "is not a PyTorch checkpoint"),
        (b"PK\x03\x04 and no more", "is not a PyTorch checkpoint"),
        (b"\x80\x02and no more", "is not a PyTorch checkpoint"),
        (pickle.dumps({"weights": [1.0]}), "is not a PyTorch checkpoint"),
        (pickle.dumps(Path.cwd, protocol=2), "which only code can rebuild, and no code is run from a checkpoint"),
        ({"state_dict": {}, "hook": print}, "holds an object of"),
        ({"state_dict": {}, "settings": argparse.Namespace()}, "holds an object of argparse.Namespace"),
        ({"state_dict": {}}, "is not a translation checkpoint"),
        ({"WMTDataModule": None}, "has no tokenizer"),
        ({"WMTDataModule": {"tokenizer": {"shared": True}}}, "other.ckpt: this is not the state of a tokenizer"),
    ],
)
def test_unreadable_and_foreign_checkpoints(translate, tmp_path, content, message):
    path = tmp_path / "other.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif "state_dict" in content:
        torch.save(content, path)
    else:
        write_checkpoint(path, **content)
    code, output, error = translate(LINES, model=str(path))
    assert code == 2 and output == []
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert "weights_only" not in error


def test_bf16(translate):
    code, output, _ = translate(LINES[:3], "--precision", "bf16", "--verbose")
    assert code == 0 and len(output) == 3


def test_speed_report_only_when_asked(translate):
    assert translate(LINES)[2] == ""
    error = translate(LINES, "--verbose")[2]
    assert error.startswith(f"{len(LINES)} lines, ") and error.endswith(" lines/s\n")


def test_batches_respect_the_budget():
    lengths = [3, 9, 1, 9, 4, 4, 30, 2]
    batches = list(batches_by_length(lengths, 20))
    assert sorted(number for batch in batches for number in batch) == list(range(8))
    for batch in batches:
        assert len(batch) * max(lengths[number] for number in batch) <= 20 or len(batch) == 1
    assert batches[0] == [6] and batches[1] == [1, 3]


def test_lines_of_a_pipe_come_as_they_arrive():
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as stream:
        chunks = read_chunks(stream, "pipe", 100)
        os.write(writing, b"eins\nzwei\ndr")
        assert next(chunks) == ["eins", "zwei"]
        os.write(writing, b"ei\r\nvier")
        assert next(chunks) == ["drei"]
        os.close(writing)
        assert list(chunks) == [["vier"]]


def test_chunks_of_a_pipe_have_a_size_limit():
    reading, writing = os.pipe()
    os.write(writing, b"a\n" * 10)
    os.close(writing)
    with open(reading, "rb", buffering=0) as stream:
        assert [len(chunk) for chunk in read_chunks(stream, "pipe", 4)] == [4, 4, 2]


def test_reader_that_goes_away(checkpoint):
    """``translate | head -1`` in processes of their own: no message, and no wait for the rest of the input."""
    command = [sys.executable, "-m", "experiments", "translate", "--checkpoint", checkpoint, "--buffer-lines", "1"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(f"{LINES[0]}\n".encode())
    process.stdin.flush()
    assert process.stdout.readline().endswith(b"\n"), "the first answer comes before the input ends"
    process.stdout.close()
    process.stdin.write("".join(f"{line}\n" for line in LINES).encode())
    process.stdin.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read().decode() == WHAT_RUNS
    process.stderr.close()


@contextmanager
def full_disk():
    """Let no file grow, which a write reports as a full disk does: without a file name.

    It holds for the whole process, the file that the test runner writes to included: for as short as can be.
    """
    resource = pytest.importorskip("resource")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_names_the_output(tmp_path):
    with full_disk(), pytest.raises(OSError) as caught, open_output(str(tmp_path / "out.de")) as output:
        output.write("x" * 100)
    assert caught.value.filename == str(tmp_path / "out.de")
    assert not list(tmp_path.iterdir())


def test_a_directory_without_permission_names_the_output(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied", str(tmp_path / ".out.de.x.tmp"))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(PermissionError) as caught, open_output(str(tmp_path / "out.de")):
        pass
    assert caught.value.filename == str(tmp_path / "out.de")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_full_standard_output(checkpoint):
    command = [sys.executable, "-m", "experiments", "translate", "--checkpoint", checkpoint]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, input=LINES[0].encode(), stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert done.stderr.decode() == WHAT_RUNS + "error: standard output: No space left on device\n"


def test_sigterm_leaves_nothing_behind(checkpoint, tmp_path):
    command = [sys.executable, "-m", "experiments", "translate", "--checkpoint", checkpoint, "--buffer-lines", "1"]
    process = subprocess.Popen(
        [*command, "--output", tmp_path / "out.de"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [path.name.startswith(".out.de.") for path in tmp_path.iterdir()] == [True]
    process.terminate()
    assert process.wait(timeout=60) == 143
    process.stdin.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert not list(tmp_path.iterdir())
