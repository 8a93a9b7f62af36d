"""Clauses built by hand, against the English and German that a person would write."""

from dataclasses import replace

import pytest

from datamodules.synthetic.grammar import english, german, lexicon
from datamodules.synthetic.grammar.draws import Draws
from datamodules.synthetic.grammar.lexicon import ADJECTIVES, BE, KNOW_FACT, NOUNS, VERBS
from datamodules.synthetic.grammar.phrases import (
    Clause,
    NounPhrase,
    Predicate,
    Prepositional,
    Pronoun,
    Relative,
    agreement,
)
from datamodules.synthetic.translation import EXAMPLES, LECTURE_SENTENCES


def the(noun, determiner="the", adjective=None, **rest):
    return NounPhrase(NOUNS[noun], determiner, adjective=ADJECTIVES[adjective] if adjective else None, **rest)


def at(preposition, phrase):
    return Prepositional(preposition, phrase)


def written(words):
    sentence = german.punctuate(f"{words}.")
    return sentence[0].upper() + sentence[1:]


def both(clause):
    return written(english.main(clause)), written(german.main(clause))


def with_side(clause, conjunction, side):
    return (
        written(f"{english.main(clause)} {english.subordinate(conjunction, side)}"),
        written(f"{german.main(clause)} , {german.subordinate(conjunction, side)}"),
    )


