"""The FSVAE: its Gaussian likelihood, its bounds on log p(x|y), and its pictures."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from codebase.models.fsvae import FSVAE
from codebase.models.vae import VAE


def labels(*y):
    return F.one_hot(torch.tensor(y), 10)


def oracle(model, x, y, eps):
    """KL(q || p), log p(x|y, z), log q(z|x, y) - log p(z), from concatenated inputs and torch.distributions."""
    m, h = model.enc.net(torch.cat([x, y], 1)).chunk(2, 1)
    q, p = Normal(m, ((1 + h.exp()).log() + 1e-8).sqrt()), Normal(torch.zeros_like(m), 1)
    z = q.mean + q.stddev * eps  # (..., B, D)
    mu = model.dec.net(torch.cat([z, y.expand(*z.shape[:-1], -1)], -1))
    log_x = Normal(mu, math.sqrt(0.1)).log_prob(x).sum(-1)
    return kl_divergence(q, p).sum(-1), log_x, (q.log_prob(z) - p.log_prob(z)).sum(-1)


def test_terms_of_the_elbo():
    model = FSVAE().double()
    x, y = torch.rand(6, 3072).double(), labels(3, 1, 4, 1, 5, 9).double()
    torch.manual_seed(1)
    terms = model.elbo_terms(x, y)
    torch.manual_seed(1)
    kl, log_x, _ = oracle(model, x, y, torch.randn(6, 10, dtype=torch.float64))
    torch.testing.assert_close(terms, {"nelbo": kl - log_x, "kl": kl, "rec": -log_x})
    torch.manual_seed(1)
    bound, expected = model.negative_elbo_bound(x, y), ((kl - log_x).mean(), kl.mean(), -log_x.mean())
    torch.testing.assert_close(bound, expected)
    gradients = (torch.autograd.grad(loss, list(model.parameters())) for loss in (bound[0], expected[0]))
    torch.testing.assert_close(*gradients)


def test_rec_is_a_constant_and_five_times_the_squared_error():
    """-713.79 + 5 |x - mu|^2 nats: negative for a good model. All 3072 dimensions have their constant, with 2 pi."""
    model = FSVAE()
    x, z, y = torch.rand(4, 3072), torch.randn(4, 10), labels(0, 1, 2, 3).float()
    mu = model.dec(z, y)
    expected = -713.79 + 5 * (x - mu).square().sum(-1)
    torch.testing.assert_close(-model.log_likelihood(x, z, y), expected, rtol=0, atol=0.01)
    with torch.no_grad():
        torch.testing.assert_close(-model.log_likelihood(mu, z, y), torch.full((4,), -713.79), rtol=0, atol=0.01)


def test_the_iwae_bound_from_its_definition():
    model = FSVAE().double()
    x, y = torch.rand(6, 3072).double(), labels(3, 1, 4, 1, 5, 9).double()
    torch.manual_seed(1)
    niwae, kl, rec = model.negative_iwae_bound(x, 5, y)
    torch.manual_seed(1)
    _, log_x, log_ratio = oracle(model, x, y, torch.randn(5, 6, 10, dtype=torch.float64))
    torch.testing.assert_close(niwae, -(torch.logsumexp(log_x - log_ratio, 0) - math.log(5)).mean())
    torch.testing.assert_close((kl, rec), (log_ratio.mean(), -log_x.mean()))


def test_pictures_are_the_clipped_mean():
    model = FSVAE()
    with torch.no_grad():
        model.dec.net[4].bias.copy_(torch.linspace(-1, 2, 3072))
        z, y = torch.randn(4, 10), labels(0, 1, 2, 3).float()
        x = model.mean_x(z, y)
        torch.testing.assert_close(x, model.dec.net(torch.cat([z, y], 1)).clip(0, 1))
        assert (x.min(), x.max()) == (0, 1)
        torch.testing.assert_close(model.reconstruct(x, y), model.mean_x(model.posterior(x, y)[0], y))
        samples = model.sample_x(4, y)
        assert samples.shape == (4, 3072)
        assert 0 <= samples.min() < samples.max() <= 1


def test_labels_at_a_network_without_them_are_an_error():
    with pytest.raises(RuntimeError):
        VAE().elbo_terms(torch.rand(2, 784), labels(0, 1).float())
