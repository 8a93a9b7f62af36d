"""A grammar that says the same thing in English and in German.

`phrases` is what can be said, `lexicon` the words, `english` and `german` put a clause into words, `frames`, `events`,
`pronouns`, `counting` and `sentences` draw what is said.
"""
