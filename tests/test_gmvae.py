"""The GMVAE: its prior against torch.distributions, its KL, its bounds, its samples."""

import math

import scipy.stats
import torch
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal

from codebase.models.gmvae import GMVAE


def spread_out(model, far=3):
    """The model with a prior whose components are apart (standard deviation `far`) and of different widths."""
    with torch.no_grad():
        k = model.z_pre.shape[1] // 2
        model.z_pre[0, :k] = far * torch.randn_like(model.z_pre[0, :k])
        model.z_pre[0, k:] = torch.randn_like(model.z_pre[0, k:]) - 2
    return model


def oracle(model):
    """p(z) with torch.distributions, from the parameter itself: rows of means, rows of variances before softplus."""
    k = model.z_pre.shape[1] // 2
    m, v = model.z_pre[0, :k], (1 + model.z_pre[0, k:].exp()).log() + 1e-8
    return MixtureSameFamily(Categorical(logits=torch.zeros(k, dtype=m.dtype)), Independent(Normal(m, v.sqrt()), 1))


def test_log_prior():
    model = spread_out(GMVAE(z_dim=3, k=7).double())
    z = 3 * torch.randn(4, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(model.log_prior(z), oracle(model).log_prob(z))


def test_terms_of_the_elbo():
    """kl = log q(z|x) - log p(z) and rec = -log p(x|z), at one and the same z ~ q(z|x); and their gradients."""
    model = spread_out(GMVAE(z_dim=3, k=7).double())
    x = torch.randint(0, 2, (8, 784)).double()
    qm, qv = model.posterior(x)
    q = Independent(Normal(qm, qv.sqrt()), 1)
    torch.manual_seed(1)
    terms = model.elbo_terms(x)
    torch.manual_seed(1)
    z = q.rsample()
    kl = q.log_prob(z) - oracle(model).log_prob(z)
    rec = -Bernoulli(logits=model.dec(z)).log_prob(x).sum(-1)
    torch.testing.assert_close(terms, {"nelbo": kl + rec, "kl": kl, "rec": rec})
    gradients = (torch.autograd.grad(loss.mean(), list(model.parameters())) for loss in (terms["nelbo"], kl + rec))
    torch.testing.assert_close(*gradients)


def test_the_iwae_bound_from_its_definition():
    model = spread_out(GMVAE(z_dim=3, k=7).double())
    x = torch.randint(0, 2, (8, 784)).double()
    qm, qv = model.posterior(x)
    q = Independent(Normal(qm, qv.sqrt()), 1)
    torch.manual_seed(1)
    niwae, kl, rec = model.negative_iwae_bound(x, 6)
    torch.manual_seed(1)
    z = q.rsample((6,))
    log_w = oracle(model).log_prob(z) + Bernoulli(logits=model.dec(z)).log_prob(x).sum(-1) - q.log_prob(z)  # (M, B)
    torch.testing.assert_close(niwae, -(torch.logsumexp(log_w, 0) - math.log(6)).mean())
    torch.testing.assert_close(kl + rec, -log_w.mean())


def test_samples_come_from_the_mixture():
    """In one dimension, against the mixture's distribution function; N(0, I) would fail by far."""
    model = spread_out(GMVAE(z_dim=1, k=6))
    with torch.no_grad():
        z = model.sample_z(20_000)
        m, v = model.prior()
        assert set(model.sample_x(3).unique().tolist()) == {0.0, 1.0}
    assert z.shape == (20_000, 1)

    def cdf(points):
        return scipy.stats.norm.cdf(points[:, None], m[:, 0].detach().numpy(), v[:, 0].detach().sqrt().numpy()).mean(1)

    assert scipy.stats.kstest(z[:, 0].numpy(), cdf).pvalue > 1e-3


def test_initial_prior():
    """z_pre ~ N(0, 1 / (k D)), fails once in 10,000 seeds."""
    model = GMVAE(z_dim=10, k=500)
    z_pre = model.z_pre.detach().flatten()
    assert model.pi.equal(torch.full((500,), 1 / 500))
    assert "pi" not in dict(model.named_parameters())
    assert scipy.stats.kstest(z_pre.numpy(), scipy.stats.norm(0, 1 / math.sqrt(5000)).cdf).pvalue > 1e-4
