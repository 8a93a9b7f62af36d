"""Who does what to whom, where: the verbs with the nouns that sensibly go with them."""

from dataclasses import dataclass

from datamodules.synthetic.grammar import lexicon
from datamodules.synthetic.grammar.lexicon import NOUNS, VERBS
from datamodules.synthetic.grammar.phrases import Noun, Preposition, Verb, Words


def nouns(names: str) -> tuple[Noun, ...]:
    """Looks up nouns by their English names, separated by spaces."""
    return tuple(NOUNS[name] for name in names.split())


MEN = nouns("man boy teacher doctor farmer")
WOMEN = nouns("woman mother aunt")
KIN = nouns("mother aunt")
PEOPLE = MEN + WOMEN + nouns("child girl")
ANIMALS = nouns("dog donkey bear cat cow goat animal horse pig")
BEINGS = PEOPLE + ANIMALS
GOODS = nouns("car bicycle book picture lamp table chair coat suitcase bag box")
LUGGAGE = nouns("suitcase bag box package")
FOOD = nouns("apple carrot soup cheese bread")
OWNED = (
    GOODS
    + LUGGAGE
    + nouns(
        "boy teacher doctor mother aunt child girl dog donkey cat cow goat horse pig house room kitchen garden cellar "
        "letter cart apple carrot soup milk coffee cheese bread"
    )
)

Places = tuple[tuple[Preposition, tuple[Noun, ...]], ...]
_INDOORS = (lexicon.IN, nouns("house room kitchen cellar school"))
_SPOTS: Places = (
    (lexicon.IN, nouns("garden house kitchen room cellar forest cave town village school")),
    (lexicon.IN_THE_OPEN, nouns("field meadow")),
    (lexicon.ON, nouns("street bridge")),
    (lexicon.BY, nouns("river lake window")),
    (lexicon.UNDER, nouns("table tree bridge")),
    (lexicon.BEHIND, nouns("house tree door school station")),
    (lexicon.NEXT_TO, nouns("table door window car tree")),
    (lexicon.IN_FRONT_OF, nouns("house school station window")),
)
_HOMES: Places = ((lexicon.IN, nouns("house room town village")),)
_WATERS: Places = ((lexicon.IN, nouns("river lake")), (lexicon.THROUGH, nouns("river lake")))
_WAYS: Places = (
    (lexicon.INTO, nouns("garden house kitchen room cellar forest cave")),
    (lexicon.TO, nouns("school station river lake bridge")),
    (lexicon.THROUGH, nouns("garden forest town village")),
    (lexicon.ACROSS, nouns("bridge street meadow field")),
    (lexicon.OUT_OF, nouns("house room kitchen cellar forest cave")),
)
_ROADS: Places = (
    (lexicon.TO, nouns("school station river lake")),
    (lexicon.THROUGH, nouns("town village forest")),
    (lexicon.ACROSS, nouns("bridge street")),
)
_COMPANY: Places = ((lexicon.WITH, PEOPLE),)
_BAGGAGE: Places = ((lexicon.WITH, nouns("dog cat suitcase bag")), (lexicon.WITHOUT, nouns("dog coat suitcase bag")))
_RECEIVERS: Places = ((lexicon.FOR, PEOPLE),)
_PACE = (lexicon.SLOWLY, lexicon.QUICKLY)
_HOUR = (lexicon.EARLY, lexicon.LATE)


@dataclass(frozen=True, slots=True)
class Frame:
    """A verb with the nouns that sensibly fill its roles.

    Attributes:
        places: Where it happens, or which way it goes.
        place_chance: How often that is said; 1 where the verb needs it.
        company: With whom, without what, or for whom; said now and then.
        manners: How or how early it happens.
    """

    verb: Verb
    subjects: tuple[Noun, ...]
    accusative: tuple[Noun, ...] = ()
    dative: tuple[Noun, ...] = ()
    places: Places = ()
    place_chance: float = 0.0
    company: Places = ()
    manners: tuple[Words, ...] = ()


