"""The variational autoencoder and its importance-weighted bound (homework, Problems 1 and 3).

    p(z)   = N(z; 0, I)
    p(x|z) = Bern(x; sigmoid(dec(z)))
    q(z|x) = N(z; m(x), diag v(x)),   m, v from enc(x)

A model is defined by its densities; the bounds are computed from them. Subclasses override rows of TOGETHER, below.
*y: labels, one-hot rows (..., B, C), for the models that condition on them (Problem 4, bonus). The methods here only
pass them on: posterior(x, y) is then q(z|x, y), log_likelihood(x, z, y) is log p(x|y, z), and the bounds are those of
log p(x|y).

Dimension letters: B images, X pixels, D latent dimensions, M importance samples, C classes; ... are leading dimensions
of z (samples) and of y (labels), if there are any.
"""

import torch
from torch import nn

from codebase.nns import MLP, apply
from codebase.utils import (
    duplicate,
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
    x_dim: X. enc, dec: modules (N, X) -> (N, 2D) and (N, D) -> N results of X values; by default the homework's MLPs,
    with n_hidden units per layer. With labels of length y_dim, their second argument is y, (N, y_dim).
    """

    is_density = False  # is log_likelihood the log of a density, or of a probability?
    labels_per_image = 1  # C if the bounds sum over all labels: then the networks get C rows for each image

    def __init__(self, z_dim=10, iw=1, *, x_dim=784, y_dim=0, n_hidden=300, enc=None, dec=None):
        super().__init__()
        self.z_dim, self.iw, self.x_dim = z_dim, iw, x_dim
        self.enc = MLP(x_dim + y_dim, n_hidden, 2 * z_dim) if enc is None else enc
        self.dec = MLP(z_dim + y_dim, n_hidden, x_dim) if dec is None else dec
        self.register_buffer("z_prior_m", torch.zeros(1))  # N(0, I), saved as in the homework's files
        self.register_buffer("z_prior_v", torch.ones(1))
        self.register_buffer("step", torch.tensor(0), persistent=False)  # finished steps; the training loop counts

    # The densities

    def log_prior(self, z):
        """log p(z) in nats. z: (..., B, D). Returns (..., B)."""
        return log_normal(z, self.z_prior_m, self.z_prior_v)

    def posterior(self, x, *y):
        """Mean and variance of q(z|x) = N(z; m, diag v). x: (B, X). Returns (m, v), each (..., B, D)."""
        return gaussian_parameters(apply(self.enc, x, *y))

    def log_likelihood(self, x, z, *y):
        """log p(x|z) in nats. x: (B, X); z: (..., B, D). Returns (..., B)."""
        return log_bernoulli_with_logits(x, apply(self.dec, z, *y))

    def kl(self, z, qm, qv):
        """D_KL(q(z|x) || p(z)) in nats, in closed form; z ~ q(z|x) is for priors without. (..., B, D) -> (..., B)."""
        return kl_normal(qm, qv, self.z_prior_m, self.z_prior_v)

    # The bounds

    def elbo_terms(self, x, *y):
        """-ELBO(x) of each image and its terms, in nats, estimated without bias from one z ~ q(z|x).  (Problem 1.2)

        x: (B, X). Returns {'nelbo', 'kl', 'rec'}, each (..., B): nelbo = kl + rec, kl = D_KL(q(z|x) || p(z)),
        rec = -log p(x|z), an estimate of E_q[-log p(x|z)].
        """
        qm, qv = self.posterior(x, *y)  # (..., B, D)
        z = sample_gaussian(qm, qv)  # (..., B, D)
        kl = self.kl(z, qm, qv)  # (..., B)
        rec = -self.log_likelihood(x, z, *y)  # (..., B)
        return {"nelbo": kl + rec, "kl": kl, "rec": rec}

    def negative_elbo_bound(self, x, *y):
        """elbo_terms averaged over the batch, in nats. x: (B, X). Returns scalars (nelbo, kl, rec).  (Problem 1.2)"""
        terms = self.elbo_terms(x, *y)
        return terms["nelbo"].mean(), terms["kl"].mean(), terms["rec"].mean()

    def log_weights(self, x, iw, *y):
        """log w_i, w_i = p(x, z_i) / q(z_i|x), z_i ~ q(z|x), i = 1, ..., M = iw, in nats; E[w_i] = p(x).  (Problem 3.2)

        x: (B, X). Returns (log_w, kl, rec), each (M, ..., B): log_w = -(kl + rec), kl = log q(z_i|x) - log p(z_i) at
        the sample, rec = -log p(x|z_i).
        """
        qm, qv = self.posterior(x, *y)  # (..., B, D)
        z = sample_gaussian(duplicate(qm, iw).reshape(iw, *qm.shape), qv)  # (M, ..., B, D)
        kl = log_normal(z, qm, qv) - self.log_prior(z)  # (M, ..., B)
        rec = -self.log_likelihood(x, z, *y)  # (M, ..., B)
        return -(kl + rec), kl, rec

    def negative_iwae_bound(self, x, iw, *y):
        """-L_m = -E[log (1/m) sum_i w_i], m = iw, averaged over the batch, in nats, without bias.  (Problem 3.2)

        x: (B, X). Returns scalars (niwae, kl, rec), the last two averaged over the m samples: kl + rec is the -ELBO.
        """
        log_w, kl, rec = self.log_weights(x, iw, *y)  # (M, B)
        return -log_mean_exp(log_w, dim=0).mean(), kl.mean(), rec.mean()

    def loss(self, x, *y):
        """The loss of the training and the values of its curves: (scalar in nats, {tag: scalar}). x: (B, X)."""
        if self.iw == 1:
            loss, kl, rec = self.negative_elbo_bound(x, *y)
        else:
            loss, kl, rec = self.negative_iwae_bound(x, self.iw, *y)
        nelbo = loss if self.iw == 1 else kl + rec
        return loss, {"gen/elbo": -nelbo, "gen/kl_z": kl, "gen/rec": rec}

    # Sampling, reconstruction, and the mean of z

    def sample_z(self, n):
        """n draws of z ~ p(z). Returns (n, D)."""
        return sample_gaussian(self.z_prior_m.expand(n, self.z_dim), self.z_prior_v)

    def mean_x(self, z, *y):
        """E[x|z], the Bernoulli means of the pixels. z: (..., D). Returns (..., X) in [0, 1]."""
        return apply(self.dec, z, *y).sigmoid()

    def sample_x(self, n, *y):
        """n draws of a binary image x ~ p(x). Returns (n, X) in {0, 1}."""
        return torch.bernoulli(self.mean_x(self.sample_z(n), *y))

    def mean_z(self, x, *y):
        """E[z|x] under q(z|x). x: (B, X). Returns (..., B, D)."""
        return self.posterior(x, *y)[0]

    def reconstruct(self, x, *y):
        """E[x'|z] at the mean z of q(z|x); with labels, given y. x: (B, X). Returns (B, X) in [0, 1]."""
        return self.mean_x(self.mean_z(x, *y), *y)

    def __init_subclass__(cls):
        """TypeError if a subclass overrides only a part of a row of TOGETHER: it would inherit another model's rest."""
        super().__init_subclass__()

        def depth(name):  # of the class that defines it, in the order in which Python looks for it
            return next(i for i, base in enumerate(cls.__mro__) if name in vars(base))

        for names, others in TOGETHER:
            first = min(names, key=depth)
            missing = [name for name in (*names, *others) if depth(name) > depth(first)]
            if missing:
                raise TypeError(
                    f"{cls.__name__} overrides {first}, so it needs its own {' and '.join(missing)}, too: what it "
                    "inherits is another model's. The table in docs/extending.md says what belongs together."
                )


TOGETHER = [  # who overrides one of the first names of a row must override the whole row
    (["log_prior", "sample_z", "kl"], []),  # another prior
    (["log_likelihood", "mean_x"], ["sample_x", "is_density"]),  # another likelihood
    (["elbo_terms", "log_weights"], ["mean_z"]),  # another posterior than a diagonal normal
    (["negative_elbo_bound"], ["elbo_terms"]),
    (["negative_iwae_bound"], ["log_weights"]),
]
