"""The errors of the project."""


class InputError(Exception):
    """What the user gave (a flag, a file, a folder) cannot be used; the message is a sentence: why, and what to do.

    Names and reasons in it may come from a damaged file: what a terminal would not print, but obey, is escaped.
    """

    def __init__(self, sentence):
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(sentence)))


class NonFiniteError(ArithmeticError):
    """A loss, a weight or a bound is not a finite number."""
