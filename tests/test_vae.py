"""The VAE and its bounds, on models whose log p(x) is known and on the real networks; what its siblings share."""

import pytest
import torch
from conftest import ConditionalLinearGaussian, LabelledLinearGaussian, LinearGaussian
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from codebase.models.fsvae import FSVAE
from codebase.models.gmvae import GMVAE
from codebase.models.ssvae import SSVAE
from codebase.models.vae import VAE
from codebase.utils import kl_normal

KNOWN = pytest.mark.parametrize("of_class", [LinearGaussian, LabelledLinearGaussian, ConditionalLinearGaussian])
MODELS = pytest.mark.parametrize("model", [VAE, GMVAE, SSVAE, FSVAE])


def known(of_class, n, **shifted):
    """A model whose log p is known, and n of its images, with labels if it conditions on them: (model, x, *y)."""
    model = of_class(**shifted)
    drawn = model.draw(n)
    return model, *(drawn if isinstance(drawn, tuple) else (drawn,))


@KNOWN
def test_at_the_true_posterior_the_iwae_bound_is_log_p_exactly(of_class):
    """p(x, z) / q(z|x) = p(x) for every z then, and the sum over y is exact, whatever the classifier says."""
    model, x, *y = known(of_class, 100)
    for m in (1, 4):
        niwae, kl, rec = model.negative_iwae_bound(x, m, *y)
        torch.testing.assert_close(niwae, -model.log_p(x, *y).mean(), rtol=1e-9, atol=0)
        if of_class is not LabelledLinearGaussian:
            torch.testing.assert_close(kl + rec, niwae, rtol=1e-9, atol=0)


@KNOWN
def test_elbo_below_iwae_below_log_p(of_class):
    """ELBO <= L_1 <= L_5 <= L_50 <= log p, averaged over images, each gap well above its noise; L_1 = ELBO given y."""
    model, x, *y = known(of_class, 2000, shift=0.1, widen=1.5)
    elbo = -torch.stack([model.negative_elbo_bound(x, *y)[0] for _ in range(5)]).mean()
    bounds = [-model.negative_iwae_bound(x, m, *y)[0] for m in (1, 5, 50)] + [model.log_p(x, *y).mean()]
    assert sorted(bounds) == bounds
    assert bounds[1] - bounds[0] > 0.05
    assert 0 < bounds[3] - bounds[2] < 0.05
    assert bounds[0] - elbo > 0.05 if of_class is LabelledLinearGaussian else abs(bounds[0] - elbo) < 0.1


def test_the_negative_elbo_is_the_kl_to_the_true_posterior_above_minus_log_p():
    """-ELBO(x) = -log p(x) + KL(q(z|x) || p(z|x)), image by image, within four standard errors of 4,000 draws."""
    model = LinearGaussian(shift=0.1, widen=1.5)
    x = model.draw(20)
    exact = -model.log_p(x) + kl_normal(*model.posterior(x), *model.true_posterior(x))
    draws = model.elbo_terms(x.repeat(4000, 1))["nelbo"].reshape(4000, 20)
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
    kl, rec = kl_divergence(q, p).sum(-1), -Bernoulli(logits=model.dec(z)).log_prob(x).sum(-1)
    torch.testing.assert_close(terms, {"nelbo": kl + rec, "kl": kl, "rec": rec})
    gradients = (torch.autograd.grad(loss.mean(), list(model.parameters())) for loss in (terms["nelbo"], kl + rec))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
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
    torch.testing.assert_close((niwae, kl, rec), (expected, log_ratio.mean(), -log_likelihood.mean()))
    gradients = (torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in (niwae, expected))
    torch.testing.assert_close(*gradients)


def batch_of(model, n):
    """n images, and what the loss of this model takes with them."""
    x, y = torch.rand(n, model.x_dim), torch.eye(10)[torch.arange(n) % 10]
    x = x if model.is_density else x.round()
    return {SSVAE: (x, x, y), FSVAE: (x, y)}.get(type(model), (x,))


@pytest.mark.parametrize("iw", [1, 5])
@MODELS
def test_the_loss_its_curves_and_a_gradient_for_every_parameter(model, iw):
    made = model(**{} if model is SSVAE else {"iw": iw})
    batch = batch_of(made, 20)
    torch.manual_seed(1)
    loss, curves = made.loss(*batch)
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in made.parameters())
    if model is GMVAE:
        assert (made.z_pre.grad.abs().sum(-1) > 0).all()  # means and variances of every component
    if model is FSVAE:
        assert (made.dec.net[0].weight.grad[:, 10:].abs().sum(0) > 0).all()  # every label's column
    if model is not SSVAE:
        torch.manual_seed(1)
        x, *y = batch
        bound, kl, rec = made.negative_elbo_bound(x, *y) if iw == 1 else made.negative_iwae_bound(x, iw, *y)
        assert loss == bound
        torch.testing.assert_close(curves, {"gen/elbo": -(kl + rec), "gen/kl_z": kl, "gen/rec": rec})
        assert iw == 1 or loss < -curves["gen/elbo"] - 0.01


