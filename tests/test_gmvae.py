"""The GMVAE: its prior against torch.distributions, its KL, its bounds, its samples."""

import math

import pytest
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
    """kl = log q(z|x) - log p(z) and rec = -log p(x|z), at one and the same z ~ q(z|x)."""
    model = spread_out(GMVAE(z_dim=3, k=7).double())
    x = torch.randint(0, 2, (8, 784)).double()
    qm, qv = model.posterior(x)
    q = Independent(Normal(qm, qv.sqrt()), 1)
    torch.manual_seed(1)
    terms = model.elbo_terms(x)
    torch.manual_seed(1)
    z = q.rsample()
    torch.testing.assert_close(terms["kl"], q.log_prob(z) - oracle(model).log_prob(z))
    torch.testing.assert_close(terms["rec"], -Bernoulli(logits=model.dec(z)).log_prob(x).sum(-1))
    torch.testing.assert_close(terms["nelbo"], terms["kl"] + terms["rec"])


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


def test_with_one_sample_the_iwae_bound_is_the_elbo_exactly():
    """Both have the Monte Carlo KL of the same sample."""
    model = spread_out(GMVAE(z_dim=3, k=7).double())
    x = torch.randint(0, 2, (8, 784)).double()
    torch.manual_seed(1)
    elbo = model.negative_elbo_bound(x)
    torch.manual_seed(1)
    torch.testing.assert_close(model.negative_iwae_bound(x, 1), elbo)


def test_log_p_by_quadrature():
    """With D = 1, log p(x) is an integral over z: the bounds of many samples come close to it, from below."""
    model = spread_out(GMVAE(z_dim=1, k=5).double(), far=0.7)
    with torch.no_grad():
        x = model.sample_x(8)
        z = torch.linspace(-10, 10, 1001, dtype=torch.float64)[:, None, None].expand(-1, 8, 1)
        log_p = torch.logsumexp(model.log_prior(z) + model.log_likelihood(x, z), 0) + math.log(20 / 1000)
        bounds = [-model.negative_iwae_bound(x, m)[0] for m in (1, 10, 5000)]
    assert bounds[0] < bounds[1] < bounds[2] < log_p.mean() + 0.02
    assert log_p.mean() - bounds[2] < 0.1


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


@pytest.mark.parametrize("iw", [1, 5])
def test_every_parameter_gets_a_gradient(iw):
    model = GMVAE(k=20, iw=iw)
    loss, summaries = model.loss(torch.randint(0, 2, (20, 784)).float())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert (model.z_pre.grad.abs().sum(-1) > 0).all()  # means and variances of every component
    assert set(summaries) == {"gen/elbo", "gen/kl_z", "gen/rec"}


def test_state_dict_has_the_keys_of_the_homeworks_files():
    state = GMVAE().state_dict()
    assert state["z_pre"].shape == (1, 1000, 10)
    assert state["pi"].equal(torch.full((500,), 1 / 500))
    networks = {f"{net}.net.{i}.{part}" for net in ("enc", "dec") for i in (0, 2, 4) for part in ("weight", "bias")}
    assert set(state) == {"z_pre", "pi"} | networks
    assert "pi" not in dict(GMVAE().named_parameters())


def test_initial_prior():
    """z_pre ~ N(0, 1 / (k D)), fails once in 10,000 seeds."""
    z_pre = GMVAE(z_dim=10, k=500).z_pre.detach().flatten()
    assert scipy.stats.kstest(z_pre.numpy(), scipy.stats.norm(0, 1 / math.sqrt(5000)).cdf).pvalue > 1e-4
