"""The variational autoencoder and its importance-weighted bound (homework, Problems 1 and 3).

    p(z)   = N(z; 0, I)
    p(x|z) = Bern(x; sigmoid(dec(z)))
    q(z|x) = N(z; m(x), diag v(x)),   m, v from enc(x)

A model is defined by its densities; the bounds below are computed from them. A subclass with another prior overrides
log_prior and sample_z. One with another likelihood overrides log_likelihood, mean_x and sample_x.

*y are labels, one-hot rows (..., B, C), for the models that condition on them (Problem 4, bonus). The methods here only
pass them on: posterior(x, y) is then q(z|x, y), log_likelihood(x, z, y) is log p(x|y, z), and the bounds are those of
log p(x|y). The VAE itself has no labels.

Dimension letters: B images, X pixels, D latent dimensions, M importance samples, C classes; ... stands for leading
dimensions of z (samples) and of y (labels), if there are any.
"""

import torch
from torch import nn

from codebase.nns import MLP, apply
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
    x_dim: X. enc: a module (N, X) -> (N, 2D); dec: a module (N, D) -> (N, X), or (N, ...) with X values in all. If they
    are not given, they are the homework's MLPs, with hidden layers of n_hidden units. With labels of length y_dim, the
    modules are called with two arguments, the second one (N, y_dim).
    """

    labels_per_image = 1  # C if the bounds sum over all labels: then the networks get C rows for each image

    def __init__(self, z_dim=10, iw=1, *, x_dim=784, y_dim=0, n_hidden=300, enc=None, dec=None):
        super().__init__()
        self.z_dim, self.iw, self.x_dim = z_dim, iw, x_dim
        self.enc = MLP(x_dim + y_dim, n_hidden, 2 * z_dim) if enc is None else enc
        self.dec = MLP(z_dim + y_dim, n_hidden, x_dim) if dec is None else dec
        # N(0, I). In the state_dict, as in the homework's files, unless the model has another prior.
        self.standard_prior = type(self).log_prior is VAE.log_prior
        self.register_buffer("z_prior_m", torch.zeros(1), persistent=self.standard_prior)
        self.register_buffer("z_prior_v", torch.ones(1), persistent=self.standard_prior)
        # The training loop writes the number of finished steps here, for a loss that changes during training.
        self.register_buffer("step", torch.tensor(0), persistent=False)

    # The densities

    def log_prior(self, z):
        """log p(z) in nats. z: (..., B, D). Returns (..., B)."""
        return log_normal(z, self.z_prior_m, self.z_prior_v)

    def posterior(self, x, *y):
        """Mean and variance of q(z|x). x: (B, X). Returns (m, v), each (..., B, D)."""
        return gaussian_parameters(apply(self.enc, x, *y))

    def log_likelihood(self, x, z, *y):
        """log p(x|z) in nats. x: (B, X); z: (..., B, D). Returns (..., B)."""
        return log_bernoulli_with_logits(x, apply(self.dec, z, *y))

    def kl(self, z, qm, qv):
        """D_KL(q(z|x) || p(z)) in nats. z, a sample from q(z|x), and qm, qv: (..., B, D). Returns (..., B).

        In closed form if p(z) is the N(0, I) of this class. For any other log_prior it is log q(z|x) - log p(z) at the
        sample: an unbiased estimate, which may be negative.  (Problem 2.1)
        """
        if self.standard_prior:
            return kl_normal(qm, qv, self.z_prior_m, self.z_prior_v)
        return log_normal(z, qm, qv) - self.log_prior(z)

    # The bounds

    def elbo_terms(self, x, *y):
        """The negative ELBO of each image and its terms, in nats, estimated without bias from one z ~ q(z|x).

        x: (B, X). Returns {'nelbo', 'kl', 'rec'}, each (..., B): nelbo = kl + rec, kl = D_KL(q(z|x) || p(z)),
        rec = -log p(x|z), which estimates the reconstruction loss E_q[-log p(x|z)].  (Problem 1.2)
        """
        qm, qv = self.posterior(x, *y)  # (..., B, D)
        z = sample_gaussian(qm, qv)  # (..., B, D)
        kl = self.kl(z, qm, qv)  # (..., B)
        rec = -self.log_likelihood(x, z, *y)  # (..., B)
        return {"nelbo": kl + rec, "kl": kl, "rec": rec}

    def log_weights(self, x, iw, *y):
        """The logs of the importance weights w_i = p(x, z_i) / q(z_i|x), z_i ~ q(z|x), i = 1, ..., M = iw, in nats.

        x: (B, X). Returns (log_w, kl, rec), each (M, ..., B): log_w = -(kl + rec), kl = log q(z_i|x) - log p(z_i) at
        the same sample z_i, never in closed form, and rec = -log p(x|z_i). E[w_i] = p(x).  (Problem 3.2)
        """
        qm, qv = self.posterior(x, *y)  # (..., B, D)
        z = sample_gaussian(qm.expand(iw, *qm.shape), qv)  # (M, ..., B, D)
        kl = log_normal(z, qm, qv) - self.log_prior(z)  # (M, ..., B)
        rec = -self.log_likelihood(x, z, *y)  # (M, ..., B)
        return -(kl + rec), kl, rec

    def negative_elbo_bound(self, x, *y):
        """-ELBO averaged over the batch, in nats. x: (B, X).  (Problem 1.2)

        Returns scalars, in the order of elbo_terms: (nelbo, kl, rec), for the SSVAE (nelbo, kl_z, kl_y, rec).
        """
        return tuple(term.mean() for term in self.elbo_terms(x, *y).values())

    def negative_iwae_bound(self, x, iw, *y):
        """-L_m = -E[log (1/m) sum_i w_i], m = iw, averaged over the batch, in nats; see log_weights.  (Problem 3.2)

        x: (B, X). Returns scalars (niwae, kl, rec): an unbiased estimate of -L_m, and the two terms of the negative
        ELBO, kl + rec, averaged over the m samples.
        """
        log_w, kl, rec = self.log_weights(x, iw, *y)  # (M, B)
        return -log_mean_exp(log_w, dim=0).mean(), kl.mean(), rec.mean()

    def loss(self, x, *y):
        """The loss of the training, and the values of its curves: (scalar in nats, {tag: scalar}). x: (B, X)."""
        if self.iw == 1:
            loss, kl, rec = self.negative_elbo_bound(x, *y)
        else:
            loss, kl, rec = self.negative_iwae_bound(x, self.iw, *y)
        return loss, {"gen/elbo": -(kl + rec), "gen/kl_z": kl, "gen/rec": rec}

    def forward(self, *batch):
        """loss(*batch), so that the model can be called, also by DistributedDataParallel: model(*batch)."""
        return self.loss(*batch)

    # Sampling, reconstruction, and the use of the latent units

    def sample_z(self, n):
        """n draws of z ~ p(z). Returns (n, D)."""
        return sample_gaussian(self.z_prior_m.expand(n, self.z_dim), self.z_prior_v)

    def mean_x(self, z, *y):
        """E[x|z], the Bernoulli means of the pixels. z: (..., D). Returns (..., X) in [0, 1]."""
        return apply(self.dec, z, *y).sigmoid()

    def sample_x(self, n, *y):
        """n draws of a binary image x ~ p(x). Returns (n, X) in {0, 1}."""
        return torch.bernoulli(self.mean_x(self.sample_z(n), *y))

    def labels(self, x, *y):
        """The labels of images x (B, X), for the methods that take *y. They are given; a subclass may infer them."""
        return y

    def reconstruct(self, x, *y):
        """E[x'|y, z] at the mean z of q(z|x, y), y = labels(x). x: (B, X). Returns (B, X) in [0, 1]."""
        y = self.labels(x, *y)
        return self.mean_x(self.posterior(x, *y)[0], *y)

    def latent_units(self, x, *y):
        """For each dimension of z, its posterior mean and its part of the KL, in nats.

        x: (B, X). Returns (E[z|x], KL), each (..., B, D); None for the KL if the prior is not N(0, I).
        """
        qm, qv = self.posterior(x, *y)
        each = (t.unsqueeze(-1) for t in (qm, qv))  # a Gaussian for each dimension
        return qm, kl_normal(*each, self.z_prior_m, self.z_prior_v) if self.standard_prior else None
