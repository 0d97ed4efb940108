"""The VAE and its bounds, on models whose log p(x) is known and on the real networks."""

import inspect

import pytest
import torch
from conftest import LinearGaussian
from torch import nn
from torch.distributions import Bernoulli, Normal

from codebase.models.fsvae import FSVAE
from codebase.models.gmvae import GMVAE
from codebase.models.ssvae import SSVAE
from codebase.models.vae import VAE
from codebase.nns import MLP
from codebase.utils import kl_normal

N = 200


def test_every_importance_weight_is_p_of_x_at_the_true_posterior():
    """p(x, z) / q(z|x) = p(x) for every z then: the bounds are exact without any averaging."""
    model = LinearGaussian()
    x = model.draw(N)
    for m in (1, 7):
        niwae, kl, rec = model.negative_iwae_bound(x, m)
        torch.testing.assert_close(niwae, -model.log_p(x).mean(), rtol=1e-9, atol=0)
        torch.testing.assert_close(kl + rec, niwae, rtol=1e-9, atol=0)


def test_the_negative_elbo_is_the_kl_to_the_true_posterior_above_minus_log_p():
    """-ELBO(x) = -log p(x) + KL(q(z|x) || p(z|x)), image by image, within four standard errors of 4,000 draws."""
    model = LinearGaussian(shift=0.1, widen=1.5)
    x = model.draw(20)
    exact = -model.log_p(x) + kl_normal(*model.posterior(x), *model.true_posterior(x))
    draws = torch.stack([model.elbo_terms(x)["nelbo"] for _ in range(4000)])
    error = draws.std(0) / 4000**0.5
    assert ((draws.mean(0) - exact).abs() < 4 * error).all()
    assert (error < 0.1).all()


def test_the_terms_of_the_elbo():
    """kl is the closed form between q(z|x) and N(0, I), all dimensions counted; rec is -log p(x|z) at z ~ q."""
    model = VAE(z_dim=5)
    x = torch.randint(0, 2, (8, 784)).float()
    qm, qv = model.posterior(x)
    q, p = Normal(qm, qv.sqrt()), Normal(0.0, 1.0)
    torch.manual_seed(1)
    terms = model.elbo_terms(x)
    torch.manual_seed(1)
    z = q.rsample()
    torch.testing.assert_close(terms["kl"], torch.distributions.kl_divergence(q, p).sum(-1))
    torch.testing.assert_close(terms["rec"], -Bernoulli(logits=model.dec(z)).log_prob(x).sum(-1))
    torch.testing.assert_close(terms["nelbo"], terms["kl"] + terms["rec"])
    torch.manual_seed(1)
    nelbo, kl, rec = model.negative_elbo_bound(x)
    assert [nelbo, kl, rec] == [terms["nelbo"].mean(), terms["kl"].mean(), terms["rec"].mean()]


