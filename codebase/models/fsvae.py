"""The fully supervised VAE: images given their labels, style apart from content (homework, bonus problem).

    p(z)     = N(z; 0, I)
    p(x|y,z) = N(x; mu(y, z), 0.1 I),         mu from dec(z, y)
    q(z|x,y) = N(z; m(x, y), diag v(x, y)),   m, v from enc(x, y)

The label y is always observed, so all is conditioned on it: the VAE's methods with y given, and its bounds are bounds
on log p(x|y). Only the likelihood is another. It is a density: its log is positive where the model is good.

Dimension letters: B images, X pixels, D latent dimensions, C classes.
"""

import torch

from codebase.models.vae import VAE
from codebase.utils import log_normal


class FSVAE(VAE):
    """FSVAE of images x in [0, 1]^3072, colour 32 x 32, channel first. z_dim: D; iw: as in VAE; classes: C."""

    def __init__(self, z_dim=10, iw=1, *, classes=10):
        super().__init__(z_dim, iw, x_dim=3072, y_dim=classes, n_hidden=500)
        self.register_buffer("x_v", torch.tensor(0.1), persistent=False)  # absent from the homework's files

    def log_likelihood(self, x, z, y):
        """log p(x|y, z) in nats. x: (B, X); z: (..., B, D); y: (B, C), one-hot. Returns (..., B)."""
        return log_normal(x, self.dec(z, y), self.x_v)

    def negative_iwae_bound(self, x, y, iw):
        """-L_m of log p(x|y), m = iw, averaged over the batch, in nats: the VAE's, given y.

        x: (B, X); y: (B, C), one-hot. Returns scalars (niwae, kl, rec).
        """
        return super().negative_iwae_bound(x, iw, y)

    def mean_x(self, z, y):
        """clip(mu(y, z)): E[x|y, z] as a picture. z: (..., D); y: (..., C), one-hot. Returns (..., X) in [0, 1]."""
        return self.dec(z, y).clamp(0, 1)

    def sample_x(self, y):
        """A picture clip(mu(y, z)), z ~ p(z), of each label: the homework's heuristic, a draw of x without its noise.

        y: (n, C), one-hot. Returns (n, X) in [0, 1].
        """
        return self.mean_x(self.sample_z(len(y)), y)
