"""The mathematics of the homework: tensors to tensors, on their own device; no modules or files.

Every function broadcasts over leading dimensions and sums over the last one: one number per image, and per sample.
All densities are in nats; `v` is always a variance.

Dimension letters: B images, X pixels, D latent dimensions, K mixture components, M importance samples, C classes.
"""

import math

import torch
import torch.nn.functional as F

LOG_2PI = math.log(2 * math.pi)


def sample_gaussian(m, v):
    """Draw z ~ N(m, diag(v)) by the reparameterisation z = m + sqrt(v) * eps, eps ~ N(0, I).  (Problem 1.1)

    m, v: (..., D), broadcast against each other; v >= 0. Returns (..., D), differentiable in m and, for v > 0, in v.
    """
    eps = torch.randn(torch.broadcast_shapes(m.shape, v.shape), dtype=m.dtype, device=m.device)
    return m + v.sqrt() * eps


def log_normal(x, m, v):
    """log N(x; m, diag(v)) in nats, exact.  (Problem 2.1)

    x, m, v: (..., D), broadcast against each other; v > 0. Returns (...).
    """
    return -0.5 * (LOG_2PI + v.log() + (x - m).square() / v).sum(-1)


def log_normal_mixture(z, m, v):
    """log (1/K) sum_k N(z; m_k, diag(v_k)), the mixture with uniform weights, in nats, exact.  (Problem 2.1)

    z: (..., D); m, v: (..., K, D), whose leading dimensions broadcast against those of z; v > 0. Returns (...).
    """
    return log_mean_exp(log_normal_components(z, m, v), dim=-1).to(z.dtype)  # (..., K) -> (...)


def log_normal_components(z, m, v):
    """log N(z; m_k, diag(v_k)) of every component k: log_normal(z.unsqueeze(-2), m, v), but faster, and in float64.

    z: (..., D); m, v: (..., K, D). Returns (..., K). With the square expanded, all pairs are one matrix product:
    log N(z; m, v) = sum_d -z^2 / 2v + z m / v - (m^2 / v + log 2 pi v) / 2. The terms cancel: for parameters that occur
    in training, errors reach 1e-2 nats in float32, and 4e-5 in float64, which Apple's GPUs do not have.
    """
    if z.device.type == "mps":
        return log_normal(z.unsqueeze(-2), m, v)  # the definition
    z, m, v = z.double(), m.double(), v.double()
    weights = torch.cat([-0.5 / v, m / v], -1)  # (..., K, 2D)
    constant = -0.5 * (m.square() / v + v.log() + LOG_2PI).sum(-1)  # (..., K)
    features = torch.cat([z.square(), z], -1).unsqueeze(-2)  # (..., 1, 2D)
    return (features @ weights.mT).squeeze(-2) + constant


def kl_normal(qm, qv, pm, pv):
    """KL(N(qm, diag(qv)) || N(pm, diag(pv))) in nats, closed form, exact.  (Problem 1.2)

    All (..., D), broadcast against each other; qv, pv > 0. Returns (...), not negative, up to rounding.
    """
    return 0.5 * (pv.log() - qv.log() + (qv + (qm - pm).square()) / pv - 1).sum(-1)


def kl_cat(q, log_q, log_p):
    """KL(Cat(q) || Cat(p)) = sum_c q_c (log q_c - log p_c) in nats, exact.  (Problem 4.2)

    q, log_q, log_p: (..., C), broadcast against each other; log_q from log_softmax, q = exp(log_q). Returns (...).
    """
    return (q * (log_q - log_p)).sum(-1)


def log_mean_exp(x, dim):
    """log (1/n) sum_i exp(x_i) over dimension `dim` of size n, without overflow.  (Problems 2.1 and 3.2)"""
    return torch.logsumexp(x, dim) - math.log(x.shape[dim])


def duplicate(x, rep):
    """Repeat a batch `rep` times: row r * B + b of the result is row b of x.  (Problem 3.2)

    x: (B, ...). Returns (rep * B, ...), to be reshaped to (rep, B, ...): the repetition is the leading dimension.
    """
    return x.repeat(rep, *[1] * (x.dim() - 1))


def gaussian_parameters(h, dim=-1):
    """Mean and variance of a diagonal Gaussian from a network's output: first half of `dim`, softplus of the second.

    h: an even size 2D along `dim`. Returns (m, v), each of size D there; v = softplus(.) + 1e-8 > 0.
    """
    m, h_v = h.chunk(2, dim)
    return m, F.softplus(h_v) + 1e-8


def log_bernoulli_with_logits(x, logits):
    """log Bern(x; p) = sum_d x_d log p_d + (1 - x_d) log(1 - p_d), p = sigmoid(logits), in nats, exact.  (Problem 1.2)

    Written as x logits - log(1 + exp(logits)), which is finite for finite logits, however large. x: (..., X) in {0, 1},
    or a grey value, for the expectation over its binarisation; logits: (..., X). They broadcast. Returns (...).
    """
    return (x * logits - F.softplus(logits)).sum(-1)


def scaled(x):
    """uint8 values as float32 in [0, 1]; any other tensor as it is."""
    return x.float() / 255 if x.dtype == torch.uint8 else x
