"""Numbers in words, against a table written by hand and against the rules of each language."""

import re

import pytest

from datamodules.synthetic.translation import number_in_english, number_in_german

TRICKY = {
    0: ("zero", "null"),
    1: ("one", "eins"),
    7: ("seven", "sieben"),
    11: ("eleven", "elf"),
    12: ("twelve", "zwölf"),
    16: ("sixteen", "sechzehn"),  # not "sechszehn"
    17: ("seventeen", "siebzehn"),  # not "siebenzehn"
    20: ("twenty", "zwanzig"),
    21: ("twenty-one", "einundzwanzig"),  # not "einsundzwanzig"
    30: ("thirty", "dreißig"),  # not "dreizig"
    56: ("fifty-six", "sechsundfünfzig"),
    60: ("sixty", "sechzig"),
    70: ("seventy", "siebzig"),
    99: ("ninety-nine", "neunundneunzig"),
    100: ("one hundred", "einhundert"),
    101: ("one hundred and one", "einhunderteins"),
    111: ("one hundred and eleven", "einhundertelf"),
    121: ("one hundred and twenty-one", "einhunderteinundzwanzig"),
    456: ("four hundred and fifty-six", "vierhundertsechsundfünfzig"),
    1000: ("one thousand", "eintausend"),
    1001: ("one thousand and one", "eintausendeins"),
    1016: ("one thousand and sixteen", "eintausendsechzehn"),
    1100: ("one thousand one hundred", "eintausendeinhundert"),
    21000: ("twenty-one thousand", "einundzwanzigtausend"),
    23456: ("twenty-three thousand four hundred and fifty-six", "dreiundzwanzigtausendvierhundertsechsundfünfzig"),
    100000: ("one hundred thousand", "einhunderttausend"),
    101000: ("one hundred and one thousand", "einhunderteintausend"),
    101101: ("one hundred and one thousand one hundred and one", "einhunderteintausendeinhunderteins"),
    700070: ("seven hundred thousand and seventy", "siebenhunderttausendsiebzig"),
    999999: (
        "nine hundred and ninety-nine thousand nine hundred and ninety-nine",
        "neunhundertneunundneunzigtausendneunhundertneunundneunzig",
    ),
}


@pytest.mark.parametrize("number", sorted(TRICKY))
def test_tricky_numbers_are_spelt_as_the_dictionaries_spell_them(number):
    assert (number_in_english(number), number_in_german(number)) == TRICKY[number]


@pytest.mark.parametrize("number", [-1, 1_000_000])
@pytest.mark.parametrize("spell", [number_in_english, number_in_german])
def test_a_number_out_of_range_is_named(spell, number):
    with pytest.raises(ValueError, match=rf"{number}.*0 to 999,999"):
        spell(number)


def german_value(word: str) -> int:
    """Reads a German number word with a grammar of its own."""
    small = "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf".split()
    values = {name: value for value, name in enumerate(small)} | {"ein": 1, "sechzehn": 16, "siebzehn": 17}
    values |= {f"{name}zehn": 10 + value for value, name in enumerate(small) if value in (3, 4, 5, 8, 9)}
    tens = {"zwanzig": 20, "dreißig": 30, "sechzig": 60, "siebzig": 70}
    tens |= {f"{small[value]}zig": value * 10 for value in (4, 5, 8, 9)}
    if "tausend" in word:
        thousands, _, rest = word.partition("tausend")
        return german_value(thousands) * 1000 + (german_value(rest) if rest else 0)
    if "hundert" in word:
        hundreds, _, rest = word.partition("hundert")
        return german_value(hundreds) * 100 + (german_value(rest) if rest else 0)
    if word in values:
        return values[word]
    units, _, name = word.rpartition("und")
    return tens[name] + (values[units] if units else 0)


def test_every_number_below_ten_thousand_and_some_above_can_be_read_back():
    for number in [*range(10_000), *range(10_000, 1_000_000, 997)]:
        assert german_value(number_in_german(number)) == number


def test_both_languages_tell_all_numbers_apart():
    numbers = [*range(10_000), *range(10_000, 1_000_000, 997)]
    for spell in (number_in_english, number_in_german):
        assert len({spell(number) for number in numbers}) == len(numbers)


def test_german_keeps_its_short_forms_inside_a_word():
    wrong = re.compile("einshundert|einstausend|einsund|sechszig|sechszehn|siebenzig|siebenzehn|zweizig|dreizig|null.")
    for number in range(0, 1_000_000, 7):
        assert not wrong.search(number_in_german(number))


def english_value(words: str) -> int:
    """Reads English number words; "and" may only stand where it belongs, before what is below a hundred."""
    thousands, comma, rest = words.rpartition(" thousand")
    if comma:
        bare = rest.removeprefix(" and ").strip()
        below = english_value(bare) if bare else 0
        assert rest.startswith(" and ") == (0 < below < 100)
        return english_value(thousands) * 1000 + below
    hundreds, comma, rest = words.rpartition(" hundred")
    if comma:
        assert not rest or rest.startswith(" and ")
        return english_value(hundreds) * 100 + (english_value(rest.removeprefix(" and ")) if rest else 0)
    small = (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen"
    ).split()
    tens = "twenty thirty forty fifty sixty seventy eighty ninety".split()
    name, _, units = words.partition("-")
    return small.index(name) if name in small else 20 + 10 * tens.index(name) + (small.index(units) if units else 0)


def test_english_can_be_read_back():
    for number in [*range(10_000), *range(10_000, 1_000_000, 997)]:
        assert english_value(number_in_english(number)) == number
