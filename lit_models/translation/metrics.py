"""Corpus scores of translations, by sacreBLEU (Post 2018), each with the signature that makes it comparable."""

from functools import cache
from typing import Any, NamedTuple


class CorpusScores(NamedTuple):
    """Scores in percent, and the signature of each."""

    values: dict[str, float]
    signatures: dict[str, str]


def corpus_scores(hypotheses: list[str], references: list[str], language: str | None = None) -> CorpusScores:
    """Score detokenised, cased translations against one reference each.

    ``bleu`` is cased sacreBLEU with its own 13a tokenisation; ``chrf`` is chrF2; ``bleu_moses_lowercase`` is
    :func:`moses_lowercase_bleu`.

    Args:
        hypotheses: Translations.
        references: As many reference translations.
        language: Two-letter code of their language; None leaves ``bleu_moses_lowercase`` out.

    Raises:
        ValueError: If there are none, or not as many of each.
    """
    from sacrebleu.metrics import BLEU, CHRF

    _check_pairs(hypotheses, references)
    metrics = {"bleu": BLEU(), "chrf": CHRF()}
    values = {name: metric.corpus_score(hypotheses, [references]).score for name, metric in metrics.items()}
    signatures = {name: str(metric.get_signature()) for name, metric in metrics.items()}
    if language is not None:
        name = "bleu_moses_lowercase"
        values[name], signatures[name] = moses_lowercase_bleu(hypotheses, references, language)
    return CorpusScores(values, signatures)


def moses_lowercase_bleu(hypotheses: list[str], references: list[str], language: str) -> tuple[float, str]:
    """Score as the Multi30k literature does: both sides punctuation-normalised, lower-cased and Moses-tokenised.

    Args:
        hypotheses: Detokenised translations.
        references: As many reference translations.
        language: Two-letter code of their language, for the tokenizer's rules.

    Returns:
        BLEU in percent, and the sacreBLEU signature of the score over those tokens.
    """
    from sacrebleu.metrics import BLEU

    _check_pairs(hypotheses, references)
    bleu = BLEU(tokenize="none", force=True)
    tokenized = [[_moses_tokens(line, language) for line in lines] for lines in (hypotheses, references)]
    score = bleu.corpus_score(tokenized[0], [tokenized[1]]).score
    return score, f"{bleu.get_signature()} after Moses normalisation, lower-casing and tokenisation"


def _moses_tokens(line: str, language: str) -> str:
    normalizer, tokenizer = _moses(language)
    return tokenizer.tokenize(normalizer.normalize(line).lower(), escape=False, return_str=True)


@cache
def _moses(language: str) -> tuple[Any, Any]:
    from sacremoses import MosesPunctNormalizer, MosesTokenizer

    return MosesPunctNormalizer(lang=language), MosesTokenizer(lang=language)


def _check_pairs(hypotheses: list[str], references: list[str]) -> None:
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(f"need as many references as translations, at least one: {len(references)}, {len(hypotheses)}")
