"""The comparisons of matching, losses and evaluation: rows, and that both sides compute the same."""

import csv

import pytest
import torch

from experiments.bench import coco_eval, matcher, record
from lit_models.detection.criterion import SetCriterion
from lit_models.detection.matcher import match

SMALL = ["--layers", "2", "--batch-size", "3", "--queries", "70", "--classes", "5", "--batches", "2", "--rounds", "2"]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    return tmp_path


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_matching_prints_and_records_every_part(results, capsys):
    assert matcher.main([*SMALL, "--record"]) == 0
    rows = rows_of(results / "matcher.csv")
    assert [(row["part"], row["provider"]) for row in rows] == [
        (part, provider) for part in matcher.PARTS for provider in ("heddle", "official")
    ]
    assert all(float(row["milliseconds"]) > 0 for row in rows)


def test_both_sides_match_and_score_the_same():
    options = matcher._parser().parse_args(SMALL)
    for number in range(2):
        predictions, batch = matcher.make_batch(options, number, torch.device("cpu"))
        targets = matcher.targets_of(batch)
        matched = match(predictions, batch)
        for layer, pairs in enumerate(matcher.official_match(predictions, targets)):
            for image, (queries, rows) in enumerate(pairs):
                assert matched[layer, 0, image, rows].tolist() == queries.tolist()
        ours = SetCriterion(5)(predictions, batch).total
        theirs = matcher.official_loss(predictions, targets, 5)
        torch.testing.assert_close(ours, theirs)
        for mine, other in zip(
            torch.autograd.grad(ours, predictions), torch.autograd.grad(theirs, predictions), strict=True
        ):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-7)


def test_evaluation_prints_and_records_equal_numbers(results, capsys):
    assert coco_eval.main(["--images", "30", "--detections", "20", "--rounds", "1", "--record"]) == 0
    ours, theirs = rows_of(results / "coco_eval.csv")
    assert (ours["provider"], theirs["provider"]) == ("faster-coco-eval", "pycocotools")
    assert ours["AP"] == theirs["AP"] and 0.05 < float(ours["AP"]) < 0.95
    assert float(ours["largest_difference"]) <= 1e-12


def test_unequal_evaluations_are_not_recorded(results, monkeypatch, capsys):
    monkeypatch.setattr(coco_eval, "largest_difference", lambda *results: 1e-3)
    assert coco_eval.main(["--images", "5", "--rounds", "1", "--record"]) == 2
    assert "the two evaluations differ by 0.001" in capsys.readouterr().err
    assert not (results / "coco_eval.csv").exists()


@pytest.mark.parametrize("main", [matcher.main, coco_eval.main])
def test_a_mistake_is_one_line_and_exit_code_2(main, capsys):
    assert main(["--rounds", "0"]) == 2
    assert "'0' must be a whole number of 1 or more" in capsys.readouterr().err
