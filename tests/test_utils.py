"""The mathematics against torch.distributions, in float64, over batch shapes."""

import math

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from codebase import utils

SHAPES = [(), (3,), (2, 3)]
D = 4


def gaussian(*shape):
    return torch.randn(*shape, dtype=torch.float64), torch.rand(*shape, dtype=torch.float64) * 2 + 0.05


def oracle(m, v):
    return Independent(Normal(m, v.sqrt()), 1)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


PRIOR = torch.zeros(1, dtype=torch.float64), torch.full((1,), 2.0, dtype=torch.float64)  # all dimensions count


@pytest.mark.parametrize("shape", SHAPES)
def test_log_normal_and_kl_normal(shape):
    x = torch.randn(*shape, D, dtype=torch.float64)
    m, v = gaussian(*shape, D)
    for pm, pv in (gaussian(*shape, D), PRIOR):
        p = oracle(pm.expand(*shape, D), pv.expand(*shape, D))
        close(utils.log_normal(x, pm, pv), p.log_prob(x))
        close(utils.kl_normal(m, v, pm, pv), kl_divergence(oracle(m, v), p))


@pytest.mark.parametrize("samples", [(), (5,)])
@pytest.mark.parametrize("shape", SHAPES)
def test_log_normal_mixture(shape, samples):
    m, v = gaussian(*shape, 7, D)
    z = torch.randn(*samples, *shape, D, dtype=torch.float64)
    uniform = Categorical(logits=torch.zeros(*shape, 7, dtype=torch.float64))
    close(utils.log_normal_mixture(z, m, v), MixtureSameFamily(uniform, oracle(m, v)).log_prob(z))
    close(utils.log_normal_components(z, m, v), utils.log_normal(z.unsqueeze(-2), m, v))


