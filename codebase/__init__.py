"""Deep generative models of Stanford CS236, homework 2. README.md has a map of the package.

In a notebook: codebase.load (a trained model), codebase.train, codebase.data, codebase.evaluate, codebase.pictures.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036  (before anything that an older Python cannot read)
    sys.exit(f"Python 3.10 or newer is needed; this is Python {sys.version.split()[0]}, {sys.executable}.")

from codebase import data, evaluate, pictures
from codebase.errors import InputError, NonFiniteError
from codebase.loading import load
from codebase.models.fsvae import FSVAE
from codebase.models.gmvae import GMVAE
from codebase.models.ssvae import SSVAE
from codebase.models.vae import VAE

__all__ = ["FSVAE", "GMVAE", "SSVAE", "VAE", "InputError", "NonFiniteError", "data", "evaluate", "load", "pictures"]