def test_the_iwae_bound_from_its_definition():
    """-log (1/m) sum_i p(x, z_i) / q(z_i|x), by torch.distributions for the same z_i, and its gradient."""
    model = VAE(z_dim=5).double()
    x = torch.randint(0, 2, (8, 784)).double()
    qm, qv = model.posterior(x)
    torch.manual_seed(1)
    niwae, kl, rec = model.negative_iwae_bound(x, 6)
    torch.manual_seed(1)
    q, p = Normal(qm, qv.sqrt()), Normal(0.0, 1.0)
    z = q.rsample((6,))
    log_likelihood = Bernoulli(logits=model.dec(z)).log_prob(x).sum(-1)  # (M, B)
    log_ratio = q.log_prob(z).sum(-1) - p.log_prob(z).sum(-1)  # (M, B)
    log_w = log_likelihood - log_ratio
    expected = -(log_w - log_w.max()).exp().mean(0).log().mean() - log_w.max()
    torch.testing.assert_close(niwae, expected)
    torch.testing.assert_close(kl, log_ratio.mean())
    torch.testing.assert_close(rec, -log_likelihood.mean())
    weights = [parameter for name, parameter in model.named_parameters() if name.endswith("weight")]
    gradients = torch.autograd.grad(niwae, weights, retain_graph=True)
    for gradient, reference in zip(gradients, torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(gradient, reference)


def test_elbo_below_iwae_below_log_p():
    """ELBO <= L_5 <= L_50 <= log p(x), averaged over images and draws, each gap well above its noise."""
    model = LinearGaussian(shift=0.1, widen=1.5)
    x = model.draw(2000)
    bounds = [-model.negative_iwae_bound(x, m)[0].item() for m in (1, 5, 50)] + [model.log_p(x).mean().item()]
    assert sorted(bounds) == bounds
    assert bounds[1] - bounds[0] > 0.05
    assert 0 < bounds[3] - bounds[2] < 0.05


def test_iwae_with_one_sample_is_the_elbo():
    """The same expectation: closed-form KL or that of the sample, within four standard errors."""
    model = VAE(z_dim=4)
    x = torch.randint(0, 2, (10, 784)).float()
    with torch.no_grad():
        difference = torch.stack(
            [model.negative_iwae_bound(x, 1)[0] - model.negative_elbo_bound(x)[0] for _ in range(500)]
        )
    assert difference.mean().abs() < 4 * difference.std() / 500**0.5


def test_log_p_by_quadrature():
    """With D = 1, log p(x) is an integral over z, here by the trapezoidal rule; IWAE-1000 is within 0.05 nats below."""
    model = VAE(z_dim=1).double()
    with torch.no_grad():
        model.dec.net[4].weight.mul_(4)  # so that z matters
        x = model.sample_x(10)
        z = torch.linspace(-9, 9, 1001, dtype=torch.float64)[:, None, None].expand(-1, 10, 1)
        log_p = torch.logsumexp(model.log_prior(z) + model.log_likelihood(x, z), 0) + torch.log(z[1, 0, 0] - z[0, 0, 0])
        bounds = [-model.negative_iwae_bound(x, m)[0] for m in (1, 1000)]
    assert bounds[0] < bounds[1] < log_p.mean() + 0.01
    assert log_p.mean() - bounds[1] < 0.05


@pytest.mark.parametrize("iw", [1, 5])
def test_every_parameter_gets_a_gradient(iw):
    model = VAE(iw=iw)
    x = torch.randint(0, 2, (20, 784)).float()
    model.loss(x)[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    torch.manual_seed(2)
    loss, summaries = model.loss(x)
    torch.manual_seed(2)
    bound, kl, rec = model.negative_elbo_bound(x) if iw == 1 else model.negative_iwae_bound(x, iw)
    assert loss == bound
    torch.testing.assert_close(summaries, {"gen/elbo": -(kl + rec), "gen/kl_z": kl, "gen/rec": rec})
    if iw == 1:
        torch.testing.assert_close(loss, -summaries["gen/elbo"])
    else:
        assert loss < -summaries["gen/elbo"] - 0.01


def test_one_batch_is_overfitted():
    model = VAE()
    x = torch.zeros(4, 784)
    for i in range(4):
        x[i, 150 * i : 150 * i + 200] = 1
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(500):
        optimizer.zero_grad()
        loss, _ = model.loss(x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 500
    assert sorted(losses[-100:])[50] < 50  # their median


def test_state_dict_has_the_keys_of_the_homeworks_files():
    shapes = {key: tuple(value.shape) for key, value in VAE().state_dict().items()}
    linear = {
        "enc.net.0": (300, 784),
        "enc.net.2": (300, 300),
        "enc.net.4": (20, 300),
        "dec.net.0": (300, 10),
        "dec.net.2": (300, 300),
        "dec.net.4": (784, 300),
    }
    expected = {"z_prior_m": (1,), "z_prior_v": (1,)}
    for name, shape in linear.items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    assert shapes == expected
    assert VAE().z_prior_m.item() == 0
    assert VAE().z_prior_v.item() == 1


def test_binary_samples_follow_the_means():
    """A decoder that ignores z and whose pixels are on with probability 0.9 in one half, 0.2 in the other."""
    model = VAE(z_dim=2)
    p = torch.cat([torch.full((392,), 0.9), torch.full((392,), 0.2)])
    with torch.no_grad():
        model.dec.net[4].weight.zero_()
        model.dec.net[4].bias.copy_(p.logit())
        assert torch.allclose(model.mean_x(torch.randn(3, 2)), p)
        x = model.sample_x(2000)
    assert (x[:, :392].mean() - 0.9).abs() < 0.002
    assert (x[:, 392:].mean() - 0.2).abs() < 0.003
    assert (x.mean(0) - p).abs().max() < 0.05


def test_networks_are_three_layers_with_elu():
    """The encoder's output from its weights, written out: linear, ELU, linear, ELU, linear; mean, softplus + 1e-8."""
    model = VAE(z_dim=3)
    x = torch.rand(5, 784)
    h = x
    for i in (0, 2, 4):
        h = h @ model.enc.net[i].weight.T + model.enc.net[i].bias
        h = torch.where(h > 0, h, h.exp() - 1) if i < 4 else h
    m, v = model.posterior(x)
    torch.testing.assert_close(m, h[:, :3])
    torch.testing.assert_close(v, (1 + h[:, 3:].exp()).log() + 1e-8)


def test_encoder_is_built_before_decoder():
    """So that a seed means the same initial weights as in the homework's code."""
    torch.manual_seed(3)
    first = torch.nn.Linear(784, 300).weight
    torch.manual_seed(3)
    assert VAE().enc.net[0].weight.equal(first)


def test_reconstruction_is_the_mean_image_at_the_posterior_mean():
    model = VAE(z_dim=3)
    x = torch.randint(0, 2, (4, 784)).float()
    torch.testing.assert_close(model.reconstruct(x), model.dec(model.posterior(x)[0]).sigmoid())


def test_samples():
    model = VAE(z_dim=3)
    z = model.sample_z(20_000)
    assert z.shape == (20_000, 3)
    assert z.mean(0).abs().max() < 0.04
    assert (z.var(0) - 1).abs().max() < 0.06
    assert (torch.corrcoef(z.T) - torch.eye(3)).abs().max() < 0.04  # an independent draw for each dimension
    x = model.sample_x(7)
    assert x.shape == (7, 784)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    means = model.mean_x(z[:5])
    assert means.shape == (5, 784)
    assert 0 < means.min() < means.max() < 1
    assert model.reconstruct(x).shape == (7, 784)


# Other networks and shapes


class Rows(nn.Module):
    """A network that takes only rows, (N, n), and returns the shape of an image."""

    def __init__(self, n_in, n_out, shape=(-1,)):
        super().__init__()
        self.linear, self.shape = nn.Linear(n_in, n_out), shape

    def forward(self, x, y=None):
        x = x if y is None else torch.cat([x, y], 1)
        assert x.dim() == 2
        return self.linear(x).reshape(len(x), *self.shape)


@pytest.mark.parametrize("model", [VAE, GMVAE, SSVAE, FSVAE])
def test_networks_that_are_given(model):
    """Rows in, images out, whatever the leading dimensions of samples and labels; as the same MLPs would do."""
    classes = {"classes": 3} if model in (SSVAE, FSVAE) else {}
    n_y, y = (3, [torch.eye(3)[[0, 2, 1, 1]]]) if classes else (0, [])
    enc, dec = Rows(12 + n_y, 8), Rows(4 + n_y, 12, (3, 2, 2))
    given = model(z_dim=4, x_dim=12, enc=enc, dec=dec, **classes)
    x = torch.rand(4, 12).round()
    assert given.enc is enc
    assert given.dec is dec
    assert given.posterior(x, *y)[0].shape == (4, 4)
    assert given.log_likelihood(x, torch.randn(5, 4, 4), *y).shape == (5, 4)
    assert given.reconstruct(x, *y).shape == (4, 12)
    own = y if model is FSVAE else []
    assert given.sample_x(4, *own).shape == (4, 12)
    torch.manual_seed(1)
    terms, weights = given.elbo_terms(x, *own), given.log_weights(x, 5, *own)
    assert all(term.shape == (4,) for term in terms.values())
    assert all(each.shape == (5, 4) for each in weights)
    batch = (x, *own) if model is not SSVAE else (x, x, *y)
    given.loss(*batch)[0].backward()
    assert all(parameter.grad.abs().sum() > 0 for net in (enc, dec) for parameter in net.parameters())
    # MLPs that are given, wrapped, are the homework's.
    mlps = model(z_dim=4, x_dim=12, n_hidden=6, **classes)
    torch.manual_seed(2)
    expected = mlps.log_weights(x, 5, *own)

    class Wrapped(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.inner = net

        def forward(self, *inputs):
            return self.inner(*inputs)

    mlps.enc, mlps.dec = Wrapped(mlps.enc), Wrapped(mlps.dec)
    torch.manual_seed(2)
    torch.testing.assert_close(mlps.log_weights(x, 5, *own), expected)


@pytest.mark.parametrize("model", [VAE, GMVAE, SSVAE, FSVAE])
def test_sizes_that_are_given(model):
    made = model(z_dim=4, x_dim=12, n_hidden=6)
    n_y = 10 if model in (SSVAE, FSVAE) else 0
    assert isinstance(made.enc, MLP)
    assert [tuple(made.enc.net[i].weight.shape) for i in (0, 2, 4)] == [(6, 12 + n_y), (6, 6), (8, 6)]
    assert [tuple(made.dec.net[i].weight.shape) for i in (0, 2, 4)] == [(6, 4 + n_y), (6, 6), (12, 6)]


@pytest.mark.parametrize("model", [GMVAE, SSVAE, FSVAE])
def test_siblings_take_the_same_arguments_in_the_same_order(model):
    """A method of a subclass has the VAE's parameters, in its order; for *y it has y, or nothing where y is summed."""
    for name, method in vars(model).items():
        if callable(method) and hasattr(VAE, name) and name not in ("__init__", "loss"):
            theirs, ours = (list(inspect.signature(m).parameters) for m in (getattr(VAE, name), method))
            assert ours in (theirs, theirs[:-1], [*theirs[:-1], "y"]), name
            assert ours == theirs or theirs[-1] == "y", name


def test_the_vae_passes_labels_on_and_has_no_default_for_them():
    for model in (VAE, GMVAE, SSVAE, FSVAE):
        for name, method in vars(model).items():
            if callable(method) and name != "__init__":
                parameters = inspect.signature(method).parameters.values()
                assert all(p.default is inspect.Parameter.empty for p in parameters), name