SIZES = {  # x_dim, z_dim, hidden units, labels in the networks; and what else is in the state_dict
    VAE: (784, 10, 300, 0, {"z_prior_m": (1,), "z_prior_v": (1,)}),
    GMVAE: (784, 10, 300, 0, {"z_pre": (1, 1000, 10), "pi": (500,)}),
    SSVAE: (784, 64, 300, 10, {"z_prior_m": (1,), "z_prior_v": (1,)}),
    FSVAE: (3072, 10, 500, 10, {"z_prior_m": (1,), "z_prior_v": (1,)}),
}


@pytest.mark.parametrize("given", [{}, {"x_dim": 12, "z_dim": 4, "n_hidden": 6}])
@MODELS
def test_state_dict_has_the_keys_of_the_homeworks_files(model, given):
    *sizes, y_dim, others = SIZES[model]
    x_dim, z_dim, hidden = given.values() or sizes
    networks = {"enc": (x_dim + y_dim, 2 * z_dim), "dec": (z_dim + y_dim, x_dim)}
    expected = others | ({"z_pre": (1, 1000, z_dim)} if model is GMVAE else {})
    for name, (n_in, n_out) in (networks | ({"cls": (x_dim, 10)} if model is SSVAE else {})).items():
        for i, shape in ((0, (hidden, n_in)), (2, (hidden, hidden)), (4, (n_out, hidden))):
            expected |= {f"{name}.net.{i}.weight": shape, f"{name}.net.{i}.bias": shape[:1]}
    made = model(**given)
    assert {key: tuple(value.shape) for key, value in made.state_dict().items()} == expected
    if model is not GMVAE:
        assert (made.z_prior_m.item(), made.z_prior_v.item()) == (0, 1)


def test_networks_are_three_layers_with_elu():
    """The encoder's output from its weights, written out; a seed's first numbers are its first layer's."""
    torch.manual_seed(3)
    first = nn.Linear(784, 300).weight
    torch.manual_seed(3)
    model, x = VAE(z_dim=3), torch.rand(5, 784)
    assert model.enc.net[0].weight.equal(first)
    h = x
    for i in (0, 2, 4):
        h = h @ model.enc.net[i].weight.T + model.enc.net[i].bias
        h = torch.where(h > 0, h, h.exp() - 1) if i < 4 else h
    m, v = model.posterior(x)
    torch.testing.assert_close(m, h[:, :3])
    torch.testing.assert_close(v, (1 + h[:, 3:].exp()).log() + 1e-8)


def test_samples():
    """x of a decoder that ignores z and whose pixels are on with probability 0.9 in one half, 0.2 in the other."""
    model = VAE(z_dim=3)
    z = model.sample_z(20_000)
    assert z.shape == (20_000, 3)
    assert z.mean(0).abs().max() < 0.04
    assert (z.var(0) - 1).abs().max() < 0.06
    assert (torch.corrcoef(z.T) - torch.eye(3)).abs().max() < 0.04  # an independent draw for each dimension
    x = model.sample_x(7)
    torch.testing.assert_close(model.reconstruct(x), model.dec(model.posterior(x)[0]).sigmoid())
    p = torch.cat([torch.full((392,), 0.9), torch.full((392,), 0.2)])
    with torch.no_grad():
        model.dec.net[4].weight.zero_()
        model.dec.net[4].bias.copy_(p.logit())
        assert torch.allclose(model.mean_x(torch.randn(3, 3)), p)
        x = model.sample_x(2000)
    assert x.shape == (2000, 784)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert (x[:, :392].mean() - 0.9).abs() < 0.002
    assert (x[:, 392:].mean() - 0.2).abs() < 0.003
    assert (x.mean(0) - p).abs().max() < 0.05


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


@MODELS
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
    mlps.enc, mlps.dec = Wrapped(mlps.enc), Wrapped(mlps.dec)
    torch.manual_seed(2)
    torch.testing.assert_close(mlps.log_weights(x, 5, *own), expected)


class Wrapped(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.inner = net

    def forward(self, *inputs):
        return self.inner(*inputs)
