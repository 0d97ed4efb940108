"""The VAE with a mixture of Gaussians as its prior (homework, Problem 2). All else is the VAE's.

    p(z) = (1/K) sum_i N(z; mu_i, diag sigma_i^2), learned, with uniform weights

Dimension letters: B images, X pixels, D latent dimensions, K components, M importance samples.
"""

import math

import torch
from torch import nn

from codebase.models.vae import VAE
from codebase.utils import gaussian_parameters, log_normal, log_normal_mixture, sample_gaussian


class GMVAE(VAE):
    """VAE whose prior is a learned mixture. z_dim: D; k: K, the number of components; iw: as in VAE."""

    def __init__(self, z_dim=10, k=500, iw=1):
        super().__init__(z_dim, iw)
        del self.z_prior_m, self.z_prior_v
        # Means in the first k rows; in the others, before the softplus, variances.
        self.z_pre = nn.Parameter(torch.randn(1, 2 * k, z_dim) / math.sqrt(k * z_dim))
        self.register_buffer("pi", torch.full((k,), 1 / k))  # the uniform weights, as in the homework's files

    def prior(self):
        """Means and variances of the components. Returns (m, v), each (K, D)."""
        return gaussian_parameters(self.z_pre[0], dim=0)

    def log_prior(self, z):
        """log p(z) in nats, exact. z: (..., D). Returns (...)."""
        return log_normal_mixture(z, *self.prior())

    def kl(self, z, qm, qv):
        """An unbiased estimate of D_KL(q(z|x) || p(z)) in nats: log q(z|x) - log p(z) at the sample z ~ q(z|x).

        z, qm, qv: (B, D). Returns (B,), which may be negative.
        """
        return log_normal(z, qm, qv) - self.log_prior(z)

    def sample_z(self, n):
        """n draws of z ~ p(z): a component by its weight, then a draw from it. Returns (n, D)."""
        m, v = self.prior()  # (K, D)
        component = torch.multinomial(self.pi, n, replacement=True)  # (n,)
        return sample_gaussian(m[component], v[component])

    def latent_units(self, x):
        """E[z|x], (B, D), and None for the KL of each unit: a mixture's dimensions are not independent."""
        return self.posterior(x)[0], None
