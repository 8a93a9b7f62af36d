"""``bench run``: a run directory as one row of its task's table."""

import csv
import json

import pytest

from experiments.bench import record
from experiments.bench.curves import main as curves
from experiments.bench.run import main


def run_directory(path, metrics):
    path.mkdir()
    (path / "environment.json").write_text(
        json.dumps({"cpu": "a CPU", "threads": 2, "gpus": [], "torch": "2", "packages": {"lightning": "2.6"}})
    )
    (path / "git.txt").write_text("commit: 0123456789abcdef\n")
    (path / "git.diff").write_text("")
    (path / "command.txt").write_text("fit -c some/config.yaml\n")
    (path / "config.yaml").write_text("seed_everything: 3\n")
    with (path / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "train/loss", *metrics])
        writer.writeheader()
        writer.writerow({"step": 5, "train/loss": 1.0})
        writer.writerow({"step": 7, **metrics})
    return path


IMAGES = {"test/accuracy": 0.91234, "test/accuracy_top5": 0.99, "test/loss": 0.25}
DETECTIONS = {
    "test/AP": 0.61234,
    "test/AP50": 0.9,
    "test/AP75": 0.7,
    "test/APs": 0.4,
    "test/APm": 0.6,
    "test/APl": -1.0,
    "test/AR100": 0.65,
}
TRANSLATIONS = {
    "test/bleu": 30.0,
    "test/bleu_moses_lowercase": 31.0,
    "test/chrf": 50.0,
    "test/loss": 2.0,
    "test/perplexity": 7.4,
}


@pytest.mark.parametrize(
    ("metrics", "table"),
    [(IMAGES, "classification_runs"), (TRANSLATIONS, "runs"), (DETECTIONS, "detection_runs")],
)
def test_a_row_goes_to_the_tasks_table(tmp_path, monkeypatch, capsys, metrics, table):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    assert main([str(run_directory(tmp_path / "run", metrics)), "--record"]) == 0
    with (tmp_path / "results" / f"{table}.csv").open() as file:
        [row] = csv.DictReader(file)
    assert row["config"] == "some/config.yaml" and row["steps"] == "7" and row["commit"] == "0123456789"
    for name, value in metrics.items():
        assert float(row[name]) == pytest.approx(value, abs=5e-5)
    assert row.get("seed") == (None if table == "runs" else "3")
    if table == "classification_runs":
        assert row["test/accuracy_distillation"] == ""


def test_a_run_that_was_not_tested(tmp_path, capsys):
    assert main([str(run_directory(tmp_path / "run", {"val/loss": 1.0}))]) == 2
    assert "is not the directory of a run that was tested" in capsys.readouterr().err


def test_a_test_of_its_own_says_what_was_tested(tmp_path, capsys):
    run = run_directory(tmp_path / "run", DETECTIONS)
    (run / "command.txt").write_text(
        "python -m experiments test -c some/config.yaml --data.init_args.test_images=train\n"
    )
    assert main([str(run)]) == 0
    assert "some/config.yaml test_images=train\n" in capsys.readouterr().out


def test_curves_are_rows_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    runs = [run_directory(tmp_path / name, DETECTIONS) for name in ("one", "two")]
    for run in runs:
        lines = ["step,train/images,val/AP,test/AP", "4,64,,", "5,,0.25,", "8,128,,", "10,,0.5,", "10,,,0.5"]
        (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    picture = tmp_path / "curves.png"
    words = [*map(str, runs), "--metrics", "val/AP"]
    assert curves([*words, "--record", "--plot", str(picture)]) == 0
    with (tmp_path / "results" / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["images"], row["value"]) for row in rows] == 2 * [
        ("5", "80", "0.25"),
        ("10", "160", "0.5"),
    ]
    assert {row["config"] for row in rows} == {"some/config.yaml"} and picture.stat().st_size
    assert curves([*words, "val/AP50"]) == 2
    assert "has no values of val/AP50" in capsys.readouterr().err
