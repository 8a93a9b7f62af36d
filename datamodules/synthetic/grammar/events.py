"""Random noun phrases and clauses, made of the verbs and nouns that go together."""

from dataclasses import replace

from datamodules.synthetic.grammar import lexicon
from datamodules.synthetic.grammar.draws import Draws
from datamodules.synthetic.grammar.frames import EVERYDAY, KIN, MEN, OWNED, PEOPLE, WOMEN, Frame, Places
from datamodules.synthetic.grammar.lexicon import ADJECTIVES
from datamodules.synthetic.grammar.phrases import (
    Clause,
    Noun,
    NounPhrase,
    Phrase,
    Prepositional,
    Pronoun,
    Tense,
    Words,
)

_TENSES: tuple[tuple[int, Tense], ...] = (
    (24, "past"),
    (15, "present"),
    (16, "habitual"),
    (19, "perfect"),
    (6, "future"),
    (4, "can"),
    (4, "could"),
    (4, "must"),
    (3, "had to"),
    (3, "want"),
    (2, "wanted"),
)
_TIMES: dict[Tense, tuple[Words, ...]] = {
    "past": (lexicon.YESTERDAY, lexicon.LAST_WEEK, lexicon.IN_THE_MORNING, lexicon.IN_THE_EVENING, lexicon.ON_MONDAY),
    "present": (lexicon.NOW, lexicon.TODAY),
    "habitual": (lexicon.EVERY_DAY, lexicon.IN_THE_MORNING, lexicon.IN_THE_EVENING),
    "perfect": (lexicon.TODAY,),
    "future": (lexicon.TOMORROW, lexicon.NEXT_WEEK, lexicon.ON_MONDAY),
    "can": (lexicon.TODAY, lexicon.TOMORROW),
    "could": (lexicon.YESTERDAY, lexicon.LAST_WEEK),
    "must": (lexicon.TODAY, lexicon.TOMORROW, lexicon.NOW),
    "had to": (lexicon.YESTERDAY, lexicon.LAST_WEEK),
    "want": (lexicon.TODAY, lexicon.TOMORROW),
    "wanted": (lexicon.YESTERDAY, lexicon.LAST_WEEK),
}
_ADVERBS: dict[Tense, tuple[Words, ...]] = {
    "habitual": (lexicon.OFTEN, lexicon.ALWAYS, lexicon.NEVER),
    "perfect": (lexicon.ALREADY, lexicon.NEVER, lexicon.OFTEN),
}
_NEGATABLE: tuple[Tense, ...] = ("past", "present", "perfect", "can", "could", "wanted")

_SINGULAR: tuple[tuple[int, str], ...] = ((60, "the"), (24, "a"), (8, "this"))
_PLURAL: tuple[tuple[int, str], ...] = ((60, "the"), (28, ""), (8, "this"))
_MASS: tuple[tuple[int, str], ...] = ((40, "the"), (50, ""), (6, "this"))
# "A mother" and "mothers" say little: one speaks of somebody's mother.
_KIN_DETERMINERS: tuple[tuple[int, str], ...] = ((45, "the"), (12, "my"), (12, "his"), (12, "her"), (10, "our"))
_POSSESSIVES: tuple[tuple[int, str], ...] = ((6, "my"), (4, "his"), (4, "her"), (4, "our"))
# Whoever speaks or is spoken of; English does not tell "du", "ihr" and "Sie" apart, so nobody is spoken to.
# "I" comes up more often, for German has a form of its own for it in each verb.
PERSONS = tuple(Pronoun(name) for name in ("I", "I", "I", "he", "she", "we", "they"))


def noun_phrase(
    draws: Draws,
    noun: Noun,
    *,
    plural: float = 0.2,
    adjective: float = 0.28,
    every: bool = False,
) -> NounPhrase:
    """Draws a noun phrase around a noun.

    Args:
        draws: The source of chance.
        noun: The noun.
        plural: How often it is plural.
        adjective: How often it has an adjective.
        every: Whether "every" may be its determiner.

    Returns:
        The noun phrase.
    """
    is_plural = not noun.mass and noun not in KIN and draws.chance(plural)
    choices = _MASS if noun.mass else _PLURAL if is_plural else _SINGULAR
    if noun in KIN:
        choices = _KIN_DETERMINERS
    elif noun in OWNED:
        choices += _POSSESSIVES
    if every and not is_plural and not noun.mass and noun not in KIN:
        choices += ((4, "every"),)
    determiner = draws.weighted(choices)
    has_adjective = bool(noun.adjectives) and draws.chance(adjective)
    chosen = ADJECTIVES[draws.pick(noun.adjectives)] if has_adjective else None
    return NounPhrase(noun, determiner, is_plural, chosen)


def definite(phrase: NounPhrase) -> NounPhrase:
    """Makes a phrase definite: what one describes or compares is known."""
    return phrase if phrase.definite else replace(phrase, determiner="the")


def place(draws: Draws, places: Places) -> Prepositional:
    """Draws a place or way."""
    preposition, options = draws.pick(places)
    return Prepositional(preposition, noun_phrase(draws, draws.pick(options), plural=0, adjective=0.2))


