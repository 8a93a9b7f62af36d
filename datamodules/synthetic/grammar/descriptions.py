"""Sentences that say how something is, alone or beside something else."""

from datamodules.synthetic.grammar.draws import Draws
from datamodules.synthetic.grammar.events import definite, noun_phrase
from datamodules.synthetic.grammar.frames import ANIMALS, GOODS, PEOPLE, nouns
from datamodules.synthetic.grammar.lexicon import ADJECTIVES, BE
from datamodules.synthetic.grammar.phrases import Clause, Degree, Noun, NounPhrase, Phrase, Predicate, Tense

_THINGS = GOODS + nouns("street bridge river lake house room garden forest town village tree letter stone door train")
_MOODS = ("tired", "sick", "hungry", "thirsty", "weak", "lazy", "nervous")
_PERSONAL_MOODS = (*_MOODS, "happy", "friendly")
# A thing is red or it is not; "very red" and "very wet" say too much.
_UNGRADED = ("white", "black", "brown", "red", "new", "wet")

# Things that are sensibly compared, and in what.
_COMPARABLE: tuple[tuple[tuple[Noun, ...], tuple[str, ...]], ...] = (
    (nouns("street river bridge"), ("long", "wide", "narrow", "dangerous")),
    (nouns("river lake cave"), ("deep", "dangerous")),
    (nouns("room cellar kitchen garden"), ("dark", "big", "small")),
    (GOODS, ("old", "new", "expensive", "cheap")),
    (nouns("suitcase bag box package stone table"), ("heavy", "big", "small")),
    (PEOPLE, ("old", "young", "big", "small")),
    (ANIMALS, ("old", "young", "big", "small", "dangerous")),
    (nouns("town village"), ("beautiful", "old", "big", "small")),
)


def description(draws: Draws) -> Clause:
    """Draws a clause that describes something or compares two things."""
    if draws.chance(0.55):
        return quality(draws, draws.weighted(((3, "habitual"), (3, "past"), (1, "future"))))
    options, adjectives = draws.pick(_COMPARABLE)
    first = definite(noun_phrase(draws, draws.pick(options), plural=0.15, adjective=0.1))
    second = first
    while second.noun is first.noun:
        second = definite(noun_phrase(draws, draws.pick(options), plural=0.15, adjective=0))
    degree: Degree = draws.weighted(((2, "comparative"), (1, "equal")))
    predicate = Predicate(ADJECTIVES[draws.pick(adjectives)], degree, second)
    tense: Tense = draws.weighted(((3, "habitual"), (1, "past")))
    return Clause(first, BE, tense, negated=draws.chance(0.3), predicate=predicate)


def quality(draws: Draws, tense: Tense, subject: Phrase | None = None) -> Clause:
    """Draws a clause that ascribes an adjective to its subject.

    Args:
        draws: The source of chance.
        tense: The tense of the clause.
        subject: The subject; drawn if it is not given.

    Returns:
        The clause.
    """
    if subject is None:
        options = draws.weighted(((5, PEOPLE), (3, ANIMALS), (4, _THINGS)))
        subject = definite(noun_phrase(draws, draws.pick(options), adjective=0.15))
    name = draws.pick(_qualities(subject))
    degree: Degree = "plain" if name in _UNGRADED else draws.weighted(((4, "plain"), (3, "very")))
    return Clause(subject, BE, tense, predicate=Predicate(ADJECTIVES[name], degree))


def _qualities(subject: Phrase) -> tuple[str, ...]:
    names: tuple[str, ...]
    if not isinstance(subject, NounPhrase) or subject.noun in PEOPLE:
        names = _PERSONAL_MOODS
    else:
        names = _MOODS if subject.noun in ANIMALS else subject.noun.adjectives
    said = subject.adjective.english if isinstance(subject, NounPhrase) and subject.adjective else ""
    return tuple(name for name in names if name != said)
