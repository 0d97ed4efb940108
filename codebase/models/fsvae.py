"""The fully supervised VAE: images given their labels, style separated from content (homework, bonus problem).

    p(z)     = N(z; 0, I)
    p(x|y,z) = N(x; mu(y, z), 0.1 I),         mu from dec(z, y)
    q(z|x,y) = N(z; m(x, y), diag v(x, y)),   m, v from enc(x, y)

The bounds (bonus 2) are those of vae.py given y, with the likelihood from here: bounds on log p(x|y). p(x|y) is a
density, whose log is positive if the model is good.

Dimension letters: B images, X pixels, D latent dimensions, C classes.
"""

import torch

from codebase.models.vae import VAE
from codebase.nns import apply
from codebase.utils import log_normal


class FSVAE(VAE):
    """FSVAE of images x in [0, 1]^X, channel first; X = 3072: 32 x 32 in colour. classes: C. The others as in VAE."""

    is_density = True

    def __init__(self, z_dim=10, iw=1, *, classes=10, x_dim=3072, n_hidden=500, **networks):
        super().__init__(z_dim, iw, x_dim=x_dim, y_dim=classes, n_hidden=n_hidden, **networks)
        self.classes = classes
        self.register_buffer("x_v", torch.tensor(0.1), persistent=False)  # a constant, not saved

    def log_likelihood(self, x, z, y):
        """log p(x|y, z) in nats. x: (B, X); z: (..., B, D); y: (B, C), one-hot. Returns (..., B)."""
        return log_normal(x, apply(self.dec, z, y), self.x_v)

    def mean_x(self, z, y):
        """clip(mu(y, z)): E[x|y, z] as a picture. z: (..., D); y: (..., C), one-hot. Returns (..., X) in [0, 1]."""
        return apply(self.dec, z, y).clamp(0, 1)

    def sample_x(self, n, y):
        """n pictures clip(mu(y, z)), z ~ p(z): the homework's heuristic, the mean of x instead of a draw.

        y: (n, C), a one-hot row for each picture, or (C,), one row for all. Returns (n, X) in [0, 1].
        """
        return self.mean_x(self.sample_z(n), y)