def event(draws: Draws, frame: Frame, tense: Tense, subject: Phrase | None = None) -> Clause:
    """Draws a clause from a frame, without time, adverb and negation.

    Args:
        draws: The source of chance.
        frame: The verb and its nouns.
        tense: The tense of the clause.
        subject: The subject; drawn if it is not given.

    Returns:
        The clause.
    """
    if subject is None:
        subject = _subject(draws, frame, tense)
    used = {subject.noun} if isinstance(subject, NounPhrase) else set()
    dative = _object(draws, frame.dative, subject, used) if frame.dative else None
    if isinstance(dative, NounPhrase):
        used.add(dative.noun)
        # Nothing would show the dative of a bare plural.
        dative = definite(dative) if dative.determiner == "" else dative
    accusative = _object(draws, frame.accusative, subject, used) if frame.accusative else None
    places = []
    if frame.company and draws.chance(0.2):
        company = place(draws, frame.company)
        if company.phrase.noun not in used:
            places.append(company)
    if frame.places and draws.chance(frame.place_chance):
        places.append(place(draws, frame.places))
    manner = draws.pick(frame.manners) if frame.manners and draws.chance(0.35) else None
    return Clause(subject, frame.verb, tense, dative=dative, accusative=accusative, manner=manner, places=tuple(places))


def everyday(draws: Draws, tense: Tense | None = None, subject: Phrase | None = None) -> Clause:
    """Draws a clause about anything, in a tense that its verb has.

    Args:
        draws: The source of chance.
        tense: The tense; drawn if it is not given. A state has no perfect, so "perfect" avoids states.
        subject: The subject, if it is to be this person; drawn if it is not given.

    Returns:
        The clause.
    """
    while True:
        frame = draws.pick(draws.weighted(EVERYDAY))
        chosen = draws.weighted(_TENSES) if tense is None else tense
        if frame.verb.kind == "state" and chosen not in ("past", "habitual"):
            continue
        if frame.verb.kind == "perception" and chosen == "present":
            continue
        if subject is not None and not _are_people(frame.subjects):
            continue
        return event(draws, frame, chosen, subject)


def dress(
    draws: Draws, clause: Clause, *, time: float = 0.45, negation: float = 0.25, time_first: float = 0.5
) -> Clause:
    """Adds to a clause what fits its tense: a time (first or not), an adverb, a negation.

    Args:
        draws: The source of chance.
        clause: The clause.
        time: How often it has a time.
        negation: How often it is negated, where it can be.
        time_first: How often its time comes first.

    Returns:
        The clause with these.
    """
    if clause.verb.kind != "state":
        if clause.tense in _ADVERBS and draws.chance(0.5):
            return replace(clause, adverb=draws.pick(_ADVERBS[clause.tense]))
        if clause.tense == "habitual" or draws.chance(time):
            clause = replace(clause, time=draws.pick(_TIMES[clause.tense]), time_first=draws.chance(time_first))
    if clause.tense in _NEGATABLE and _can_be_negated(clause) and draws.chance(negation):
        clause = replace(clause, negated=True)
    return clause


def pronoun_for(phrase: NounPhrase) -> Pronoun:
    """Names the pronoun that takes up a noun phrase."""
    if phrase.plural:
        return Pronoun("they")
    if phrase.noun in MEN:
        return Pronoun("he")
    return Pronoun("she") if phrase.noun in WOMEN else Pronoun("it", phrase.noun.gender)


def person_reference(phrase: Phrase | None) -> Pronoun | None:
    """Names the pronoun that takes up a person; None where a language could choose ("the child", "every man")."""
    if isinstance(phrase, Pronoun) or phrase is None:
        return phrase
    if phrase.determiner == "every":
        return None
    pronoun = pronoun_for(phrase)
    return None if pronoun.name == "it" else pronoun


def _subject(draws: Draws, frame: Frame, tense: Tense) -> Phrase:
    # Only the present has a form of its own for "ich" in every verb, so that is where pronouns are practised.
    pronoun = 0.4 if tense in ("present", "habitual") else 0.25
    if _are_people(frame.subjects) and draws.chance(pronoun):
        return draws.pick(PERSONS)
    return noun_phrase(draws, draws.pick(frame.subjects), every=True)


def _object(draws: Draws, options: tuple[Noun, ...], subject: Phrase, used: set[Noun]) -> Phrase:
    if _are_people(options) and draws.chance(0.25):
        speakers = ("I", "we")
        while True:
            candidate = draws.pick(PERSONS)
            about_us = candidate.name in speakers and isinstance(subject, Pronoun) and subject.name in speakers
            if candidate != subject and not about_us:
                return candidate
    while True:
        noun = draws.pick(options)
        if noun not in used:
            return noun_phrase(draws, noun)


def _are_people(options: tuple[Noun, ...]) -> bool:
    return PEOPLE[0] in options


def _can_be_negated(clause: Clause) -> bool:
    """Whether "nicht" or "kein" has one natural place, and "not" one meaning."""
    vague_dative = isinstance(clause.dative, NounPhrase) and not clause.dative.definite
    vague_subject = isinstance(clause.subject, NounPhrase) and clause.subject.determiner in ("every", "a", "")
    company = any(item.preposition in (lexicon.FOR, lexicon.WITH, lexicon.WITHOUT) for item in clause.places)
    return not (vague_dative or vague_subject or company or clause.manner)