ME, HE, SHE, WE, THEY = (Pronoun(name) for name in ("I", "he", "she", "we", "they"))


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        # Verb second, also when the time comes first.
        (
            Clause(the("man"), VERBS["buy"], "past", accusative=the("car", "a", "red"), time=lexicon.YESTERDAY),
            ("The man bought a red car yesterday.", "Der Mann kaufte gestern ein rotes Auto."),
        ),
        (
            Clause(
                the("man"), VERBS["buy"], "past", accusative=the("car"), time=lexicon.YESTERDAY, time_first=True
            ),
            ("Yesterday the man bought the car.", "Gestern kaufte der Mann das Auto."),
        ),
        # Separable verbs: apart in a main clause, joined in participle and infinitive.
        (Clause(SHE, VERBS["get up"], "present"), ("She is getting up.", "Sie steht auf.")),
        (
            Clause(ME, VERBS["get up"], "habitual", time=lexicon.EVERY_DAY),
            ("I get up every day.", "Ich stehe jeden Tag auf."),
        ),
        (Clause(THEY, VERBS["get up"], "perfect"), ("They have got up.", "Sie sind aufgestanden.")),
        (
            Clause(WE, VERBS["invite"], "want", accusative=HE),
            ("We want to invite him.", "Wir wollen ihn einladen."),
        ),
        (Clause(HE, VERBS["invite"], "past", accusative=SHE), ("He invited her.", "Er lud sie ein.")),
        # Perfect with "haben" and "sein", participle last.
        (
            Clause(the("girl"), VERBS["drive"], "perfect", places=(at(lexicon.TO, the("station")),)),
            ("The girl has driven to the station.", "Das Mädchen ist zum Bahnhof gefahren."),
        ),
        (
            Clause(the("aunt", "my"), VERBS["repair"], "perfect", accusative=the("lamp")),
            ("My aunt has repaired the lamp.", "Meine Tante hat die Lampe repariert."),
        ),
        # Modal verbs and the future: infinitive last.
        (
            Clause(the("child", plural=True), VERBS["help"], "had to", dative=the("farmer", "our", "old")),
            ("The children had to help our old farmer.", "Die Kinder mussten unserem alten Bauern helfen."),
        ),
        (
            Clause(ME, VERBS["send"], "future", dative=SHE, accusative=the("letter", "", plural=True)),
            ("I will send her letters.", "Ich werde ihr Briefe schicken."),
        ),
        # Negation: "nicht" after what is known, "kein" for what is new.
        (
            Clause(the("boy"), VERBS["call"], "past", negated=True, accusative=the("doctor")),
            ("The boy did not call the doctor.", "Der Junge rief den Arzt nicht an."),
        ),
        (
            Clause(the("boy"), VERBS["need"], "habitual", negated=True, accusative=the("coat", "a", "new")),
            ("The boy does not need a new coat.", "Der Junge braucht keinen neuen Mantel."),
        ),
        (
            Clause(the("cow"), VERBS["drink"], "can", negated=True, accusative=the("water", "", "cold")),
            ("The cow cannot drink cold water.", "Die Kuh kann kein kaltes Wasser trinken."),
        ),
        (
            Clause(HE, VERBS["sleep"], "perfect", negated=True, places=(at(lexicon.IN, the("garden")),)),
            ("He has not slept in the garden.", "Er hat nicht im Garten geschlafen."),
        ),
        # Adjective endings: strong, weak and mixed, in three cases and both numbers.
        (
            Clause(the("woman", "a", "young"), VERBS["give"], "past", dative=the("man", "a", "old"),
                   accusative=the("coffee", "", "hot")),
            ("A young woman gave an old man hot coffee.", "Eine junge Frau gab einem alten Mann heißen Kaffee."),
        ),
        (
            Clause(the("horse", "", "white", plural=True), VERBS["follow"], "past", dative=the("child", "this", "small",
                   plural=True)),
            ("White horses followed these small children.", "Weiße Pferde folgten diesen kleinen Kindern."),
        ),
        (
            Clause(the("bread", "this", "old"), BE, "past", predicate=Predicate(ADJECTIVES["cheap"])),
            ("This old bread was cheap.", "Dieses alte Brot war billig."),
        ),
        (
            Clause(the("bear", "every"), VERBS["see"], "past", accusative=the("bear", "a", "brown")),
            ("Every bear saw a brown bear.", "Jeder Bär sah einen braunen Bären."),
        ),
        # Stems that change before an ending.
        (
            Clause(ME, VERBS["sell"], "past", accusative=the("house", "the", "expensive")),
            ("I sold the expensive house.", "Ich verkaufte das teure Haus."),
        ),
        (
            Clause(WE, VERBS["wait"], "past", places=(at(lexicon.IN, the("cellar", "a", "dark")),)),
            ("We waited in a dark cellar.", "Wir warteten in einem dunklen Keller."),
        ),
        # One preposition, two cases.
        (
            Clause(the("dog"), VERBS["run"], "past", places=(at(lexicon.INTO, the("house")),)),
            ("The dog ran into the house.", "Der Hund lief ins Haus."),
        ),
        (
            Clause(the("dog"), VERBS["run"], "past", manner=lexicon.SLOWLY, places=(at(lexicon.INTO, the("forest")),)),
            ("The dog ran slowly into the forest.", "Der Hund lief langsam in den Wald."),
        ),
        (
            Clause(the("dog"), VERBS["sit"], "present", places=(at(lexicon.IN, the("forest")),)),
            ("The dog is sitting in the forest.", "Der Hund sitzt im Wald."),
        ),
        # Adverbs stand after what is known and before what is new.
        (
            Clause(the("man"), VERBS["see"], "perfect", adverb=lexicon.NEVER, accusative=the("bridge")),
            ("The man has never seen the bridge.", "Der Mann hat die Brücke nie gesehen."),
        ),
        # Comparison, measure, number.
        (
            Clause(the("river"), BE, "habitual", negated=True,
                   predicate=Predicate(ADJECTIVES["wide"], "comparative", the("street"))),
            ("The river is not wider than the street.", "Der Fluss ist nicht breiter als die Straße."),
        ),
        (
            Clause(the("room"), BE, "habitual", predicate=Predicate(ADJECTIVES["dark"], "equal", the("kitchen"))),
            ("The room is as dark as the kitchen.", "Das Zimmer ist so dunkel wie die Küche."),
        ),
        (
            Clause(the("tree"), BE, "habitual",
                   predicate=Predicate(ADJECTIVES["old"], measure=the("year", plural=True, count=302))),
            ("The tree is three hundred and two years old.", "Der Baum ist dreihundertzwei Jahre alt."),
        ),
        (
            Clause(the("number", "my"), BE, "past", predicate=Predicate(number=21)),
            ("My number was twenty-one.", "Meine Zahl war einundzwanzig."),
        ),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_main_clauses(clause, expected):
    assert both(clause) == expected


@pytest.mark.parametrize(
    ("head", "relative", "expected"),
    [
        (
            the("man"),
            Relative("subject", Clause(None, VERBS["get up"], "past"), person=True),
            ("The man who got up is sick.", "Der Mann, der aufstand, ist krank."),
        ),
        (
            the("book", plural=True),
            Relative("accusative", Clause(the("girl"), VERBS["buy"], "perfect"), person=False),
            ("The books that the girl has bought are sick.", "Die Bücher, die das Mädchen gekauft hat, sind krank."),
        ),
        (
            the("child", plural=True),
            Relative("dative", Clause(HE, VERBS["give"], "past", accusative=the("dog", "a")), person=True),
            ("The children to whom he gave a dog are sick.", "Die Kinder, denen er einen Hund gab, sind krank."),
        ),
        (
            the("bridge"),
            Relative("places", Clause(HE, VERBS["sleep"], "past"), person=False, preposition=lexicon.UNDER),
            ("The bridge under which he slept is sick.", "Die Brücke, unter der er schlief, ist krank."),
        ),
    ],
)
def test_relative_clauses(head, relative, expected):
    clause = Clause(replace(head, relative=relative), BE, "habitual", predicate=Predicate(ADJECTIVES["sick"]))
    assert both(clause) == expected


