"""The semi-supervised VAE: few of the labels y are observed (homework, Problem 4; Kingma et al. 2014, model M2).

    p(y)     = 1/C
    p(z)     = N(z; 0, I)
    p(x|y,z) = Bern(x; sigmoid(dec(z, y)))
    q(y|x)   = Cat(y; softmax(cls(x))), the classifier
    q(z|x,y) = N(z; m(x, y), diag v(x, y)),   m, v from enc(x, y)

Given y it is the VAE, whose methods take y as their last argument. The bounds on log p(x) sum exactly over all labels:
with every_y, (C, 1, C), as y, the VAE's results have a leading dimension C, of which entry c is for y = c.

Dimension letters: B images, X pixels, D latent dimensions, M importance samples, C classes.
"""

import math

import torch
from torch import nn

from codebase.models.vae import VAE
from codebase.nns import MLP, apply
from codebase.utils import kl_cat, log_mean_exp, sample_gaussian


class SSVAE(VAE):
    """SSVAE of binary images with labels from 0 to C - 1.

    gen_weight, class_weight, labelled_weight: see loss; gen_weight = 0 is the supervised baseline. classes: C. cls: the
    classifier, a module (N, X) -> (N, C), by default the homework's MLP. The other arguments are as in VAE.
    """

    def __init__(
        self, gen_weight=1, class_weight=100, z_dim=64, *, labelled_weight=0, classes=10, n_hidden=300, cls=None, **vae
    ):
        super().__init__(z_dim, y_dim=classes, n_hidden=n_hidden, **vae)
        self.gen_weight, self.class_weight, self.labelled_weight = gen_weight, class_weight, labelled_weight
        self.classes = self.labels_per_image = classes
        self.cls = MLP(self.x_dim, n_hidden, classes, activation=nn.ReLU) if cls is None else cls
        self.register_buffer("every_y", torch.eye(classes).unsqueeze(1), persistent=False)  # (C, 1, C), a constant

    def log_q_y(self, x):
        """log q(y|x) of every y, in nats. x: (B, X). Returns (B, C)."""
        return apply(self.cls, x).log_softmax(-1)

    def elbo_terms(self, x):
        """-ELBO(x) of each image and its terms, in nats; exact over y, one z^(y) ~ q(z|x, y) for each y.  (Problem 4.2)

        x: (B, X). Returns {'nelbo', 'kl_y', 'kl_z', 'rec'}, each (B,): nelbo = kl_y + kl_z + rec, without bias,
        kl_y = D_KL(q(y|x) || p(y)), kl_z = sum_y q(y|x) D_KL(q(z|x, y) || p(z)),
        rec = sum_y q(y|x) [-log p(x|y, z^(y))].
        """
        log_q = self.log_q_y(x)  # (B, C)
        q, log_p = log_q.exp(), torch.full_like(log_q, -math.log(self.classes))  # (B, C)
        qm, qv = self.posterior(x, self.every_y)  # (C, B, D)
        z = sample_gaussian(qm, qv)  # (C, B, D)
        kl_y = kl_cat(q, log_q, log_p)  # (B,)
        kl_z = (q.T * self.kl(z, qm, qv)).sum(0)  # (B,)
        rec = (q.T * -self.log_likelihood(x, z, self.every_y)).sum(0)  # (B,)
        return {"nelbo": kl_y + kl_z + rec, "kl_y": kl_y, "kl_z": kl_z, "rec": rec}

    def negative_elbo_bound(self, x):
        """elbo_terms averaged over the batch: scalars (nelbo, kl_z, kl_y, rec), in the order of the homework's code."""
        terms = self.elbo_terms(x)
        return terms["nelbo"].mean(), terms["kl_z"].mean(), terms["kl_y"].mean(), terms["rec"].mean()

    def labelled_negative_elbo_bound(self, x, y):
        """-ELBO(x, y) = log C + kl_z + rec of labelled images, averaged over the batch, in nats; one z ~ q(z|x, y).

        x: (B, X); y: (B, C). Returns scalars (nelbo, kl_z, rec): kl_z = D_KL(q(z|x, y) || p(z)), rec = -log p(x|y, z).
        """
        terms = super().elbo_terms(x, y)
        return math.log(self.classes) + terms["nelbo"].mean(), terms["kl"].mean(), terms["rec"].mean()

    def log_weights(self, x, iw):
        """log w_i, w_i = sum_y p(y) p(x, z_i^(y)|y) / q(z_i^(y)|x, y), z_i^(y) ~ q(z|x, y), in nats; E[w_i] = p(x).

        x: (B, X). Returns (log_w, kl, rec), each (M, B): kl = log q(y, z_i^(y)|x) - log p(y, z_i^(y)) and
        rec = -log p(x|y, z_i^(y)), both averaged over y ~ q(y|x), on which w_i does not depend.
        """
        log_w, kl_z, rec = super().log_weights(x, iw, self.every_y)  # (M, C, B)
        log_q = self.log_q_y(x).T  # (C, B)
        q, kl = log_q.exp(), kl_z + log_q + math.log(self.classes)  # (C, B), (M, C, B)
        return log_mean_exp(log_w, dim=1), (q * kl).sum(1), (q * rec).sum(1)

    def loss(self, x, x_labelled, y_labelled):
        """The sum of three terms, each averaged over its images, of those whose weights are not 0.

            gen_weight      (-ELBO(x))      of the images without labels (or of all)
            labelled_weight (-ELBO(x, y))   of the labelled images
            class_weight    (-log q(y|x))   of the labelled images

        x: (B, X); x_labelled: (B', X); y_labelled: (B', C). Returns (scalar in nats, {tag: scalar} for the curves).
        """
        log_q = self.log_q_y(x_labelled)  # (B', C)
        ce = -(y_labelled * log_q).sum(-1).mean()
        accuracy = (log_q.argmax(-1) == y_labelled.argmax(-1)).float().mean()
        loss, terms = self.class_weight * ce, {"class/ce": ce, "class/acc": accuracy}
        if self.gen_weight:
            nelbo, kl_z, kl_y, rec = self.negative_elbo_bound(x)
            loss = loss + self.gen_weight * nelbo
            terms |= {"gen/elbo": -nelbo, "gen/kl_z": kl_z, "gen/kl_y": kl_y, "gen/rec": rec}
        if self.labelled_weight:
            nelbo, kl_z, rec = self.labelled_negative_elbo_bound(x_labelled, y_labelled)
            loss = loss + self.labelled_weight * nelbo
            terms |= {"labelled/elbo": -nelbo, "labelled/kl_z": kl_z, "labelled/rec": rec}
        return loss, terms

    def sample_x(self, n):
        """n draws of a binary image x ~ p(x), each with its own label y ~ p(y). Returns (n, X) in {0, 1}."""
        y = self.every_y[torch.randint(self.classes, (n,), device=self.every_y.device), 0]  # (n, C)
        return super().sample_x(n, y)

    def mean_z(self, x, *y):
        """E[z|x, y], or without y E[z|x] = sum_y q(y|x) E[z|x, y]. x: (B, X); y: (B, C). Returns (B, D)."""
        if y:
            return super().mean_z(x, *y)
        q = self.log_q_y(x).exp().T.unsqueeze(-1)  # (C, B, 1)
        return (q * super().mean_z(x, self.every_y)).sum(0)
