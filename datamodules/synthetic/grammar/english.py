"""Puts a sentence of the grammar into English words."""

from datamodules.synthetic.grammar.lexicon import BE
from datamodules.synthetic.grammar.numerals import number_in_english
from datamodules.synthetic.grammar.phrases import (
    Clause,
    Conjunction,
    NounPhrase,
    Phrase,
    Predicate,
    Prepositional,
    Pronoun,
    Relative,
    agreement,
    join,
)

_OBJECT_FORMS = {"I": "me", "he": "him", "she": "her", "we": "us", "they": "them"}
_FIXED_AUXILIARIES = {"future": "will", "can": "can", "could": "could", "must": "must"}


def main(clause: Clause, before: str = "") -> str:
    """Says a main clause.

    Args:
        clause: The clause.
        before: A subordinate clause in front of it, with its comma.

    Returns:
        The words, without capital and full stop.
    """
    time = clause.time.english if clause.time and clause.time_first else ""
    return join(before, time, statement(clause))


def subordinate(conjunction: Conjunction, clause: Clause) -> str:
    """Says a subordinate clause: English keeps the word order of a main clause."""
    return join(conjunction.english, statement(clause))


def question(clause: Clause, opener: str = "") -> str:
    """Says a question that inverts subject and auxiliary, after an interrogative if there is one ("where did ...")."""
    auxiliary, verb = _verb(clause, auxiliary_needed=True)
    adverb = clause.adverb.english if clause.adverb else ""
    return join(opener, auxiliary, _subject(clause), "not" if clause.negated else "", adverb, verb, _rest(clause))


def statement(clause: Clause) -> str:
    """Says a clause in the order subject, verb, objects; a missing subject is left out."""
    auxiliary, verb = _verb(clause, auxiliary_needed=clause.negated)
    if clause.negated:
        auxiliary = "cannot" if auxiliary == "can" else f"{auxiliary} not"
    adverb = clause.adverb.english if clause.adverb else ""
    return join(_subject(clause), auxiliary, adverb, verb, _rest(clause))


def phrase(item: Phrase, *, is_object: bool = False) -> str:
    """Says a pronoun or noun phrase."""
    if isinstance(item, Pronoun):
        return _OBJECT_FORMS.get(item.name, item.name) if is_object else item.name
    noun = item.noun.english_plural if item.plural else item.noun.english
    adjective = item.adjective.english if item.adjective else ""
    label = "" if item.label is None else number_in_english(item.label)
    return join(_determiner(item, adjective or noun), adjective, noun, label, _relative(item.relative))


def prepositional(item: Prepositional) -> str:
    """Says a preposition with its phrase."""
    return join(item.preposition.english, phrase(item.phrase, is_object=True))


def _subject(clause: Clause) -> str:
    return phrase(clause.subject) if clause.subject else ""


def _determiner(item: NounPhrase, next_word: str) -> str:
    if item.count is not None:
        return number_in_english(item.count)
    if item.determiner == "a":
        return "an" if next_word[0] in "aeiou" else "a"
    if item.determiner == "this" and item.plural:
        return "these"
    return item.determiner


def _relative(relative: Relative | None) -> str:
    if relative is None:
        return ""
    if relative.preposition:
        pronoun = f"{relative.preposition.english} which"
    elif relative.role == "dative":
        pronoun = "to whom"
    else:
        pronoun = "who" if relative.person and relative.role == "subject" else "that"
    return join(pronoun, statement(relative.clause))


def _verb(clause: Clause, *, auxiliary_needed: bool) -> tuple[str, str]:
    """Splits the verb into its auxiliary ("" if there is none) and the rest; "do" helps out where one is needed."""
    person, plural = agreement(clause.subject, clause.subject_plural)
    singular_third = person == 3 and not plural
    verb = clause.verb.english
    be = "am" if person == 1 and not plural else "is" if singular_third else "are"
    be_past = "were" if plural else "was"
    has = "has" if singular_third else "have"

    if clause.tense in _FIXED_AUXILIARIES:
        return _FIXED_AUXILIARIES[clause.tense], verb.base
    if clause.verb is BE:
        return (be_past if clause.tense == "past" else be), ""
    if clause.tense == "background":
        return be_past, verb.progressive
    if clause.tense == "perfect":
        return has, verb.participle
    if clause.tense == "present" and clause.verb.kind == "action":
        return be, verb.progressive

    # What is left is a simple tense, of the verb itself or of "have to" and "want to" before it.
    past = clause.tense in ("past", "had to", "wanted")
    base, third, simple_past, rest = verb.base, verb.third_person, verb.past, ""
    if clause.tense == "had to":
        base, third, simple_past, rest = "have", "has", "had", f"to {verb.base}"
    elif clause.tense in ("want", "wanted"):
        base, third, simple_past, rest = "want", "wants", "wanted", f"to {verb.base}"
    if auxiliary_needed:
        do = "did" if past else "does" if singular_third else "do"
        return do, join(base, rest)
    return "", join(simple_past if past else third if singular_third else base, rest)


def _rest(clause: Clause) -> str:
    """Says what follows the verb: objects, predicate, manner, place, time."""
    return join(
        phrase(clause.dative, is_object=True) if clause.dative else "",
        phrase(clause.accusative, is_object=True) if clause.accusative else "",
        _predicate(clause.predicate) if clause.predicate else "",
        clause.manner.english if clause.manner else "",
        *(prepositional(place) for place in clause.places),
        clause.time.english if clause.time and not clause.time_first else "",
    )


def _predicate(predicate: Predicate) -> str:
    if predicate.adjective is None:
        return number_in_english(predicate.number or 0)
    word = predicate.adjective.english
    if predicate.measure:
        return join(phrase(predicate.measure), word)
    if predicate.standard and predicate.degree == "comparative":
        return join(predicate.adjective.english_comparative, "than", phrase(predicate.standard))
    if predicate.standard:
        return join("as", word, "as", phrase(predicate.standard))
    return word if predicate.degree == "plain" else join(predicate.degree, word)