def test_a_relative_clause_at_the_end_has_one_comma():
    relative = Relative("subject", Clause(None, VERBS["sing"], "past"), person=True)
    clause = Clause(ME, VERBS["know"], "habitual", accusative=replace(the("farmer"), relative=relative))
    assert both(clause) == ("I know the farmer who sang.", "Ich kenne den Bauern, der sang.")


def test_questions_put_the_verb_first_or_after_the_interrogative():
    clause = Clause(the("train"), VERBS["arrive"], "past")
    assert (english.question(clause), german.question(clause)) == ("did the train arrive", "kam der Zug an")
    assert english.question(clause, "when") == "when did the train arrive"
    assert german.question(clause, "wann") == "wann kam der Zug an"
    clause = Clause(SHE, VERBS["buy"], "perfect", negated=True, accusative=the("dog", "a"))
    assert english.question(clause, "why") == "why has she not bought a dog"
    assert german.question(clause, "warum") == "warum hat sie keinen Hund gekauft"


def test_when_is_als_in_the_past_and_wenn_in_the_present():
    past, present = (Clause(HE, VERBS["come back"], tense) for tense in ("past", "habitual"))
    assert german.subordinate(lexicon.WHEN, past) == "als er zurückkam"
    assert german.subordinate(lexicon.WHEN, present) == "wenn er zurückkommt"


def test_a_subordinate_clause_in_front_is_followed_by_the_verb():
    side = Clause(HE, VERBS["wake up"], "past")
    clause = Clause(the("cat"), VERBS["run"], "past", places=(at(lexicon.OUT_OF, the("house")),))
    assert written(german.main(clause, german.subordinate(lexicon.BECAUSE, side))) == (
        "Weil er aufwachte, lief die Katze aus dem Haus."
    )


@pytest.mark.parametrize(("pronoun", "reason", "expected"), [("neuter", "tired", 0), ("feminine", "wide", 1)])
def test_the_grammar_says_the_lecture_sentences(pronoun, reason, expected):
    clause = Clause(the("animal"), VERBS["cross"], "past", negated=True, accusative=the("street"))
    side = Clause(Pronoun("it", pronoun), BE, "past", predicate=Predicate(ADJECTIVES[reason], "too"))
    assert with_side(clause, lexicon.BECAUSE, side) == LECTURE_SENTENCES[expected]


def test_the_grammar_says_the_examples():
    suitcase = Clause(
        the("woman", adjective="young"), VERBS["pick up"], "future", accusative=the("suitcase", adjective="heavy"),
        time=lexicon.TOMORROW,
    )  # fmt: skip
    gave = Relative("dative", Clause(the("mother"), VERBS["give"], "past", accusative=the("book")), person=True)
    price = the("euro", plural=True, count=234_567)
    arrived = Clause(the("train"), VERBS["arrive"], "past")
    waited = Clause(
        the("child", plural=True), VERBS["wait"], "background", places=(at(lexicon.IN_FRONT_OF, the("station")),)
    )
    said = (
        both(
            Clause(
                the("farmer", adjective="tired"), VERBS["wake up"], "past", manner=lexicon.EARLY,
                time=lexicon.YESTERDAY, time_first=True,
            )
        ),
        both(
            Clause(
                the("teacher"), VERBS["show"], "perfect", dative=the("child"), adverb=lexicon.ALREADY,
                accusative=the("picture", "a", "beautiful"),
            )
        ),
        with_side(Clause(ME, KNOW_FACT, "habitual"), lexicon.THAT, suitcase),
        both(Clause(the("boy", relative=gave), BE, "past", predicate=Predicate(ADJECTIVES["happy"], "very"))),
        both(Clause(the("house", adjective="old"), VERBS["cost"], "habitual", accusative=price)),
        (
            written(english.main(waited, f"{english.subordinate(lexicon.WHEN, arrived)},")),
            written(german.main(waited, german.subordinate(lexicon.WHEN, arrived))),
        ),
    )  # fmt: skip
    assert said == EXAMPLES


def test_agreement_of_subject_and_verb():
    assert agreement(ME) == (1, False)
    assert agreement(WE) == (1, True)
    assert agreement(THEY) == (3, True)
    assert agreement(the("man", plural=True)) == (3, True)
    assert agreement(None, True) == (3, True)


def test_draws_are_the_same_everywhere():
    draws = Draws(7)
    # From the Mersenne Twister itself: the same on every machine and Python version.
    assert [draws.below(1000) for _ in range(5)] == [323, 150, 650, 72, 535]
    assert draws.weighted(((0, "never"), (3, "always"))) == "always"
