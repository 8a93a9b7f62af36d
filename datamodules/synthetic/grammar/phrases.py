"""What a sentence says, before either language says it.

The grammar builds each sentence once, out of these pieces; `english` and `german` each put it into words.
"""

from dataclasses import dataclass, replace
from typing import Literal

Gender = Literal["masculine", "feminine", "neuter"]
Degree = Literal["plain", "very", "too", "comparative", "equal"]
Role = Literal["subject", "accusative", "dative", "places"]
Case = Literal["nominative", "accusative", "dative"]

# "present" is what happens now ("is buying"), "habitual" what happens often ("buys"), "background" what was going on
# while something else happened ("was sleeping"). German says the first two in one tense, and the last two in one.
Tense = Literal[
    "present",
    "habitual",
    "past",
    "background",
    "perfect",
    "future",
    "can",
    "could",
    "must",
    "had to",
    "want",
    "wanted",
]


@dataclass(frozen=True, slots=True)
class Adjective:
    """An adjective: English base and comparative; German base, stem before an ending, and comparative."""

    english: str
    english_comparative: str
    german: str
    german_stem: str
    german_comparative: str


@dataclass(frozen=True, slots=True)
class Noun:
    """A noun with all its forms.

    Attributes:
        german_oblique: Accusative and dative singular; differs from `german` for nouns like "Junge".
        adjectives: Names of the adjectives that describe it sensibly.
        mass: Whether it is a substance, which has neither plural nor indefinite article.
    """

    english: str
    english_plural: str
    german: str
    german_oblique: str
    german_plural: str
    gender: Gender
    adjectives: tuple[str, ...] = ()
    mass: bool = False


@dataclass(frozen=True, slots=True)
class EnglishVerb:
    """The forms of an English verb; a particle follows each ("get up", "gets up", ...)."""

    base: str
    third_person: str
    past: str
    participle: str
    progressive: str


@dataclass(frozen=True, slots=True)
class GermanVerb:
    """The forms of a German verb, finite ones without the separable prefix, infinitive and participle with it."""

    infinitive: str
    first_person: str
    third_person: str
    plural: str
    past: str
    participle: str
    auxiliary: Literal["haben", "sein"]
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb in both languages; `kind` says what it lacks: a perception the progressive, a state the perfect too."""

    english: EnglishVerb
    german: GermanVerb
    kind: Literal["action", "perception", "state"] = "action"


@dataclass(frozen=True, slots=True)
class Words:
    """Fixed words in both languages, such as "yesterday" and "gestern"."""

    english: str
    german: str


@dataclass(frozen=True, slots=True)
class Preposition:
    """A preposition in both languages and the case that the German one governs."""

    english: str
    german: str
    case: Case


@dataclass(frozen=True, slots=True)
class Pronoun:
    """A pronoun by its English name; `gender` is what German makes of "it"."""

    name: Literal["I", "he", "she", "it", "we", "they", "who", "what"]
    gender: Gender | None = None


@dataclass(frozen=True, slots=True)
class NounPhrase:
    """A noun with what stands around it.

    Attributes:
        noun: The noun.
        determiner: English determiner, or "" for none.
        plural: Whether it is plural.
        adjective: An adjective before the noun.
        count: A number of two or more before the noun ("three houses"), instead of a determiner.
        label: A number after the noun ("the number three").
        relative: A relative clause after the noun.
    """

    noun: Noun
    determiner: str = "the"
    plural: bool = False
    adjective: Adjective | None = None
    count: int | None = None
    label: int | None = None
    relative: "Relative | None" = None

    @property
    def definite(self) -> bool:
        """Whether the hearer knows which one is meant; German puts the known before the new."""
        return self.count is None and self.determiner not in ("", "a")


Phrase = Pronoun | NounPhrase


@dataclass(frozen=True, slots=True)
class Prepositional:
    """A preposition and its phrase."""

    preposition: Preposition
    phrase: NounPhrase


@dataclass(frozen=True, slots=True)
class Predicate:
    """What "is" ascribes to the subject: an adjective, or a number.

    Attributes:
        adjective: The adjective, if it is one.
        degree: How much of it.
        standard: What the subject is compared with, in the degrees "comparative" and "equal".
        measure: A measure before the adjective ("three metres long").
        number: The number, where there is no adjective.
    """

    adjective: Adjective | None = None
    degree: Degree = "plain"
    standard: NounPhrase | None = None
    measure: NounPhrase | None = None
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Clause:
    """A clause without its word order, which each language gives it.

    Attributes:
        subject: The subject; None where a relative pronoun or an interrogative is the subject.
        verb: The verb; with the verb "be" goes a predicate.
        tense: The tense, or the modal verb with its tense.
        negated: Whether it is denied.
        dative: Whom it is done to or for: the indirect object, or the only one ("help", "helfen").
        accusative: The direct object.
        predicate: What "be" says of the subject.
        adverb: "often", "never" and the like, which English puts before the verb.
        manner: "slowly", "early" and the like, which English puts after the verb.
        places: With whom, where, which way.
        time: When it happens; at the end in English, unless `time_first`.
        time_first: Whether the time begins the sentence.
        subject_plural: The number of a missing subject.
    """

    subject: Phrase | None
    verb: Verb
    tense: Tense
    negated: bool = False
    dative: Phrase | None = None
    accusative: Phrase | None = None
    predicate: Predicate | None = None
    adverb: Words | None = None
    manner: Words | None = None
    places: tuple[Prepositional, ...] = ()
    time: Words | None = None
    time_first: bool = False
    subject_plural: bool = False


@dataclass(frozen=True, slots=True)
class Relative:
    """A relative clause.

    Attributes:
        role: What the relative pronoun is in the clause.
        clause: The clause without that.
        person: Whether it describes a person: English says "who", not "that".
        preposition: What stands before the pronoun in the role "places" ("in which").
    """

    role: Role
    clause: Clause
    person: bool
    preposition: Preposition | None = None


@dataclass(frozen=True, slots=True)
class Conjunction:
    """A word that opens a subordinate clause, with its German for the present and for the past ("wenn", "als")."""

    english: str
    german: str
    german_past: str


def agreement(phrase: Phrase | None, plural: bool = False) -> tuple[Literal[1, 3], bool]:
    """Says which person and number the verb takes after a subject.

    Args:
        phrase: The subject, or None where a relative pronoun is the subject.
        plural: The number of a missing subject.

    Returns:
        Person (1 or 3) and whether it is plural.
    """
    match phrase:
        case Pronoun(name="I"):
            return 1, False
        case Pronoun(name="we"):
            return 1, True
        case Pronoun(name="they"):
            return 3, True
        case NounPhrase():
            return 3, phrase.plural
        case _:
            return 3, plural


def without(clause: Clause, role: Role) -> Clause:
    """Copies a clause without what fills a role: what a question or a relative pronoun stands for."""
    match role:
        case "subject":
            return replace(clause, subject=None)
        case "accusative":
            return replace(clause, accusative=None)
        case "dative":
            return replace(clause, dative=None)
        case "places":
            return replace(clause, places=())


def join(*words: str) -> str:
    """Joins what is not empty with spaces."""
    return " ".join(word for word in words if word)
