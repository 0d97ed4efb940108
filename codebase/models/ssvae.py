"""The semi-supervised VAE: labels y of which few are seen (homework, Problem 4; Kingma et al. 2014, model M2).

    p(y)     = 1/C
    p(z)     = N(z; 0, I)
    p(x|y,z) = Bern(x; sigmoid(dec(z, y)))
    q(y|x)   = Cat(y; softmax(cls(x))), the classifier
    q(z|x,y) = N(z; m(x, y), diag v(x, y)),   m, v from enc(x, y)

Given y it is the VAE, whose methods it uses; what is new is the expectation over y, which is exact. Where y is left
out, a method takes every label: it has a leading dimension C, whose entry c is for y = c.

Dimension letters: B images, X pixels, D latent dimensions, M importance samples, C classes.
"""

import math

import torch
from torch import nn

from codebase.models.vae import VAE
from codebase.nns import MLP
from codebase.utils import kl_cat, log_mean_exp, sample_gaussian


class SSVAE(VAE):
    """SSVAE of binary images with labels from 0 to C - 1.

    gen_weight, class_weight: what the negative ELBO of all images and the classifier's cross-entropy on the labelled
    ones count for in the loss; gen_weight = 0 is the supervised baseline. z_dim: D.
    """

    def __init__(self, gen_weight=1, class_weight=100, z_dim=64, *, classes=10):
        super().__init__(z_dim, y_dim=classes)
        self.gen_weight, self.class_weight, self.classes = gen_weight, class_weight, classes
        self.cls = MLP(784, 300, classes, activation=nn.ReLU)
        every_y = torch.eye(classes).unsqueeze(1)  # (C, 1, C): against images (B, X), each with every label
        self.register_buffer("every_y", every_y, persistent=False)  # a constant, absent from the homework's files

    # The densities

    def log_q_y(self, x):
        """log q(y|x) of every y, in nats. x: (B, X). Returns (B, C)."""
        return self.cls(x).log_softmax(-1)

    def posterior(self, x, y=None):
        """Mean and variance of q(z|x, y). x: (B, X); y: (B, C). Returns (m, v), each (B, D); every y: (C, B, D)."""
        return super().posterior(x, self.every_y if y is None else y)

    def log_likelihood(self, x, z, y=None):
        """log p(x|y, z) in nats. x: (B, X); z: (..., B, D); y: (B, C). Returns (..., B); every y: z (..., C, B, D)."""
        return super().log_likelihood(x, z, self.every_y if y is None else y)

    # The bounds

    def elbo_terms(self, x):
        """The negative ELBO of each image and its terms, in nats; exact over y, one z ~ q(z|x, y) for each y.

        x: (B, X). Returns {'nelbo', 'kl_z', 'kl_y', 'rec'}, each (B,): nelbo = kl_z + kl_y + rec,
        kl_z = E_q(y|x) D_KL(q(z|x, y) || p(z)), kl_y = D_KL(q(y|x) || p(y)), and rec, which estimates the
        reconstruction loss E_q(y,z|x)[-log p(x|y, z)] without bias.  (Problem 4.2)
        """
        log_q = self.log_q_y(x)  # (B, C)
        q = log_q.exp()
        given_y = super().elbo_terms(x)  # kl and rec, each (C, B)
        kl_y = kl_cat(q, log_q, torch.full_like(log_q, -math.log(self.classes)))  # (B,)
        kl_z, rec = ((q.T * given_y[term]).sum(0) for term in ("kl", "rec"))  # (B,)
        return {"nelbo": kl_z + kl_y + rec, "kl_z": kl_z, "kl_y": kl_y, "rec": rec}

    def negative_elbo_bound(self, x):
        """-ELBO averaged over the batch, in nats.  (Problem 4.2)

        x: (B, X). Returns scalars (nelbo, kl_z, kl_y, rec); see elbo_terms.
        """
        return tuple(term.mean() for term in self.elbo_terms(x).values())

    def log_weight(self, x, z, qm, qv):
        """log sum_y p(y) p(x, z_y|y) / q(z_y|x, y) of each sample, one z_y for every y: an estimate of log p(x).

        x: (B, X); z: (..., C, B, D); qm, qv: (C, B, D), the posterior of x. Returns (..., B), in nats. The weight is
        an unbiased estimate of p(x), so its log, like that of an average of m of them, is at most log p(x) on average.
        """
        return log_mean_exp(super().log_weight(x, z, qm, qv), dim=-2)

    def negative_iwae_bound(self, x, iw):
        """-L_m = -E[log sum_y p(y) (1/m) sum_i p(x, z_i|y) / q(z_i|x, y)], m = iw, averaged over the batch, in nats.

        x: (B, X). Returns scalars (niwae, kl, rec): an unbiased estimate of -L_m, where log p(x) >= L_m; and the two
        terms of the negative ELBO, kl + rec, averaged over the m samples, kl that of (y, z). The sum over y is exact
        and needs no q(y|x), hence already L_1 is at least the ELBO.
        """
        qm, qv = self.posterior(x)  # (C, B, D)
        z = sample_gaussian(qm.expand(iw, *qm.shape), qv)  # (M, C, B, D)
        kl, rec = self.weight_terms(x, z, qm, qv)  # (M, C, B)
        niwae = -log_mean_exp((-(kl + rec)).flatten(0, 1), dim=0)  # (B,), since p(y) = 1/C
        log_q = self.log_q_y(x).T  # (C, B)
        kl_y = log_q + math.log(self.classes)  # (C, B): log q(y|x) - log p(y)
        kl, rec = ((log_q.exp() * term.mean(0)).sum(0) for term in (kl + kl_y, rec))  # (B,)
        return niwae.mean(), kl.mean(), rec.mean()

    def loss(self, x, x_labelled, y_labelled):
        """What training minimises, and what its curves show: (scalar in nats, {tag: scalar}).

        gen_weight (-ELBO(x)) + class_weight (-log q(y|x) on the labelled images), each averaged over its images.
        x: (B, X); x_labelled: (B', X); y_labelled: (B', C). With gen_weight = 0 nothing generative is computed.
        """
        log_q = self.log_q_y(x_labelled)  # (B', C)
        ce = -(y_labelled * log_q).sum(-1).mean()
        accuracy = (log_q.argmax(-1) == y_labelled.argmax(-1)).float().mean()
        loss, summaries = self.class_weight * ce, {"class/ce": ce, "class/acc": accuracy}
        if self.gen_weight:
            nelbo, kl_z, kl_y, rec = self.negative_elbo_bound(x)
            loss = loss + self.gen_weight * nelbo
            summaries |= {"gen/elbo": -nelbo, "gen/kl_z": kl_z, "gen/kl_y": kl_y, "gen/rec": rec}
        return loss, summaries

    # Sampling, reconstruction, and what the latent units do

    def mean_x(self, z, y=None):
        """E[x|y, z], the Bernoulli means. z: (..., B, D); y: (B, C). Returns (..., B, X); every y: (..., C, B, X)."""
        return super().mean_x(z, self.every_y if y is None else y)

    def sample_x(self, n):
        """n draws of a binary image x ~ p(x), of a digit y ~ p(y) each. Returns (n, X) in {0, 1}."""
        y = self.every_y[torch.randint(self.classes, (n,), device=self.every_y.device), 0]  # (n, C)
        return torch.bernoulli(self.mean_x(self.sample_z(n), y))

    def reconstruct(self, x, y=None):
        """E[x'|y, z] at the mean z of q(z|x, y); where y is left out, at the likeliest one. (B, X) to (B, X)."""
        return super().reconstruct(x, self.every_y[self.log_q_y(x).argmax(-1), 0] if y is None else y)

    def latent_units(self, x):
        """What each dimension of z carries: (E[z|x], its share of kl_z in nats), each (B, D), averaged over q(y|x)."""
        q = self.log_q_y(x).exp().T.unsqueeze(-1)  # (C, B, 1)
        return tuple((q * each).sum(0) for each in super().latent_units(x))