def mixture(smallest, largest, far, rows=300, k=500, d=10):
    """z and components: |z| up to 10, |m| up to `far`, variances log-uniform. Half of the z are at a component."""
    low, high = math.log(smallest), math.log(largest)
    m = far * (2 * torch.rand(k, d) - 1)
    v = (low + (high - low) * torch.rand(k, d)).exp()
    z = 10 * (2 * torch.rand(rows, d) - 1)
    near = torch.randint(k, (rows // 2,))
    z[: rows // 2] = utils.sample_gaussian(m[near], v[near])
    return z, m, v


def mixture_in_float64(z, m, v):
    """From the definition, by differences."""
    components = oracle(m.double(), v.double()).log_prob(z.double().unsqueeze(-2))  # (rows, K)
    return torch.logsumexp(components, -1) - math.log(len(m))


def test_log_normal_mixture_in_float32_as_training_meets_it():
    """Variances 1e-3 to 10, |z| and |m| up to 10, 500 components: within 1e-3 nats in every row."""
    z, m, v = mixture(1e-3, 10, far=10)
    density = utils.log_normal_mixture(z, m, v)
    assert density.dtype == torch.float32
    assert (density - mixture_in_float64(z, m, v)).abs().max() < 1e-3


def test_log_normal_mixture_in_float32_at_extremes():
    """Variances 1e-6 to 1e3, means up to 1,000 apart: finite and within a relative 1e-3, gradients too."""
    z, m, v = (t.requires_grad_() for t in mixture(1e-6, 1e3, far=500))
    density = utils.log_normal_mixture(z, m, v)
    exact = mixture_in_float64(z, m, v)
    assert ((density - exact) / exact).abs().max() < 1e-3
    gradients = torch.autograd.grad(density.sum(), (z, m, v))
    for gradient, reference in zip(gradients, torch.autograd.grad(exact.sum(), (z, m, v)), strict=True):
        assert gradient.isfinite().all()
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-3 * reference.abs().max().item())


@pytest.mark.parametrize("shape", SHAPES)
def test_kl_cat(shape):
    log_q, log_p = torch.randn(2, *shape, 10, dtype=torch.float64).log_softmax(-1)
    close(utils.kl_cat(log_q.exp(), log_q, log_p), kl_divergence(Categorical(logits=log_q), Categorical(logits=log_p)))


@pytest.mark.parametrize("shape", SHAPES)
def test_log_bernoulli_with_logits(shape):
    """Also of images broadcast over samples, and of huge logits."""
    logits, x = 5 * torch.randn(6, *shape, D, dtype=torch.float64), torch.randint(0, 2, (*shape, D)).double()
    close(utils.log_bernoulli_with_logits(x, logits), Independent(Bernoulli(logits=logits), 1).log_prob(x))
    assert utils.log_bernoulli_with_logits(torch.zeros(1), torch.full((1,), 1e4)).item() == -1e4
    assert utils.log_bernoulli_with_logits(torch.ones(1), torch.full((1,), 1e30)).item() == 0


def test_log_bernoulli_in_float32_is_as_exact_as_torch_and_has_its_gradient():
    """For logits of any size, 0 among them: 1e-6 nats a pixel, and no bias that would add up over an image."""
    logits = torch.cat([torch.linspace(-30, 30, 6001), torch.tensor([0.0, -1e-30, 1e30, -1e30])]).unsqueeze(-1)
    for value in (0.0, 0.3, 1.0):
        x = torch.full_like(logits, value)
        ours = logits.clone().requires_grad_()
        exact = logits.double().requires_grad_()
        log_p = utils.log_bernoulli_with_logits(x, ours)
        oracle = -F.binary_cross_entropy_with_logits(exact, x.double(), reduction="none").squeeze(-1)
        torch.testing.assert_close(log_p.double(), oracle, rtol=3e-7, atol=1e-6)
        assert (log_p.double() - oracle)[:6001].mean().abs() < 1e-7
        gradients = (torch.autograd.grad(each.sum(), at)[0] for each, at in ((log_p, ours), (oracle, exact)))
        torch.testing.assert_close(*(gradient.float() for gradient in gradients), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_log_mean_exp(dim):
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    close(utils.log_mean_exp(x, dim), x.exp().mean(dim).log())
    close(utils.log_mean_exp(x + 1e4, dim), x.exp().mean(dim).log() + 1e4)  # exp(1e4) overflows
    close(utils.log_mean_exp(x - 1e4, dim), x.exp().mean(dim).log() - 1e4)


def test_duplicate_puts_the_repetition_first():
    x = torch.randn(3, 2)
    y = utils.duplicate(x, 4)
    assert y.shape == (12, 2)
    for r in range(4):
        for b in range(3):
            assert y[r * 3 + b].equal(x[b])
    assert y.reshape(4, 3, 2).equal(x.expand(4, 3, 2))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_gaussian_parameters(dim):
    h = torch.randn(4, 6, 8, dtype=torch.float64)
    m, v = utils.gaussian_parameters(h, dim)
    n = h.shape[dim] // 2
    assert m.equal(h.narrow(dim, 0, n))
    close(v, h.narrow(dim, n, n).exp().log1p() + 1e-8)
    assert utils.gaussian_parameters(torch.tensor([0.0, -200.0]))[1].item() > 0


def test_sample_gaussian_is_gaussian_with_that_mean_and_variance():
    """Kolmogorov-Smirnov on 100,000 draws. It passes with this fixed seed; with others it would fail once in 1,000."""
    m, v = torch.tensor([-1.0, 2.0], dtype=torch.float64), torch.tensor([0.25, 9.0], dtype=torch.float64)
    z = utils.sample_gaussian(m.expand(100_000, 2), v)
    for d in range(2):
        cdf = scipy.stats.norm(m[d].item(), math.sqrt(v[d].item())).cdf
        assert scipy.stats.kstest(z[:, d].numpy(), cdf).pvalue > 1e-3
    assert abs(torch.corrcoef(z.T)[0, 1]) < 0.015  # an independent draw for each dimension
    assert utils.sample_gaussian(torch.zeros(1), torch.ones(1000)).unique().numel() > 900


def test_sample_gaussian_is_reparameterised():
    """dz/dm = 1 and dz/dv = eps / (2 sqrt(v)), with eps = (z - m) / sqrt(v)."""
    m = torch.randn(5, dtype=torch.float64, requires_grad=True)
    v = (torch.rand(5, dtype=torch.float64) + 0.5).requires_grad_()
    z = utils.sample_gaussian(m, v)
    z.sum().backward()
    close(m.grad, torch.ones_like(m))
    close(v.grad, ((z - m) / (2 * v)).detach())


@pytest.mark.parametrize(
    "density",
    [
        lambda x, m, v: utils.log_normal(x, m, v),
        lambda x, m, v: utils.log_normal_mixture(x, m.expand(3, 2) * torch.arange(3.0)[:, None], v.expand(3, 2)),
    ],
)
def test_densities_integrate_to_one(density):
    """In two dimensions, by the trapezoidal rule on [-15, 15]^2."""
    axis = torch.linspace(-15, 15, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    m, v = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([0.5, 2.0], dtype=torch.float64)
    mass = density(grid, m, v).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(mass.item() - 1) < 1e-8
