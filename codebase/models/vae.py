"""The variational autoencoder and its importance-weighted bound (homework, Problems 1 and 3).

    p(z)   = N(z; 0, I)
    p(x|z) = Bern(x; sigmoid(dec(z)))
    q(z|x) = N(z; m(x), diag v(x)),   m, v from enc(x)

Every bound below is made of the small methods above it. Another prior overrides log_prior, sample_z, kl and
latent_units; another likelihood overrides log_likelihood and mean_x.

Where a method takes y, labels as one-hot rows, it is for the models that condition on them (Problem 4 and the bonus):
each density is then that given y, as p(x|y, z) and q(z|x, y). The VAE itself has none.

Dimension letters: B images, X pixels, D latent dimensions, M importance samples, C classes.
"""

import torch
from torch import nn

from codebase.nns import MLP
from codebase.utils import (
    gaussian_parameters,
    kl_normal,
    log_bernoulli_with_logits,
    log_mean_exp,
    log_normal,
    sample_gaussian,
)


class VAE(nn.Module):
    """VAE of binary images x in {0, 1}^X.

    z_dim: D. iw: M, the importance samples of the training loss (1: the negative ELBO; more: the negative IWAE bound).
    x_dim: X; y_dim: the length of y, 0 for none; n_hidden: the width of the networks' hidden layers.
    """

    def __init__(self, z_dim=10, iw=1, *, x_dim=784, y_dim=0, n_hidden=300):
        super().__init__()
        self.iw = iw
        self.enc = MLP(x_dim + y_dim, n_hidden, 2 * z_dim)
        self.dec = MLP(z_dim + y_dim, n_hidden, x_dim)
        self.z_dim = z_dim
        self.register_buffer("z_prior_m", torch.zeros(1))  # constants, in the state_dict as in the homework's files
        self.register_buffer("z_prior_v", torch.ones(1))

    # The densities

    def log_prior(self, z):
        """log p(z) in nats. z: (..., D). Returns (...)."""
        return log_normal(z, self.z_prior_m, self.z_prior_v)

    def posterior(self, x, y=None):
        """Mean and variance of q(z|x). x: (B, X). Returns (m, v), each (B, D)."""
        return gaussian_parameters(self.enc(x, y))

    def log_likelihood(self, x, z, y=None):
        """log p(x|z) in nats. x: (B, X); z: (..., B, D). Returns (..., B)."""
        return log_bernoulli_with_logits(x, self.dec(z, y))

    def kl(self, z, qm, qv):
        """D_KL(q(z|x) || p(z)) in nats, closed form; the sample z is not needed. qm, qv: (B, D). Returns (B,)."""
        return kl_normal(qm, qv, self.z_prior_m, self.z_prior_v)

    # The bounds

    def elbo_terms(self, x, y=None):
        """The negative ELBO of each image and its terms, in nats, estimated without bias with one z ~ q(z|x).

        x: (B, X). Returns {'nelbo', 'kl', 'rec'}, each (B,): nelbo = kl + rec, kl = D_KL(q(z|x) || p(z)),
        rec = -log p(x|z), which estimates the reconstruction loss E_q[-log p(x|z)].
        """
        qm, qv = self.posterior(x, y)  # (B, D)
        z = sample_gaussian(qm, qv)  # (B, D)
        kl = self.kl(z, qm, qv)  # (B,)
        rec = -self.log_likelihood(x, z, y)  # (B,)
        return {"nelbo": kl + rec, "kl": kl, "rec": rec}

    def negative_elbo_bound(self, x, y=None):
        """-ELBO averaged over the batch, in nats.  (Problem 1.2)

        x: (B, X). Returns scalars (nelbo, kl, rec); see elbo_terms.
        """
        return tuple(term.mean() for term in self.elbo_terms(x, y).values())

    def weight_terms(self, x, z, qm, qv, y=None):
        """The terms of a sample's importance weight w = p(x, z) / q(z|x): log w = -(kl + rec), in nats.

        x: (B, X); z: (..., B, D); qm, qv: (B, D), the posterior of x. Returns (kl, rec), each (..., B):
        kl = log q(z|x) - log p(z), rec = -log p(x|z). Never the closed-form KL: that of this very sample.
        """
        return log_normal(z, qm, qv) - self.log_prior(z), -self.log_likelihood(x, z, y)

    def log_weight(self, x, z, qm, qv, y=None):
        """log w of each sample; see weight_terms. Returns (..., B)."""
        kl, rec = self.weight_terms(x, z, qm, qv, y)
        return -(kl + rec)

    def negative_iwae_bound(self, x, iw, y=None):
        """-L_m = -E[log (1/m) sum_i p(x, z_i) / q(z_i|x)], m = iw, averaged over the batch, in nats.  (Problem 3.2)

        x: (B, X). Returns scalars (niwae, kl, rec): an unbiased estimate of -L_m, and the two terms of the negative
        ELBO, kl + rec, averaged over the m samples. The encoder runs once; the samples are a leading dimension.
        """
        qm, qv = self.posterior(x, y)  # (B, D)
        z = sample_gaussian(qm.expand(iw, *qm.shape), qv)  # (M, B, D)
        kl, rec = self.weight_terms(x, z, qm, qv, y)  # (M, B)
        niwae = -log_mean_exp(-(kl + rec), dim=0)  # (B,)
        return niwae.mean(), kl.mean(), rec.mean()

    def loss(self, x, y=None):
        """What training minimises, and what its curves show: (scalar in nats, {tag: scalar}). x: (B, X)."""
        loss, kl, rec = self.negative_elbo_bound(x, y) if self.iw == 1 else self.negative_iwae_bound(x, iw=self.iw, y=y)
        return loss, {"gen/elbo": -(kl + rec), "gen/kl_z": kl, "gen/rec": rec}

    # Sampling, reconstruction, and what the latent units do

    def sample_z(self, n):
        """n draws of z ~ p(z). Returns (n, D)."""
        return sample_gaussian(self.z_prior_m.expand(n, self.z_dim), self.z_prior_v)

    def mean_x(self, z, y=None):
        """E[x|z], the Bernoulli means of the pixels. z: (..., D). Returns (..., X) in [0, 1]."""
        return self.dec(z, y).sigmoid()

    def sample_x(self, n):
        """n draws of a binary image x ~ p(x). Returns (n, X) in {0, 1}."""
        return torch.bernoulli(self.mean_x(self.sample_z(n)))

    def reconstruct(self, x, y=None):
        """E[x'|z] at the mean z of q(z|x). x: (B, X). Returns (B, X) in [0, 1]."""
        return self.mean_x(self.posterior(x, y)[0], y)

    def latent_units(self, x, y=None):
        """What each dimension of z carries of an image: (E[z|x], its share of the KL in nats, or None), each (B, D)."""
        qm, qv = self.posterior(x, y)
        return qm, kl_normal(qm.unsqueeze(-1), qv.unsqueeze(-1), self.z_prior_m, self.z_prior_v)
