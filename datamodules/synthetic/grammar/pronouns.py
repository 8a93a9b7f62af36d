"""The pronoun of the lectures: "the animal did not cross the street because it was too tired / too wide".

English says "it" of both nouns. German must know which one is meant, for its pronoun takes the noun's gender: "weil es
zu müde war" is the animal, "weil sie zu breit war" the street. Only the adjective tells: animals get tired, streets are
wide.
"""

from dataclasses import dataclass, replace

from datamodules.synthetic.grammar import english, german, lexicon
from datamodules.synthetic.grammar.draws import Draws
from datamodules.synthetic.grammar.events import definite, noun_phrase, pronoun_for
from datamodules.synthetic.grammar.frames import ANIMALS, MEN, WOMEN
from datamodules.synthetic.grammar.lexicon import ADJECTIVES, ALTHOUGH, BE, BECAUSE, FEED, NOUNS, VERBS
from datamodules.synthetic.grammar.phrases import Clause, NounPhrase, Predicate, Pronoun, Tense, Verb, join


@dataclass(frozen=True, slots=True)
class Scene:
    """Something that a being may leave undone, with reasons that lie in the being and reasons that lie in the thing.

    Attributes:
        animal_verb: What an animal leaves undone.
        person_verb: The same of a person.
        being_reasons: Adjectives that, among the two, only the being can have.
        thing_reasons: For each thing the adjectives that only the thing can have.
    """

    animal_verb: Verb
    person_verb: Verb
    being_reasons: tuple[str, ...]
    thing_reasons: dict[str, tuple[str, ...]]


def _scene(animal_verb: Verb, person_verb: Verb, being_reasons: str, thing_reasons: str) -> Scene:
    rows = (row.split(":") for row in thing_reasons.split(";"))
    return Scene(
        animal_verb,
        person_verb,
        tuple(being_reasons.split()),
        {name.strip(): tuple(adjectives.split()) for name, adjectives in rows},
    )


_SCENES: tuple[tuple[int, Scene], ...] = (
    (
        11,
        _scene(
            VERBS["cross"],
            VERBS["cross"],
            "tired hungry thirsty lazy sick weak nervous young",
            "street: wide slippery dangerous dark; bridge: long narrow slippery dangerous; meadow: wet wide;"
            "river: wide deep dangerous; lake: deep wide dangerous; field: wet wide long",
        ),
    ),
    (
        4,
        _scene(
            VERBS["enter"],
            VERBS["enter"],
            "tired lazy sick weak nervous young",
            "house: dark dangerous; room: dark narrow; kitchen: dark narrow; garden: dark wet;"
            "forest: dark dangerous wet; cellar: dark wet narrow; cave: dark deep narrow dangerous",
        ),
    ),
    (
        3,
        _scene(
            VERBS["carry"],
            VERBS["carry"],
            "tired lazy sick weak young",
            "stone: heavy wet; suitcase: heavy wet; bag: heavy wet; box: heavy wet; package: heavy wet",
        ),
    ),
    (
        2,
        _scene(
            FEED,
            VERBS["eat"],
            "tired lazy sick weak nervous young",
            "apple: sour; bread: salty; cheese: salty sour; soup: hot salty",
        ),
    ),
    (
        2,
        _scene(
            VERBS["drink"],
            VERBS["drink"],
            "tired lazy sick weak nervous young",
            "milk: sour hot; water: hot salty",
        ),
    ),
)
_TENSES: tuple[tuple[int, Tense], ...] = (
    (10, "past"),
    (4, "could"),
    (3, "wanted"),
    (3, "present"),
    (2, "habitual"),
    (1, "can"),
)
_TIMES = (lexicon.YESTERDAY, lexicon.LAST_WEEK, lexicon.ON_MONDAY, lexicon.IN_THE_MORNING)
# Adjectives before the noun that contradict none of the reasons.
_BEING_ATTRIBUTES = frozenset(("big", "small", "white", "black", "brown"))
_THING_ATTRIBUTES = frozenset(("old", "new", "white", "black", "brown", "red"))


def pronoun_sentence(draws: Draws) -> tuple[str, str]:
    """Draws a sentence whose second clause takes up one of the two nouns of the first with a pronoun.

    Args:
        draws: The source of chance.

    Returns:
        The English and the German words, without capital and full stop.
    """
    scene = draws.weighted(_SCENES)
    is_animal = draws.chance(0.8)
    names = tuple(scene.thing_reasons)
    thing = definite(noun_phrase(draws, NOUNS[draws.pick(names)], plural=0, adjective=0))
    thing = _described(draws, thing, _THING_ATTRIBUTES)
    subject = _subject(draws, is_animal)
    about_being = draws.chance(0.5)
    pronoun = pronoun_for(subject if about_being else thing)
    reason = draws.pick(scene.being_reasons if about_being else scene.thing_reasons[thing.noun.english])
    return _say(draws, scene.animal_verb if is_animal else scene.person_verb, subject, thing, pronoun, reason)


def _say(
    draws: Draws, verb: Verb, subject: NounPhrase, thing: NounPhrase, pronoun: Pronoun, reason: str
) -> tuple[str, str]:
    although = draws.chance(0.2)
    tense: Tense = "past" if although else draws.weighted(_TENSES)
    clause = Clause(subject, verb, tense, negated=not although, accusative=thing)
    if tense == "past" and draws.chance(0.15):
        clause = replace(clause, time=draws.pick(_TIMES), time_first=True)
    copula: Tense = "past" if tense in ("past", "could", "wanted") else "present"
    predicate = Predicate(ADJECTIVES[reason], "very" if although else "too")
    cause = Clause(pronoun, BE, copula, predicate=predicate)
    conjunction = ALTHOUGH if although else BECAUSE
    return (
        join(english.main(clause), english.subordinate(conjunction, cause)),
        join(german.main(clause), ",", german.subordinate(conjunction, cause)),
    )


def _subject(draws: Draws, is_animal: bool) -> NounPhrase:
    noun = draws.pick(ANIMALS if is_animal else MEN + WOMEN)
    return _described(draws, noun_phrase(draws, noun, plural=0.1, adjective=0), _BEING_ATTRIBUTES)


def _described(draws: Draws, phrase: NounPhrase, attributes: frozenset[str]) -> NounPhrase:
    fitting = tuple(name for name in phrase.noun.adjectives if name in attributes)
    if fitting and draws.chance(0.15):
        return replace(phrase, adjective=ADJECTIVES[draws.pick(fitting)])
    return phrase
