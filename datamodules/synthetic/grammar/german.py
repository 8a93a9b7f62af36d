"""Puts a sentence of the grammar into German words: endings, cases, and the place of every verb."""

from typing import Literal

from datamodules.synthetic.grammar.lexicon import BE, HAVE
from datamodules.synthetic.grammar.numerals import number_in_german
from datamodules.synthetic.grammar.phrases import (
    Case,
    Clause,
    Conjunction,
    Gender,
    GermanVerb,
    NounPhrase,
    Phrase,
    Predicate,
    Prepositional,
    Pronoun,
    Relative,
    Tense,
    Words,
    agreement,
    join,
)

Form = Literal["masculine", "feminine", "neuter", "plural"]
_FORMS: tuple[Form, ...] = ("masculine", "feminine", "neuter", "plural")


def _paradigm(nominative: str, accusative: str, dative: str) -> dict[Case, dict[Form, str]]:
    """Reads three rows of four forms; "-" is the empty ending."""
    rows: dict[Case, str] = {"nominative": nominative, "accusative": accusative, "dative": dative}
    return {
        case: dict(zip(_FORMS, (word.replace("-", "") for word in row.split()), strict=True))
        for case, row in rows.items()
    }


_DEFINITE = _paradigm("der die das die", "den die das die", "dem der dem den")
_RELATIVE = _paradigm("der die das die", "den die das die", "dem der dem denen")
_DIESER_ENDINGS = _paradigm("er e es e", "en e es e", "em er em en")
_EIN_ENDINGS = _paradigm("- e - e", "en e - e", "em er em en")
# An adjective is weak after "der" and "dieser", mixed after "ein" and "mein", strong where nothing shows the case.
_WEAK_ENDINGS = _paradigm("e e e en", "en e e en", "en en en en")
_MIXED_ENDINGS = _paradigm("er e es en", "en e es en", "en en en en")
_STRONG_ENDINGS = _paradigm("er e es e", "en e es e", "em er em en")

_DIESER_WORDS = {"this": "dies", "every": "jed"}
_EIN_WORDS = {"a": "ein", "no": "kein", "my": "mein", "his": "sein", "her": "ihr", "our": "unser"}

_PRONOUNS: dict[str, dict[Case, str]] = {
    "I": {"nominative": "ich", "accusative": "mich", "dative": "mir"},
    "he": {"nominative": "er", "accusative": "ihn", "dative": "ihm"},
    "she": {"nominative": "sie", "accusative": "sie", "dative": "ihr"},
    "we": {"nominative": "wir", "accusative": "uns", "dative": "uns"},
    "they": {"nominative": "sie", "accusative": "sie", "dative": "ihnen"},
    "who": {"nominative": "wer", "accusative": "wen", "dative": "wem"},
    "what": {"nominative": "was", "accusative": "was"},
}
_IT: dict[Gender, str] = {"masculine": "er", "feminine": "sie", "neuter": "es"}

_CONTRACTIONS = {
    ("in", "dem"): "im",
    ("in", "das"): "ins",
    ("an", "dem"): "am",
    ("zu", "dem"): "zum",
    ("zu", "der"): "zur",
}

_HABEN = HAVE.german
_SEIN = BE.german
_WERDEN = GermanVerb("werden", "werde", "wird", "werden", "wurde", "geworden", "sein")
_KOENNEN = GermanVerb("können", "kann", "kann", "können", "konnte", "gekonnt", "haben")
_MUESSEN = GermanVerb("müssen", "muss", "muss", "müssen", "musste", "gemusst", "haben")
_WOLLEN = GermanVerb("wollen", "will", "will", "wollen", "wollte", "gewollt", "haben")

# Tense -> the auxiliary or modal verb that carries the person, and whether it stands in the past.
_FINITE: dict[Tense, tuple[GermanVerb, bool]] = {
    "future": (_WERDEN, False),
    "can": (_KOENNEN, False),
    "could": (_KOENNEN, True),
    "must": (_MUESSEN, False),
    "had to": (_MUESSEN, True),
    "want": (_WOLLEN, False),
    "wanted": (_WOLLEN, True),
}
_PAST_TENSES: tuple[Tense, ...] = ("past", "background", "could", "had to", "wanted")


def main(clause: Clause, before: str = "") -> str:
    """Says a main clause, whose finite verb is second: after the subject, or after whatever else comes first.

    Args:
        clause: The clause.
        before: A subordinate clause in first place.

    Returns:
        The words, without capital and full stop; " ," marks each clause boundary (`punctuate` tidies them).
    """
    finite, end = _verb(clause)
    if before:
        return join(before, ",", finite, _subject(clause), _middle(clause), end)
    if clause.time and clause.time_first:
        return join(clause.time.german, finite, _subject(clause), _middle(clause), end)
    return join(_subject(clause), finite, _middle(clause), end)


def question(clause: Clause, opener: str = "") -> str:
    """Says a question: the finite verb comes first, or second after an interrogative."""
    finite, end = _verb(clause)
    return join(opener, finite, _subject(clause), _middle(clause), end)


def subordinate(opener: str | Conjunction, clause: Clause) -> str:
    """Says a subordinate clause, whose finite verb is last; a separable prefix joins it there ("aufsteht")."""
    if isinstance(opener, Conjunction):
        opener = opener.german_past if clause.tense in _PAST_TENSES else opener.german
    finite, end = _verb(clause)
    verbs = end + finite if end and end == clause.verb.german.prefix else join(end, finite)
    return join(opener, _subject(clause), _middle(clause), verbs)


def punctuate(sentence: str) -> str:
    """Sets the commas: none before another mark, and none after a space."""
    return sentence.replace(" , ,", " ,").replace(" ,.", ".").replace(" ,?", "?").replace(" ,", ",")


