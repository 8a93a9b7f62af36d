"""Sentences with a relative clause: its pronoun has the noun's gender and number, and the case of its own clause."""

from collections.abc import Callable
from dataclasses import replace

from datamodules.synthetic.grammar import lexicon
from datamodules.synthetic.grammar.descriptions import quality
from datamodules.synthetic.grammar.draws import Draws
from datamodules.synthetic.grammar.events import PERSONS, definite, dress, event, everyday, noun_phrase
from datamodules.synthetic.grammar.frames import GIVING, LASTING, MEN, PEOPLE, WOMEN
from datamodules.synthetic.grammar.lexicon import VERBS
from datamodules.synthetic.grammar.phrases import Clause, NounPhrase, Phrase, Relative, Tense, Verb, without

_PLACED = tuple(frame for frame in LASTING if frame.verb in (VERBS["sleep"], VERBS["work"], VERBS["live"]))
_MEETING: tuple[Verb, ...] = (VERBS["know"], VERBS["see"], VERBS["help"], VERBS["visit"])
_NOTICING: tuple[Verb, ...] = (VERBS["see"], VERBS["find"])


def relative_sentence(draws: Draws) -> Clause:
    """Draws a clause whose subject or last object has a relative clause."""
    head = draws.weighted(_RELATIVES)(draws)
    past = head.relative is not None and head.relative.clause.tense == "past"
    if not past or draws.chance(0.6):
        return quality(draws, draws.weighted(((1, "past"), (1, "habitual"))) if past else "habitual", head)
    verb = draws.pick(_MEETING if head.noun in PEOPLE else _NOTICING)
    subject: Phrase = draws.pick(PERSONS) if draws.chance(0.6) else _other_person(draws, head)
    if verb is VERBS["help"]:
        return Clause(subject, verb, "past", dative=head)
    return Clause(subject, verb, "past", accusative=head)


def _other_person(draws: Draws, head: NounPhrase) -> NounPhrase:
    while True:
        phrase = noun_phrase(draws, draws.pick(MEN + WOMEN))
        if phrase.noun is not head.noun:
            return phrase


def _head(phrase: Phrase | None, relative: Relative) -> NounPhrase | None:
    """Gives a relative clause to a phrase that can have one: a countable noun that the clause singles out."""
    if not isinstance(phrase, NounPhrase) or phrase.noun.mass:
        return None
    return replace(phrase, determiner="a" if phrase.determiner == "a" else "the", relative=relative)


def _subject_relative(draws: Draws) -> NounPhrase:
    """Draws "the man who bought the car": the pronoun is the subject of its clause."""
    while True:
        clause = dress(draws, _event(draws), time=0.15, time_first=0)
        subject = clause.subject
        if not isinstance(subject, NounPhrase):
            continue
        clause = replace(clause, subject=None, subject_plural=subject.plural)
        head = _head(subject, Relative("subject", clause, person=subject.noun in PEOPLE))
        if head:
            return head


def _object_relative(draws: Draws) -> NounPhrase:
    """Draws "the car that the man bought": the pronoun is the direct object."""
    while True:
        clause = _event(draws)
        head = _head(clause.accusative, Relative("accusative", without(clause, "accusative"), person=False))
        if head and not clause.dative and not clause.places:
            return definite(head)


def _dative_relative(draws: Draws) -> NounPhrase:
    """Draws "the woman to whom the man gave the car": the pronoun is the indirect object."""
    while True:
        tense: Tense = draws.weighted(((1, "past"), (1, "perfect")))
        clause = event(draws, draws.pick(GIVING), tense)
        head = _head(clause.dative, Relative("dative", without(clause, "dative"), person=True))
        if head:
            return definite(head)


def _place_relative(draws: Draws) -> NounPhrase:
    """Draws "the house in which the man lived": the pronoun follows a preposition."""
    while True:
        clause = event(draws, draws.pick(_PLACED), "past")
        if len(clause.places) != 1 or clause.places[0].preposition is lexicon.WITH:
            continue
        place = clause.places[0]
        relative = Relative("places", without(clause, "places"), person=False, preposition=place.preposition)
        head = _head(place.phrase, relative)
        if head:
            return definite(head)


def _event(draws: Draws) -> Clause:
    tense: Tense = draws.weighted(((4, "past"), (2, "perfect"), (1, "must")))
    return everyday(draws, tense)


_RELATIVES: tuple[tuple[int, Callable[[Draws], NounPhrase]], ...] = (
    (4, _subject_relative),
    (3, _object_relative),
    (1, _dative_relative),
    (2, _place_relative),
)