LASTING = (
    Frame(VERBS["sleep"], BEINGS, places=_SPOTS, place_chance=0.7),
    Frame(VERBS["wait"], BEINGS, places=_SPOTS, place_chance=0.7, company=_COMPANY),
    Frame(VERBS["sit"], BEINGS, places=_SPOTS, place_chance=1),
    Frame(VERBS["stand"], BEINGS, places=_SPOTS, place_chance=1),
    Frame(VERBS["work"], PEOPLE, places=_SPOTS[:3], place_chance=0.6, company=_COMPANY),
    Frame(VERBS["play"], PEOPLE, places=_SPOTS, place_chance=0.6, company=_COMPANY),
    Frame(VERBS["sing"], PEOPLE, places=_SPOTS, place_chance=0.6, company=_COMPANY),
    Frame(VERBS["dance"], PEOPLE, places=_SPOTS[:4], place_chance=0.6, company=_COMPANY),
    Frame(VERBS["live"], PEOPLE, places=_HOMES, place_chance=1),
)
MOTION = (
    Frame(VERBS["go"], BEINGS, places=_WAYS, place_chance=1, manners=_PACE),
    Frame(VERBS["run"], BEINGS, places=_WAYS, place_chance=1, manners=_PACE),
    Frame(VERBS["drive"], PEOPLE, places=_ROADS, place_chance=1, manners=_PACE),
    Frame(VERBS["swim"], BEINGS, places=_WATERS, place_chance=0.8, manners=_PACE),
)
SEPARABLE = (
    Frame(VERBS["get up"], PEOPLE, manners=_HOUR),
    Frame(VERBS["wake up"], BEINGS, places=(_INDOORS,), place_chance=0.2, manners=_HOUR),
    Frame(VERBS["fall asleep"], BEINGS, places=_SPOTS, place_chance=0.4, manners=_HOUR),
    Frame(VERBS["arrive"], PEOPLE + nouns("train"), manners=_HOUR),
    Frame(VERBS["come back"], BEINGS, company=_BAGGAGE, manners=_HOUR),
    Frame(VERBS["pick up"], PEOPLE, PEOPLE + nouns("letter package suitcase")),
    Frame(VERBS["call"], PEOPLE, PEOPLE),
    Frame(VERBS["open"], PEOPLE, nouns("door window suitcase bag box letter package")),
    Frame(VERBS["close"], PEOPLE, nouns("door window suitcase bag box")),
    Frame(VERBS["invite"], PEOPLE, PEOPLE),
    Frame(VERBS["switch on"], PEOPLE, nouns("lamp")),
    Frame(VERBS["tidy up"], PEOPLE, nouns("room kitchen cellar garden")),
)
TRANSITIVE = (
    Frame(VERBS["buy"], PEOPLE, GOODS + FOOD + nouns("house horse cow milk"), company=_RECEIVERS),
    Frame(VERBS["sell"], PEOPLE, GOODS + nouns("house horse cow pig goat apple cheese")),
    Frame(VERBS["find"], PEOPLE, LUGGAGE + nouns("book coat letter dog cat stone")),
    Frame(VERBS["look for"], PEOPLE, GOODS + nouns("letter dog cat cow child")),
    Frame(VERBS["see"], BEINGS, BEINGS + nouns("car train bicycle river bridge house")),
    Frame(VERBS["forget"], PEOPLE, nouns("coat suitcase bag book letter package milk")),
    Frame(VERBS["need"], PEOPLE, GOODS + nouns("doctor water bread milk")),
    Frame(VERBS["know"], PEOPLE, PEOPLE),
    Frame(VERBS["repair"], PEOPLE, nouns("car bicycle lamp table chair door window bridge cart")),
    Frame(VERBS["clean"], PEOPLE, nouns("room kitchen window door table bicycle car")),
    Frame(VERBS["write"], PEOPLE, nouns("letter book"), company=_RECEIVERS),
    Frame(VERBS["visit"], PEOPLE, PEOPLE + nouns("town village school")),
    Frame(VERBS["cross"], BEINGS, nouns("street bridge meadow river lake field"), manners=_PACE),
    Frame(VERBS["enter"], BEINGS, nouns("house room kitchen garden forest cellar cave")),
    Frame(VERBS["carry"], PEOPLE + nouns("donkey horse"), LUGGAGE + nouns("stone table chair lamp")),
    Frame(VERBS["pull"], nouns("donkey horse cow farmer"), nouns("cart")),
    Frame(VERBS["drink"], PEOPLE, nouns("milk coffee water")),
    Frame(VERBS["drink"], ANIMALS, nouns("milk water")),
    Frame(VERBS["eat"], PEOPLE, FOOD),
    Frame(lexicon.FEED, ANIMALS, nouns("apple carrot bread cheese")),
)
DATIVE = (
    Frame(VERBS["help"], PEOPLE, dative=PEOPLE),
    Frame(VERBS["thank"], PEOPLE, dative=PEOPLE),
    Frame(VERBS["follow"], BEINGS, dative=PEOPLE + nouns("dog cat cow horse")),
)
GIVING = (
    Frame(VERBS["give"], PEOPLE, nouns("book picture lamp coat bag letter apple milk bread"), PEOPLE),
    Frame(VERBS["show"], PEOPLE, GOODS + nouns("house garden room letter dog"), PEOPLE),
    Frame(VERBS["send"], PEOPLE, nouns("letter picture book package suitcase"), PEOPLE),
)
EVERYDAY: tuple[tuple[int, tuple[Frame, ...]], ...] = (
    (19, LASTING),
    (12, MOTION),
    (24, SEPARABLE),
    (28, TRANSITIVE),
    (7, DATIVE),
    (10, GIVING),
)
