"""Bounds with their standard errors over images. They do not change the random numbers of the training.

A split is a tuple of tensors with a row for each image, as the model's methods take them: (x,), or (x, y) with labels.
If x is uint8, it is scaled to [0, 1] chunk by chunk, so that a large test set needs little memory.
Dimension letters: N images of a split, B of a chunk, D latent dimensions, M importance samples, C classes.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from codebase import processes
from codebase.errors import InputError, NonFiniteError
from codebase.precision import float32_products
from codebase.random_state import kept_random_state
from codebase.utils import log_mean_exp, scaled

MAX_IMAGES = 100  # most images in a chunk, if each image has several samples
MAX_ROWS = 2000  # images in a chunk, or images x samples x labels if each has several samples: limits the memory
BAR_AFTER = 3  # seconds before an evaluation shows its progress
ELBO_SAMPLES = 10  # draws of z averaged for each image; then the spread between images dominates the error


@dataclass(frozen=True)
class Estimate:
    """A mean over n images and its standard error, nan if it is not known. values: (n,), the images' own, if known."""

    mean: float
    se: float
    n: int
    values: torch.Tensor = field(default=None, repr=False, compare=False)

    def __format__(self, digits):
        error = "" if math.isnan(self.se) else f" ± {self.se:{digits or '.2f'}}"
        return f"{self.mean:{digits or '.2f'}}{error}"

    def __str__(self):
        return format(self)

    def record(self):
        """As a dict for JSON, which has no nan: null."""
        return {"mean": self.mean, "se": None if math.isnan(self.se) else self.se, "n": self.n}


def over_images(values):
    """The Estimate from one number per image, (n,): its se is their standard deviation / sqrt(n), nan for n = 1."""
    if values.dim() != 1:
        raise InputError(f"a model's bounds must be one number for each image; they have shape {tuple(values.shape)}.")
    values, n = values.cpu().double(), len(values)  # Apple's GPUs have no float64
    bad = n - int(values.isfinite().sum())
    if bad:
        raise NonFiniteError(f"a bound is not finite for {bad:,} of {n:,} images: these weights overflow float32.")
    return Estimate(values.mean().item(), values.std().item() / math.sqrt(n) if n > 1 else math.nan, n, values)


@contextmanager
def evaluating(model):
    """In the block: no gradients, evaluation mode, float32 products, random seed 0. All is undone after it."""
    was_training, device = model.training, next(model.parameters()).device
    with kept_random_state(), torch.no_grad(), float32_products(device):
        torch.manual_seed(0)
        model.eval()
        try:
            yield
        finally:
            model.train(was_training)


def rows_at_once(x):
    """MAX_ROWS for x: (N, X) of up to 784 pixels, fewer for more."""
    return MAX_ROWS * 784 // max(784, x.shape[1])


