"""The errors of the project."""


class InputError(Exception):
    """A flag, file or folder that the user gave cannot be used. The message is a sentence: why, and what to do."""

    def __init__(self, sentence):
        # Parts of it may come from a damaged file: characters that a terminal would obey as commands are escaped.
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(sentence)))


class NonFiniteError(ArithmeticError):
    """A loss, a weight or a bound is not a finite number."""
