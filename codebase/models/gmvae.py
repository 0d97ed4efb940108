"""The VAE with a mixture of Gaussians as its prior (homework, Problem 2). Everything else is as in vae.py.

    p(z) = (1/K) sum_i N(z; mu_i, diag sigma_i^2), learned, with uniform weights

The bounds (Problems 2.1 and 3.4) are those of vae.py, with the prior and its kl from here.

Dimension letters: B images, D latent dimensions, K components.
"""

import math

import torch
from torch import nn

from codebase.models.vae import VAE
from codebase.utils import gaussian_parameters, log_normal, log_normal_mixture, sample_gaussian


class GMVAE(VAE):
    """VAE whose prior is a learned mixture. k: K, the number of components; the other arguments as in VAE."""

    def __init__(self, z_dim=10, k=500, iw=1, **networks):
        super().__init__(z_dim, iw, **networks)
        del self.z_prior_m, self.z_prior_v  # not this prior
        # The first k rows are the means, the other k the variances before the softplus.
        self.z_pre = nn.Parameter(torch.randn(1, 2 * k, z_dim) / math.sqrt(k * z_dim))
        self.register_buffer("pi", torch.full((k,), 1 / k))  # the uniform weights, for the homework's files only

    def prior(self):
        """Means and variances of the components. Returns (m, v), each (K, D)."""
        return gaussian_parameters(self.z_pre[0], dim=0)

    def log_prior(self, z):
        """log p(z) in nats, exact. z: (..., B, D). Returns (..., B)."""
        return log_normal_mixture(z, *self.prior())

    def kl(self, z, qm, qv):
        """log q(z|x) - log p(z) at z ~ q(z|x), in nats, for D_KL(q(z|x) || p(z)): unbiased, at times negative.

        z, qm, qv: (..., B, D). Returns (..., B).  (Problem 2.1)
        """
        return log_normal(z, qm, qv) - self.log_prior(z)

    def sample_z(self, n):
        """n draws of z ~ p(z): first a component, then z from it. Returns (n, D)."""
        m, v = self.prior()  # (K, D)
        component = torch.randint(len(m), (n,), device=m.device)
        return sample_gaussian(m[component], v[component])
