"""The errors of the project."""


class InputError(Exception):
    """A flag, file or folder that the user gave cannot be used. The message is a sentence: why, and what to do.

    Parts of it may come from a damaged file, so characters that a terminal could execute as commands are escaped.
    """

    def __init__(self, sentence):
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(sentence)))


class NonFiniteError(ArithmeticError):
    """A loss, a weight or a bound is not a finite number."""
