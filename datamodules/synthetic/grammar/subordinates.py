"""Sentences with a subordinate clause, whose verb German puts last: "weil", "obwohl", "als", "wenn", "dass"."""

from datamodules.synthetic.grammar import english, german, lexicon
from datamodules.synthetic.grammar.descriptions import quality
from datamodules.synthetic.grammar.draws import Draws
from datamodules.synthetic.grammar.events import PERSONS, dress, event, everyday, noun_phrase, person_reference
from datamodules.synthetic.grammar.frames import LASTING, PEOPLE, SEPARABLE, TRANSITIVE
from datamodules.synthetic.grammar.lexicon import KNOW_FACT, VERBS
from datamodules.synthetic.grammar.phrases import Clause, Conjunction, NounPhrase, Phrase, Pronoun, Tense, join

_GOING_ON = tuple(frame for frame in LASTING if frame.verb.kind == "action")
_HAPPENING = tuple(frame for frame in SEPARABLE if not frame.accusative and frame.verb is not VERBS["get up"]) + tuple(
    frame for frame in TRANSITIVE if frame.verb is VERBS["enter"]
)
_REPORTING = (KNOW_FACT, VERBS["say"], VERBS["hope"], VERBS["believe"])

_SIDE_TENSES_PAST: tuple[tuple[int, Tense], ...] = ((5, "past"), (1, "could"), (2, "had to"), (2, "wanted"))
_SIDE_TENSES_PRESENT: tuple[tuple[int, Tense], ...] = ((5, "perfect"), (1, "can"), (2, "must"), (2, "want"))
_REPORTED_PAST: tuple[tuple[int, Tense], ...] = ((1, "could"), (1, "had to"), (1, "wanted"))
_REPORTED_PRESENT: tuple[tuple[int, Tense], ...] = ((4, "perfect"), (3, "future"), (1, "can"), (1, "must"))


def reason(draws: Draws) -> tuple[str, str]:
    """Draws two clauses with "because" or "although" between or before them, as English and German words."""
    conjunction = draws.weighted(((3, lexicon.BECAUSE), (2, lexicon.ALTHOUGH)))
    tense: Tense = draws.weighted(((5, "past"), (3, "perfect"), (2, "future"), (1, "must")))
    clause = dress(draws, everyday(draws, tense), time=0.1, time_first=0)
    past = tense == "past"
    subject = person_reference(clause.subject) if draws.chance(0.45) else None
    if draws.chance(0.3):
        side = quality(draws, "past" if past else "habitual", subject)
    else:
        side_tense = draws.weighted(_SIDE_TENSES_PAST if past else _SIDE_TENSES_PRESENT)
        side = dress(draws, everyday(draws, side_tense, subject), time=0.1, time_first=0)
    return _joined(draws, conjunction, clause, side, side_first=0.35)


def occasion(draws: Draws) -> tuple[str, str]:
    """Draws what was going on when something happened ("als"), or what happens whenever something does ("wenn")."""
    punctual = draws.pick(_HAPPENING)
    if draws.chance(0.65):
        clause = event(draws, draws.pick(_GOING_ON), "background")
        side = event(draws, punctual, "past")
    else:
        clause = everyday(draws, "habitual")
        side = quality(draws, "habitual") if draws.chance(0.4) else event(draws, punctual, "habitual")
    if clause.verb.kind == "state" or _noun(clause.subject) == _noun(side.subject):
        return occasion(draws)
    return _joined(draws, lexicon.WHEN, clause, side, side_first=0.5)


def report(draws: Draws) -> tuple[str, str]:
    """Draws what somebody knows, says, hopes or believes: a clause with "that" ("dass")."""
    past = draws.chance(0.4)
    subject = draws.pick(PERSONS) if draws.chance(0.4) else noun_phrase(draws, draws.pick(PEOPLE), every=True)
    clause = Clause(subject, draws.pick(_REPORTING), "past" if past else "habitual")
    # Nobody hopes that somebody is sick.
    if clause.verb is not VERBS["hope"] and draws.chance(0.35):
        content = quality(draws, "past" if past else "habitual")
    else:
        content = everyday(draws, draws.weighted(_REPORTED_PAST if past else _REPORTED_PRESENT))
    if isinstance(subject, NounPhrase) and _noun(subject) == _noun(content.subject):
        return report(draws)
    content = dress(draws, content, time=0.2, time_first=0)
    return _with_side(clause, lexicon.THAT, content)


def _noun(phrase: Phrase | None) -> object:
    return phrase.noun if isinstance(phrase, NounPhrase) else phrase


def _joined(
    draws: Draws, conjunction: Conjunction, clause: Clause, side: Clause, *, side_first: float
) -> tuple[str, str]:
    """Joins a main and a subordinate clause in either order; a pronoun only follows what it stands for."""
    refers_back = isinstance(side.subject, Pronoun) and not isinstance(clause.subject, Pronoun)
    if refers_back or not draws.chance(side_first):
        return _with_side(clause, conjunction, side)
    return (
        english.main(clause, f"{english.subordinate(conjunction, side)},"),
        german.main(clause, german.subordinate(conjunction, side)),
    )


def _with_side(clause: Clause, conjunction: Conjunction, side: Clause) -> tuple[str, str]:
    return (
        join(english.main(clause), english.subordinate(conjunction, side)),
        join(german.main(clause), ",", german.subordinate(conjunction, side)),
    )
