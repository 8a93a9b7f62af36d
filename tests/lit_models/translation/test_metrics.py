"""Scores and their signatures."""

import pytest
import sacrebleu

from lit_models.translation.metrics import corpus_scores, moses_lowercase_bleu

HYPOTHESES = ["Ein Hund läuft über die Wiese.", "Zwei Männer sitzen auf der Bank, im Park."]
REFERENCES = ["Ein Hund rennt über die Wiese.", "Zwei Männer sitzen auf einer Bank im Park."]


def test_sacrebleu_and_signature():
    scores = corpus_scores(HYPOTHESES, REFERENCES)
    assert scores.values["bleu"] == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert "tok:13a" in scores.signatures["bleu"]
    assert "case:mixed" in scores.signatures["bleu"]
    assert scores.values["chrf"] == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score


def test_moses_lowercase():
    score, signature = moses_lowercase_bleu([line.upper() for line in REFERENCES], REFERENCES, "de")
    assert score == pytest.approx(100.0)
    assert "tok:none" in signature
    tokens = "ein hund läuft über die wiese .", "zwei männer sitzen auf der bank , im park ."
    wanted = "ein hund rennt über die wiese .", "zwei männer sitzen auf einer bank im park ."
    expected = sacrebleu.corpus_bleu(tokens, [wanted], tokenize="none", force=True).score
    assert moses_lowercase_bleu(HYPOTHESES, REFERENCES, "de")[0] == pytest.approx(expected)


def test_unequal_numbers_are_named():
    with pytest.raises(ValueError, match="as many references as translations"):
        corpus_scores(HYPOTHESES, REFERENCES[:1])