def phrase(item: Phrase, case: Case, *, negated: bool = False) -> str:
    """Says a pronoun or noun phrase in a case; `negated` turns "ein" and no article into "kein"."""
    if isinstance(item, Pronoun):
        return _IT[item.gender] if item.gender else _PRONOUNS[item.name][case]
    form: Form = "plural" if item.plural else item.noun.gender
    determiner, endings = _determiner(item, case, form, negated)
    adjective = item.adjective.german_stem + endings[case][form] if item.adjective else ""
    label = "" if item.label is None else number_in_german(item.label)
    return join(determiner, adjective, _noun(item, case), label, _relative(item.relative, form))


def prepositional(item: Prepositional) -> str:
    """Says a preposition with its phrase, contracted where German does ("im", "zur")."""
    words = phrase(item.phrase, item.preposition.case)
    article, _, rest = words.partition(" ")
    contraction = _CONTRACTIONS.get((item.preposition.german, article))
    return f"{contraction} {rest}" if contraction else f"{item.preposition.german} {words}"


def _noun(item: NounPhrase, case: Case) -> str:
    noun = item.noun
    if not item.plural:
        return noun.german if case == "nominative" else noun.german_oblique
    if case == "dative" and noun.german_plural[-1] not in "ns":
        return f"{noun.german_plural}n"
    return noun.german_plural


def _determiner(item: NounPhrase, case: Case, form: Form, negated: bool) -> tuple[str, dict[Case, dict[Form, str]]]:
    """Says the determiner, and which endings an adjective takes after it."""
    name = item.determiner
    if item.count is not None:
        return number_in_german(item.count), _STRONG_ENDINGS
    if negated and not item.definite:
        name = "no"
    if name == "the":
        return _DEFINITE[case][form], _WEAK_ENDINGS
    if name in _DIESER_WORDS:
        return _DIESER_WORDS[name] + _DIESER_ENDINGS[case][form], _WEAK_ENDINGS
    if name in _EIN_WORDS:
        return _EIN_WORDS[name] + _EIN_ENDINGS[case][form], _MIXED_ENDINGS
    return "", _STRONG_ENDINGS


def _relative(relative: Relative | None, form: Form) -> str:
    if relative is None:
        return ""
    cases: dict[str, Case] = {"subject": "nominative", "accusative": "accusative", "dative": "dative"}
    case = relative.preposition.case if relative.preposition else cases[relative.role]
    pronoun = join(relative.preposition.german if relative.preposition else "", _RELATIVE[case][form])
    return join(",", subordinate(pronoun, relative.clause), ",")


def _subject(clause: Clause) -> str:
    return phrase(clause.subject, "nominative") if clause.subject else ""


def _verb(clause: Clause) -> tuple[str, str]:
    """Splits the verb into the finite part and what closes the clause: prefix, participle or infinitive."""
    person, plural = agreement(clause.subject, clause.subject_plural)
    verb = clause.verb.german
    if clause.tense == "perfect":
        return _inflect(_SEIN if verb.auxiliary == "sein" else _HABEN, person, plural, past=False), verb.participle
    if clause.tense in _FINITE:
        auxiliary, past = _FINITE[clause.tense]
        return _inflect(auxiliary, person, plural, past=past), verb.infinitive
    return _inflect(verb, person, plural, past=clause.tense in _PAST_TENSES), verb.prefix


def _inflect(verb: GermanVerb, person: int, plural: bool, *, past: bool) -> str:
    if past:
        return verb.past if not plural else verb.past + ("n" if verb.past.endswith("e") else "en")
    if plural:
        return verb.plural
    return verb.first_person if person == 1 else verb.third_person


def _middle(clause: Clause) -> str:
    """Orders what stands between the two parts of the verb.

    Pronouns and what is known come before the time and "nicht", what is new after them; of two known objects only the
    dative comes before the time; places and predicate come last.
    """
    dative, accusative = clause.dative, clause.accusative
    kein = clause.negated and isinstance(accusative, NounPhrase) and not accusative.definite
    known: list[str] = []
    known_after_time: list[str] = []
    new: list[str] = []
    if isinstance(accusative, Pronoun):
        known.append(phrase(accusative, "accusative"))
    if dative:
        is_known = _is_known(dative) or (accusative is not None and _is_known(accusative))
        (known if is_known else new).append(phrase(dative, "dative"))
    if isinstance(accusative, NounPhrase):
        target = new if not accusative.definite else known_after_time if dative else known
        target.append(phrase(accusative, "accusative", negated=kein))
    return join(
        *known,
        _german(None if clause.time_first else clause.time),
        *known_after_time,
        _german(clause.adverb),
        *new,
        "nicht" if clause.negated and not kein else "",
        _german(clause.manner),
        *(prepositional(place) for place in clause.places),
        _predicate(clause.predicate) if clause.predicate else "",
    )


def _is_known(item: Phrase) -> bool:
    return isinstance(item, Pronoun) or item.definite


def _german(words: Words | None) -> str:
    return words.german if words else ""


def _predicate(predicate: Predicate) -> str:
    if predicate.adjective is None:
        return number_in_german(predicate.number or 0)
    word = predicate.adjective.german
    if predicate.measure:
        return join(phrase(predicate.measure, "accusative"), word)
    if predicate.standard and predicate.degree == "comparative":
        return join(predicate.adjective.german_comparative, "als", phrase(predicate.standard, "nominative"))
    if predicate.standard:
        return join("so", word, "wie", phrase(predicate.standard, "nominative"))
    return word if predicate.degree == "plain" else join({"very": "sehr", "too": "zu"}[predicate.degree], word)