def each_chunk(model, function, split, noise=False, most=MAX_ROWS):
    """function(*chunk) for each chunk of at most `most` images, concatenated: {name: tensor}, one row per image.

    function: x, *y as floats -> {name: tensor}, one row per image, called inside `evaluating`. noise: see dequantised.
    The random seed of chunk i is i, so the results do not depend on how many processes share the chunks.
    """
    labels = max(10, getattr(model, "labels_per_image", 1))  # up to 10 need no smaller chunks
    size = max(1, min(most, rows_at_once(split[0]) * 10 // labels))
    parts, own, hidden = list(zip(*(t.split(size) for t in split), strict=True)), [], processes.launched() > 0
    bar = tqdm(total=len(split[0]), desc="evaluating", unit="image", delay=BAR_AFTER, leave=False, disable=hidden)
    with bar, evaluating(model):
        for i in range(processes.rank(), len(parts), processes.size()):
            torch.manual_seed(i)
            x, *y = map(scaled, parts[i])
            results = function(dequantised(x) if noise else x, *y)
            own.append({name: values.cpu() for name, values in results.items()})
            bar.update(len(x) * processes.size())  # the other processes do equally many at the same time
    every = processes.gather(own)
    return {name: torch.cat([each[name] for each in every]).to(split[0].device) for name in every[0]}


def elbo(model, split, noise=False, samples=None):
    """The negative ELBO and its terms on a split, in nats: {'nelbo', 'kl', 'rec': Estimate}. Unbiased.

    noise: of the images with noise; see dequantised. samples: draws of z for each image; None: ELBO_SAMPLES.
    """
    samples = samples or ELBO_SAMPLES

    def terms(x, *y):
        draws = [model.elbo_terms(x, *y) for _ in range(samples)]
        return {name: sum(draw[name] for draw in draws) / samples for name in draws[0]}

    return {name: over_images(values) for name, values in each_chunk(model, terms, split, noise).items()}


def iwae(model, split, ms=(1, 10, 100, 1000), noise=False):
    """The negative IWAE bounds -L_m on a split, in nats, unbiased, and how far to trust them.  (Problem 3.3)

    Returns {m: Estimate}, and an Estimate of the relative effective sample size of an image's M = max(ms) importance
    weights, (sum w)^2 / (M sum w^2): from 1/M, where one sample outweighs all others, to 1, where q(z|x) is the true
    posterior and every L_m is log p(x). L_m is averaged over M // m disjoint groups of the M samples: if each m divides
    the next one, a larger m never has a looser bound. noise: of the images with noise; see dequantised.
    """
    largest, labels = max(ms), model.labels_per_image

    def bounds(x, *y):
        log_w = x.new_empty(largest, len(x))  # (M, B), filled in place: small pieces would fragment the heap
        for part in log_w.split(max(1, rows_at_once(x) // (len(x) * labels))):
            part.copy_(model.log_weights(x, len(part), *y)[0])
        of_m = {}  # {m: (B,)}
        for m in ms:
            groups = log_w[: largest // m * m].unflatten(0, (-1, m))  # (M // m, m, B)
            of_m[m] = -log_mean_exp(groups, dim=1).mean(0)
        ess = (2 * torch.logsumexp(log_w, 0) - torch.logsumexp(2 * log_w, 0)).exp() / largest  # (B,)
        return of_m | {"ess": ess}

    of_images = each_chunk(model, bounds, split, noise, MAX_IMAGES)
    ess = over_images(of_images.pop("ess"))
    return {m: over_images(values) for m, values in of_images.items()}, ess


def iwae_gap(ess, m):
    """About log p(x) - L_m in nats, as an Estimate: half the relative variance of (1/m) sum_i w_i.  (writeup.md, 3.3)

    ess: what `iwae` returns with the largest m > 1. Too small where few samples are effective: it is never above 1/2.
    """
    return over_images((1 / ess.values - 1) / (2 * (m - 1)))


def dequantised(x):
    """8-bit values k / 255 with noise: x + u, u uniform on the interval of length 1 / 255 around 0."""
    return x + (torch.rand_like(x) - 0.5) / 255


def bits_per_dimension(nats, dimensions, is_density):
    """An Estimate of a bound on -log p(x), in nats, as bits per dimension, for images of X = dimensions 8-bit values.

    A density p must be that of the images with noise, x + u: its integral over the cube of side 1 / 255 around x is
    P(x), so by Jensen's inequality -log P(x) <= E_u[-log p(x + u)] + X log 255 (Theis et al. 2016, section 3.1).
    """
    per_bit = dimensions * math.log(2)
    return Estimate(nats.mean / per_bit + (math.log2(255) if is_density else 0), nats.se / per_bit, nats.n)


def classify(model, x):
    """log q(y|x) of images x (N, X). Returns (N, C)."""
    return each_chunk(model, lambda x: {"log_q": model.log_q_y(x)}, (x,))["log_q"]


def accuracy(log_q, y):
    """The percentage of images whose most probable label is the true one, and the confusion matrix.

    log_q: (N, C); y: (N,), the true labels. Returns an Estimate with the binomial standard error, and the counts
    (C, C): row = true class, column = predicted class.
    """
    n, classes = log_q.shape
    counts = torch.bincount(y * classes + log_q.argmax(-1), minlength=classes**2).reshape(classes, classes)
    p = counts.trace().item() / n
    return Estimate(100 * p, 100 * math.sqrt(p * (1 - p) / n), n), counts


def mistakes(log_q, y):
    """For each pair of classes, the index of the image of the first that is most confidently taken for the second.

    log_q, y: as in `accuracy`. Returns (C, C), row = true class, column = predicted class; -1: none, or the diagonal.
    """
    confidence, predicted = log_q.cpu().max(-1)
    y, worst = y.cpu(), torch.full((log_q.shape[1],) * 2, -1)
    for i in confidence.argsort().tolist():  # ascending: the most confident one is written last
        worst[y[i], predicted[i]] = i
    return worst.fill_diagonal_(-1)


def posterior_means(model, split):
    """E[z|x] under q(z|x), for each image of a split. Returns (N, D)."""
    return each_chunk(model, lambda *xy: {"z": model.mean_z(*xy)}, split)["z"]


def latent_units(model, split):
    """How many dimensions of z are used on a split: {'active', 'units'}.

    A unit is active if its posterior mean varies with the image: Var_x(E[z_u|x]) > 0.01 (Burda et al. 2016, section 5).
    """
    means = posterior_means(model, split)  # (N, D)
    return {"active": int((means.var(0, correction=0) > 0.01).sum()), "units": means.shape[1]}
