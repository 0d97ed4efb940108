"""The FSVAE: its Gaussian likelihood, its bounds on log p(x|y), and its pictures."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import ConditionalLinearGaussian
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
    torch.testing.assert_close(model.negative_elbo_bound(x, y), ((kl - log_x).mean(), kl.mean(), -log_x.mean()))


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


def test_at_the_true_posterior_all_bounds_are_log_p_of_x_given_y():
    model = ConditionalLinearGaussian()
    x, y = model.draw(100)
    for m in (1, 4):
        torch.testing.assert_close(model.negative_iwae_bound(x, m, y)[0], -model.log_p(x, y).mean(), rtol=1e-9, atol=0)
    wrong = y.roll(1, dims=-1)
    assert (model.log_p(x, wrong) - model.log_p(x, y)).mean() < -1  # so the label matters


def test_elbo_below_iwae_below_log_p_of_x_given_y():
    model = ConditionalLinearGaussian(shift=0.1, widen=1.5)
    x, y = model.draw(2000)
    bounds = [-model.negative_iwae_bound(x, m, y)[0].item() for m in (1, 5, 50)] + [model.log_p(x, y).mean().item()]
    assert sorted(bounds) == bounds
    assert bounds[1] - bounds[0] > 0.05
    assert 0 < bounds[3] - bounds[2] < 0.05
    elbo = torch.stack([-model.negative_elbo_bound(x, y)[0] for _ in range(20)])
    assert abs(elbo.mean().item() - bounds[0]) < 0.1


@pytest.mark.parametrize("iw", [1, 5])
def test_every_parameter_gets_a_gradient(iw):
    model = FSVAE(iw=iw)
    x, y = torch.rand(20, 3072), labels(*range(10), *range(10)).float()
    loss, summaries = model.loss(x, y)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert (model.enc.net[0].weight.grad[:, 3072:].abs().sum(0) > 0).all()  # every label's column
    assert (model.dec.net[0].weight.grad[:, 10:].abs().sum(0) > 0).all()
    assert set(summaries) == {"gen/elbo", "gen/kl_z", "gen/rec"}


def test_one_batch_is_overfitted():
    """Ten images that differ only by label: the model uses the label, and the squared error falls to nearly 0."""
    model = FSVAE()
    x, y = torch.rand(10, 3072), labels(*range(10)).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss, summaries = model.loss(x, y)
        loss.backward()
        optimizer.step()
    assert summaries["gen/rec"] < -713.79 + 0.05 * 5 * (x - x.mean(0)).square().sum(-1).mean()


def test_state_dict_has_the_keys_of_the_homeworks_files():
    shapes = {key: tuple(value.shape) for key, value in FSVAE().state_dict().items()}
    linear = {
        "enc.net.0": (500, 3082),
        "enc.net.2": (500, 500),
        "enc.net.4": (20, 500),
        "dec.net.0": (500, 20),
        "dec.net.2": (500, 500),
        "dec.net.4": (3072, 500),
    }
    expected = {"z_prior_m": (1,), "z_prior_v": (1,)}
    for name, shape in linear.items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    assert shapes == expected


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
