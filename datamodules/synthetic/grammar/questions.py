"""Questions: the finite verb comes first, or second after "wo", "wann", "warum", "wer", "was", "wie viele"."""

from collections.abc import Callable

from datamodules.synthetic.grammar import english, german
from datamodules.synthetic.grammar.draws import Draws
from datamodules.synthetic.grammar.events import dress, event, everyday
from datamodules.synthetic.grammar.frames import ANIMALS, LASTING, PEOPLE
from datamodules.synthetic.grammar.phrases import Clause, NounPhrase, Pronoun, Tense, join, without


def question(draws: Draws) -> tuple[str, str]:
    """Draws a question, as English and German words."""
    return draws.weighted(_KINDS)(draws)


def _asked(clause: Clause, english_opener: str = "", german_opener: str = "") -> tuple[str, str]:
    return english.question(clause, english_opener), german.question(clause, german_opener)


def _event(draws: Draws) -> Clause:
    tense: Tense = draws.weighted(((4, "past"), (4, "perfect"), (2, "can"), (1, "must")))
    return everyday(draws, tense)


def _whether(draws: Draws) -> tuple[str, str]:
    return _asked(dress(draws, _event(draws), time=0.15, negation=0, time_first=0))


def _why(draws: Draws) -> tuple[str, str]:
    return _asked(dress(draws, _event(draws), time=0, negation=0.3), "why", "warum")


def _when(draws: Draws) -> tuple[str, str]:
    return _asked(everyday(draws, "past"), "when", "wann")


def _where(draws: Draws) -> tuple[str, str]:
    frame = draws.pick(LASTING)
    tense: Tense = "past" if frame.verb.kind == "state" or draws.chance(0.6) else "perfect"
    return _asked(without(event(draws, frame, tense), "places"), "where", "wo")


def _who(draws: Draws) -> tuple[str, str]:
    while True:
        clause = _event(draws)
        subject = clause.subject
        if isinstance(subject, Pronoun) or (subject and subject.noun in PEOPLE):
            clause = without(clause, "subject")
            return join("who", english.statement(clause)), german.question(clause, "wer")


def _what(draws: Draws) -> tuple[str, str]:
    clause, _ = _event_with_thing(draws)
    return _asked(clause, "what", "was")


def _how_many(draws: Draws) -> tuple[str, str]:
    while True:
        clause, thing = _event_with_thing(draws)
        if not thing.noun.mass and not clause.dative:
            return _asked(clause, f"how many {thing.noun.english_plural}", f"wie viele {thing.noun.german_plural}")


def _event_with_thing(draws: Draws) -> tuple[Clause, NounPhrase]:
    """Draws an event and takes the thing out of it that somebody does something to."""
    while True:
        clause = _event(draws)
        thing = clause.accusative
        if isinstance(thing, NounPhrase) and thing.noun not in PEOPLE + ANIMALS:
            return without(clause, "accusative"), thing


_KINDS: tuple[tuple[int, Callable[[Draws], tuple[str, str]]], ...] = (
    (5, _whether),
    (2, _why),
    (2, _when),
    (2, _where),
    (2, _who),
    (2, _what),
    (2, _how_many),
)
