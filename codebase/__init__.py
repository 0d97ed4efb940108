"""Deep generative models of Stanford CS236, homework 2. README.md has a map of the package.

In a notebook: codebase.load (a trained model), codebase.data, codebase.pictures.
"""

from codebase import data
from codebase.errors import InputError, NonFiniteError
from codebase.loading import load
from codebase.runs import pictures

__all__ = ["InputError", "NonFiniteError", "data", "load", "pictures"]
