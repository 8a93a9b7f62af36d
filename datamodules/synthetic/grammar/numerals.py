"""Whole numbers from 0 to 999,999 in English and German words.

German speaks the units before the tens ("sechsundfünfzig", six and fifty) and writes the whole number as one word, so
that a translator has to reorder within a word and to split and join words.
"""

LARGEST = 999_999

_ENGLISH_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_ENGLISH_TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()

_GERMAN_SMALL = (
    "null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
    "siebzehn achtzehn neunzehn"
).split()
_GERMAN_TENS = "- - zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()


def number_in_english(n: int) -> str:
    """Writes a number in British English words: 456 is "four hundred and fifty-six".

    Args:
        n: A whole number, 0 to 999,999.

    Returns:
        The words, in lower case.

    Raises:
        ValueError: If `n` is not in that range.
    """
    _check(n)
    thousands, rest = divmod(n, 1000)
    words = [f"{_english_below_1000(thousands)} thousand"] if thousands else []
    if thousands and 0 < rest < 100:
        words.append("and")
    if rest or not thousands:
        words.append(_english_below_1000(rest))
    return " ".join(words)


def number_in_german(n: int) -> str:
    """Writes a number as one German word, as it is counted: 1 is "eins", 456 is "vierhundertsechsundfünfzig".

    Args:
        n: A whole number, 0 to 999,999.

    Returns:
        The word, in lower case. Hundreds and thousands always carry their "ein": 1100 is "eintausendeinhundert".

    Raises:
        ValueError: If `n` is not in that range.
    """
    _check(n)
    thousands, rest = divmod(n, 1000)
    word = f"{_german_below_1000(thousands)}tausend" if thousands else ""
    if rest or not thousands:
        word += _german_below_1000(rest)
    # "ein" stands before another word ("einundzwanzig", "einhundert"); a number that ends in one ends in "eins".
    return f"{word}s" if n % 100 == 1 else word


def _check(n: int) -> None:
    if not 0 <= n <= LARGEST:
        raise ValueError(f"the number {n} cannot be written in words; give a whole number from 0 to {LARGEST:,}")


def _english_below_1000(n: int) -> str:
    hundreds, rest = divmod(n, 100)
    if not hundreds:
        return _english_below_100(rest)
    words = f"{_ENGLISH_SMALL[hundreds]} hundred"
    return f"{words} and {_english_below_100(rest)}" if rest else words


def _english_below_100(n: int) -> str:
    if n < 20:
        return _ENGLISH_SMALL[n]
    tens, units = divmod(n, 10)
    return f"{_ENGLISH_TENS[tens]}-{_ENGLISH_SMALL[units]}" if units else _ENGLISH_TENS[tens]


def _german_below_1000(n: int) -> str:
    hundreds, rest = divmod(n, 100)
    word = f"{_GERMAN_SMALL[hundreds]}hundert" if hundreds else ""
    return word + _german_below_100(rest) if rest or not hundreds else word


def _german_below_100(n: int) -> str:
    if n < 20:
        return _GERMAN_SMALL[n]
    tens, units = divmod(n, 10)
    return f"{_GERMAN_SMALL[units]}und{_GERMAN_TENS[tens]}" if units else _GERMAN_TENS[tens]
