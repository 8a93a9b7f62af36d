"""The kinds of sentences of the built-in corpus, and how often each comes up."""

from collections.abc import Callable
from dataclasses import dataclass

from datamodules.synthetic.grammar import english, german
from datamodules.synthetic.grammar.counting import number_sentence
from datamodules.synthetic.grammar.descriptions import description
from datamodules.synthetic.grammar.draws import Draws
from datamodules.synthetic.grammar.events import dress, everyday
from datamodules.synthetic.grammar.phrases import Clause
from datamodules.synthetic.grammar.pronouns import pronoun_sentence
from datamodules.synthetic.grammar.questions import question
from datamodules.synthetic.grammar.relatives import relative_sentence
from datamodules.synthetic.grammar.subordinates import occasion, reason, report


@dataclass(frozen=True, slots=True)
class Pair:
    """An English sentence, its German translation, and the kind of sentence that it is."""

    english: str
    german: str
    kind: str


def draw_pair(draws: Draws) -> Pair:
    """Draws one sentence pair.

    Args:
        draws: The source of chance.

    Returns:
        The pair, with capitals and punctuation.
    """
    kind, draw = draws.weighted(_KINDS)
    english_words, german_words = draw(draws)
    mark = "?" if kind == "question" else "."
    return Pair(_capitalised(english_words + mark), _capitalised(german.punctuate(german_words + mark)), kind)


def _capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _statement(draws: Draws) -> Clause:
    return dress(draws, everyday(draws))


def _in_words(draw: Callable[[Draws], Clause]) -> Callable[[Draws], tuple[str, str]]:
    """Turns a draw of a main clause into a draw of its English and German words."""

    def in_words(draws: Draws) -> tuple[str, str]:
        clause = draw(draws)
        return english.main(clause), german.main(clause)

    return in_words


_KINDS: tuple[tuple[int, tuple[str, Callable[[Draws], tuple[str, str]]]], ...] = (
    (36, ("statement", _in_words(_statement))),
    (6, ("description", _in_words(description))),
    (14, ("pronoun", pronoun_sentence)),
    (11, ("number", _in_words(number_sentence))),
    (8, ("reason", reason)),
    (4, ("occasion", occasion)),
    (5, ("report", report)),
    (8, ("relative", _in_words(relative_sentence))),
    (8, ("question", question)),
)
