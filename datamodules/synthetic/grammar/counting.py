"""Sentences with numbers from 0 to 999,999 in words."""

from collections.abc import Callable
from dataclasses import replace

from datamodules.synthetic.grammar import lexicon
from datamodules.synthetic.grammar.draws import Draws
from datamodules.synthetic.grammar.events import PERSONS, definite, noun_phrase
from datamodules.synthetic.grammar.frames import MEN, PEOPLE, WOMEN
from datamodules.synthetic.grammar.lexicon import ADJECTIVES, BE, HAVE, NOUNS, VERBS
from datamodules.synthetic.grammar.phrases import Clause, NounPhrase, Predicate, Tense

# Short numbers come up more often: they are what the long ones are made of.
_DIGITS: tuple[tuple[int, int], ...] = ((14, 1), (28, 2), (26, 3), (14, 4), (12, 5), (10, 6))
_COPULA_TENSES: tuple[tuple[int, Tense], ...] = ((3, "habitual"), (2, "past"))
_TRADE_TENSES: tuple[tuple[int, Tense], ...] = ((4, "past"), (2, "perfect"), (1, "future"), (1, "present"))

# Noun -> the most digits of its price in euros, its age in years, its measure in metres.
_PRICES = {"house": 6, "car": 6, "horse": 5, "picture": 6, "bicycle": 4, "lamp": 3, "table": 4, "coat": 4, "book": 3}
_AGES = {"house": 3, "tree": 3, "bridge": 3, "town": 4, "village": 4, "forest": 4, "school": 3, "horse": 2, "child": 1}
_MEASURES = {
    "street": (("long", 5), ("wide", 2)),
    "bridge": (("long", 4), ("wide", 2)),
    "river": (("long", 6), ("wide", 4), ("deep", 3)),
    "lake": (("long", 5), ("deep", 3), ("wide", 4)),
    "cave": (("long", 5), ("deep", 3)),
}
_TRADE = {"apple": 6, "carrot": 6, "stone": 6, "book": 6, "chair": 5, "cow": 4, "goat": 4, "horse": 3, "pig": 4}


def number_sentence(draws: Draws) -> Clause:
    """Draws a clause with one or two numbers."""
    return draws.weighted(_KINDS)(draws)


def _number(draws: Draws, most_digits: int = 6) -> int:
    digits = draws.weighted(tuple(item for item in _DIGITS if item[1] <= most_digits))
    low = 10 ** (digits - 1) if digits > 1 else 0
    number = low + draws.below(10**digits - low)
    if digits == 2 and draws.chance(0.3):
        number = 10 + number % 10
    # Round numbers, as people like them: "five thousand", "two hundred and thirty thousand".
    if digits > 2 and draws.chance(0.2):
        unit = 10 ** (1 + draws.below(digits - 1))
        number = number // unit * unit
    return number


def _amount(draws: Draws, noun: str, most_digits: int) -> NounPhrase:
    """Draws a number of things, two or more; not 101 and the like: "hunderteins" does not stand before a noun."""
    number = _number(draws, most_digits)
    while number == 0 or number % 100 == 1:
        number = _number(draws, most_digits)
    return NounPhrase(NOUNS[noun], plural=True, count=number)


def _thing(draws: Draws, names: tuple[str, ...]) -> NounPhrase:
    return definite(noun_phrase(draws, NOUNS[draws.pick(names)], plural=0))


def _price(draws: Draws) -> Clause:
    subject = _thing(draws, tuple(_PRICES))
    euros = _amount(draws, "euro", _PRICES[subject.noun.english])
    return Clause(subject, VERBS["cost"], draws.weighted(_COPULA_TENSES), accusative=euros)


def _population(draws: Draws) -> Clause:
    subject = _thing(draws, ("town", "town", "village"))
    people = _amount(draws, "inhabitant", 6 if subject.noun.english == "town" else 4)
    return Clause(subject, HAVE, draws.weighted(_COPULA_TENSES), accusative=people)


def _age(draws: Draws) -> Clause:
    subject = replace(_thing(draws, tuple(_AGES)), adjective=None)
    years = _amount(draws, "year", _AGES[subject.noun.english])
    return _copula(draws, subject, Predicate(ADJECTIVES["old"], measure=years))


def _measure(draws: Draws) -> Clause:
    subject = replace(_thing(draws, tuple(_MEASURES)), adjective=None)
    adjective, most_digits = draws.pick(_MEASURES[subject.noun.english])
    metres = _amount(draws, "metre", most_digits)
    return _copula(draws, subject, Predicate(ADJECTIVES[adjective], measure=metres))


def _trade(draws: Draws) -> Clause:
    subject = draws.pick(PERSONS) if draws.chance(0.3) else noun_phrase(draws, draws.pick(MEN + WOMEN), adjective=0.1)
    name = draws.pick(tuple(_TRADE))
    goods = _amount(draws, name, _TRADE[name])
    if draws.chance(0.2):
        goods = replace(goods, adjective=ADJECTIVES[draws.pick(NOUNS[name].adjectives)])
    tense = draws.weighted(_TRADE_TENSES)
    clause = Clause(subject, VERBS[draws.pick(("buy", "sell"))], tense, accusative=goods)
    if tense == "past" and draws.chance(0.3):
        return replace(clause, time=draws.pick((lexicon.YESTERDAY, lexicon.LAST_WEEK)), time_first=draws.chance(0.5))
    return clause


def _numeral(draws: Draws) -> Clause:
    subject = NounPhrase(NOUNS["number"], draws.pick(("the", "this", "my")))
    return _copula(draws, subject, Predicate(number=_number(draws)))


def _comparison(draws: Draws) -> Clause:
    first = _number(draws)
    second = _number(draws)
    while second == first:
        second = _number(draws)
    predicate = Predicate(ADJECTIVES["big" if first > second else "small"], "comparative", _named(second))
    return Clause(_named(first), BE, "habitual", predicate=predicate)


def _dictation(draws: Draws) -> Clause:
    subject = noun_phrase(draws, draws.pick(PEOPLE), adjective=0.1)
    verb = VERBS[draws.pick(("write", "forget", "find", "see"))]
    tense: Tense = draws.weighted(((3, "past"), (2, "perfect")))
    return Clause(subject, verb, tense, accusative=_named(_number(draws)))


def _named(number: int) -> NounPhrase:
    return NounPhrase(NOUNS["number"], label=number)


def _copula(draws: Draws, subject: NounPhrase, predicate: Predicate) -> Clause:
    return Clause(subject, BE, draws.weighted(_COPULA_TENSES), predicate=predicate)


_KINDS: tuple[tuple[int, Callable[[Draws], Clause]], ...] = (
    (5, _price),
    (4, _population),
    (3, _age),
    (4, _measure),
    (5, _trade),
    (4, _numeral),
    (2, _comparison),
    (3, _dictation),
)
