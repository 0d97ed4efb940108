"""Models of one's own, which override what the table of docs/extending.md lists: every number is right, or absent."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import curves, save_digits, weights
from test_docs import EXAMPLES
from torch.distributions import Categorical, Laplace, MixtureSameFamily, Normal

import codebase
from codebase import data, evaluate
from codebase.errors import InputError
from codebase.models.fsvae import FSVAE
from codebase.models.gmvae import GMVAE
from codebase.models.ssvae import SSVAE
from codebase.models.vae import VAE


def example(name, of_class):
    """A class of docs/extending.md."""
    names = {"__name__": name}
    exec(EXAMPLES[f"codebase/models/{name}.py"], names)
    return names[of_class]


# With one latent unit, every expectation over z is an integral, which is computed here on a grid.

Z = torch.linspace(-9, 9, 301, dtype=torch.float64)[:, None, None]  # (G, 1, 1)
CELL = (Z[1] - Z[0]).item()


@pytest.fixture
def bars(tmp_path):
    """The path of a data set of 6 x 6 pixels: a bar whose place varies, and noise."""
    y = np.arange(200) % 6
    x = np.random.RandomState(0).randint(0, 60, (200, 6, 6))
    x[np.arange(200), :, y] += 180
    np.savez(tmp_path / "bars.npz", x_train=x[:150].astype(np.uint8), x_test=x[150:].astype(np.uint8))
    return tmp_path / "bars.npz"


class MixturePrior(VAE):
    """Trained on rec + KL / 2; the report is of the ELBO all the same."""

    kl = GMVAE.kl

    def mixture(self):
        return MixtureSameFamily(
            Categorical(torch.ones(2)), Normal(torch.tensor([-1.0, 1.5]), torch.tensor([0.7, 0.9]))
        )

    def log_prior(self, z):
        return self.mixture().log_prob(z.float()).sum(-1).to(z.dtype)

    def sample_z(self, n):
        return self.mixture().sample((n, 1))

    def loss(self, x):
        nelbo, kl, rec = self.negative_elbo_bound(x)
        return rec + kl / 2, {"gen/elbo": -nelbo}


class LaplacePosterior(VAE):
    """q(z|x) is no normal, and m is not its mean."""

    def q(self, x):
        m, v = self.posterior(x)
        return Laplace(0.5 + 2 * m, v.sqrt())

    def mean_z(self, x):
        return self.q(x).mean

    def log_weights(self, x, iw):
        z = self.q(x).rsample((iw,))
        kl, rec = self.q(x).log_prob(z).sum(-1) - self.log_prior(z), -self.log_likelihood(x, z)
        return -(kl + rec), kl, rec

    def elbo_terms(self, x):
        _, kl, rec = self.log_weights(x, 1)
        return {"nelbo": (kl + rec)[0], "kl": kl[0], "rec": rec[0]}


TwoLayerVAE = example("twolayervae", "TwoLayerVAE")


class TwoLayers(TwoLayerVAE):
    def __init__(self, z_dim, iw, **sizes):
        super().__init__(z_dim, iw, z2_dim=1, **sizes)


def log_integral(log_f):
    return torch.logsumexp(log_f, 0) + math.log(CELL)


def exactly(model, x):
    """log p(x), the terms of -ELBO(x), their variances over draws of z, and E[z|x] under q: (B,), or dicts of (B,)."""
    log_q = (model.q(x) if isinstance(model, LaplacePosterior) else Normal(*sd(model.posterior(x)))).log_prob(Z).sum(-1)
    log_x = model.log_likelihood(x, Z.expand(-1, len(x), 1))  # (G, B)
    if isinstance(model, TwoLayers):  # (G_2, G, B): over z_2, too
        z_2 = Z.unsqueeze(1)
        log_q_2 = Normal(*sd(part(model.enc2(Z)))).log_prob(z_2).squeeze(-1)  # (G_2, G, 1)
        log_p_1 = Normal(*sd(part(model.dec2(z_2)))).log_prob(Z).squeeze(-1)
        log_p = log_p_1 + Normal(0.0, 1.0).log_prob(z_2).squeeze(-1)
        log_prior = log_integral(log_p)
        q = (log_q + log_q_2).exp() * CELL**2
        terms = {"kl": log_q + log_q_2 - log_p, "rec": -log_x.expand_as(q)}
        over_z = (0, 1)
    else:
        log_prior = model.log_prior(Z)
        q = log_q.exp() * CELL
        terms = {"kl": log_q - log_prior, "rec": -log_x}
        over_z = 0
    terms["nelbo"] = terms["kl"] + terms["rec"]
    assert (q.sum(over_z) - 1).abs().max() < 1e-3
    q = q / q.sum(over_z)
    means = {name: (q * term).sum(over_z) for name, term in terms.items()}
    variances = {name: (q * term.square()).sum(over_z) - means[name].square() for name, term in terms.items()}
    return log_integral(log_prior + log_x), means, variances, (q * Z.squeeze(-1)).sum(over_z)


def part(h):
    m, v = h.chunk(2, -1)
    return m, torch.nn.functional.softplus(v) + 1e-8


def sd(m_v):
    return m_v[0], m_v[1].sqrt()


@pytest.mark.parametrize("own", [MixturePrior, LaplacePosterior, TwoLayers], ids=lambda own: own.__name__)
def test_the_numbers_of_a_run(on_digits, folders, bars, monkeypatch, own):
    """Report and curves against quadrature: the bounds within four standard errors of their draws."""
    monkeypatch.setattr("codebase.models.vae.VAE", own)
    args = ("--dataset", bars, "--z", 1, "--hidden", 12, "--iter_max", 60, "--lr", 0.005)
    code, out, err = on_digits("run_vae.py", *args, "--train", 2, "--iw_eval", "1,200", "--full", 1)
    assert code == 0, err
    checkpoints, logs = folders()
    results = json.loads((logs / "results.json").read_text())["results"]
    model = own(1, 1, x_dim=36, n_hidden=12)
    model.load_state_dict(weights(checkpoints, 60))
    model.double()
    for split in ("subset", "test"):
        (x,) = data.binary_splits(data.load(bars))[split]
        found = results[split]
        with torch.no_grad():
            log_p, means, variances, mean_z = exactly(model, x.double())
            torch.testing.assert_close(model.mean_z(x.double())[:, 0], mean_z, rtol=0, atol=5e-3)
        assert found.keys() == {"nelbo", "kl", "rec", "latent_units", "iwae_1", "iwae_200", "iwae_gap", "ess"}
        for name, draws in (("nelbo", 2), ("kl", 2), ("rec", 2), ("iwae_1", 200)):
            of = "nelbo" if name == "iwae_1" else name
            error = (variances[of].mean().item() / draws / len(x)) ** 0.5
            assert abs(found[name]["mean"] - means[of].mean().item()) < 4 * error + 1e-3, name
        assert -log_p.mean() - 0.02 < found["iwae_200"]["mean"] < found["nelbo"]["mean"] + 0.02
        assert found["iwae_200"]["mean"] < -log_p.mean() + 0.3 * (means["nelbo"] + log_p).mean() + 0.02
        assert found["latent_units"] == {"active": int(mean_z.var(correction=0) > 0.01), "units": 1}
    error = ((variances["rec"] + variances["kl"]).mean().item() / len(x)) ** 0.5  # of one draw for each test image
    assert abs(curves(logs)["eval/nelbo_test"][-1][1] - means["nelbo"].mean().item()) < 4 * error + 1e-3
    assert "Bits" not in out


def test_bits_of_a_discretised_likelihood_are_those_of_its_probabilities(
    script, few_draws, folders, tmp_path, monkeypatch
):
    """They are the nats in another unit, and the probabilities of the 256 values of a pixel add up to 1."""
    own = example("logisticfsvae", "LogisticFSVAE")
    monkeypatch.setattr("codebase.models.fsvae.FSVAE", own)
    digits = save_digits(tmp_path / "digits.npz")
    args = ("--dataset", digits, "--iter_max", 30, "--batch_size", 50, "--device", "cpu", "--z", 3, "--hidden", 12)
    code, _, err = script("run_fsvae.py", *args, "--train", 2, "--iw_eval", 2)
    assert code == 0, err
    checkpoints, logs = folders()
    results = json.loads((logs / "results.json").read_text())["results"]
    for found in (results["subset"], results["test"]):
        for name in ("nelbo", "rec", *(["iwae_2"] if "iwae_2" in found else [])):
            assert found[f"{name}_bits"]["mean"] == pytest.approx(found[name]["mean"] / 784 / math.log(2))
        assert not {"kl_bits", "ess_bits"} & found.keys()
        assert found["rec_bits"]["mean"] > 0
    model = own(3, x_dim=784, n_hidden=12)
    model.load_state_dict(weights(checkpoints, 30))
    model.double()
    z, y = torch.randn(2, 3).double(), torch.eye(10)[[3, 7]].double()
    values = (torch.arange(256).double() / 255)[:, None, None]  # (256, 1, 1)
    with torch.no_grad():
        mu, s = model.dec(z, y), model.log_s.exp()
        edges = (torch.arange(257).double() - 0.5)[:, None, None] / 255
        edges[0], edges[-1] = -math.inf, math.inf
        masses = ((edges[1:] - mu) / s).sigmoid() - ((edges[:-1] - mu) / s).sigmoid()  # (256, 2, X)
        k = torch.randint(0, 256, (2, 784))
        k[:, :3] = torch.tensor([0, 255, 128])
        expected = masses.gather(0, k.unsqueeze(0))[0].log().sum(-1)
        torch.testing.assert_close(model.log_likelihood(k / 255, z, y), expected, rtol=1e-6, atol=1e-6)
        model.log_s.data.fill_(-1.0)
        each = torch.stack([model.log_likelihood(value.expand(2, 784), z, y) for value in values])  # (256, 2)
    assert (masses.sum(0) - 1).abs().max() < 1e-12
    assert each.isfinite().all()


class NarrowFSVAE(FSVAE):
    """Its density is so narrow that most of it is between the values k / 255."""

    mean_x, sample_x, is_density = FSVAE.mean_x, FSVAE.sample_x, True

    def log_likelihood(self, x, z, y):
        return Normal((255 * self.mean_x(z, y)).round() / 255, 1e-3).log_prob(x).sum(-1)


def test_bits_of_a_density_are_those_of_images_with_noise(fsvae, folders, colour_digits, monkeypatch):
    monkeypatch.setattr("codebase.models.fsvae.FSVAE", NarrowFSVAE)
    code, _, err = fsvae("--z", 3, "--hidden", 12, "--iter_max", 3, "--train", 2, "--iw_eval", 2)
    assert code == 0, err
    checkpoints, logs = folders()
    results = json.loads((logs / "results.json").read_text())["results"]["subset"]
    model = NarrowFSVAE(3, n_hidden=12)
    model.load_state_dict(weights(checkpoints, 3))
    split = data.labelled_splits(data.load(colour_digits))["subset"]
    noisy = evaluate.elbo(model, split, noise=True) | {"iwae_2": evaluate.iwae(model, split, (2,), noise=True)[0][2]}
    for name in ("nelbo", "rec", "iwae_2"):
        bits = noisy[name].mean / 3072 / math.log(2) + math.log2(255)
        assert results[f"{name}_bits"]["mean"] == pytest.approx(bits)
        assert abs(results[name]["mean"] / 3072 / math.log(2) + math.log2(255) - bits) > 0.01


ROWS = {  # {names: what else whoever overrides one of them must override}
    ("log_prior", "sample_z", "kl"): (),
    ("log_likelihood", "mean_x"): ("sample_x", "is_density"),
    ("elbo_terms", "log_weights"): ("mean_z",),
    ("negative_elbo_bound",): ("elbo_terms", "log_weights", "mean_z"),
    ("negative_iwae_bound",): ("elbo_terms", "log_weights", "mean_z"),
}


@pytest.mark.parametrize("base", [VAE, GMVAE, SSVAE, FSVAE])
def test_a_part_of_what_belongs_together_is_refused(base):
    """In a class of its own, and mixed in; all of it together is not, nor what may be overridden alone."""

    def classes(body):
        return (((base,), body), ((type("Part", (), body), base), {}))

    for names, others in ROWS.items():
        row = dict.fromkeys((*names, *others))
        for missing in row:
            for bases, body in classes({each: None for each in row if each != missing}):
                if (missing,) != names:
                    with pytest.raises(TypeError, match=rf"^Own overrides \w+, so it needs its own [^,]*\b{missing}\b"):
                        type("Own", bases, body)
        for bases, body in classes(row):
            assert issubclass(type("Own", bases, body), base)
    for name in ("posterior", "sample_x", "mean_z", "loss", "is_density", "reconstruct"):
        assert issubclass(type("Own", (base,), {name: None}), base)


class FurtherTerm(VAE):
    mean_z, log_weights = VAE.mean_z, VAE.log_weights

    def elbo_terms(self, x):
        terms = super().elbo_terms(x)
        return terms | {"nelbo": terms["nelbo"] + 7, "further": torch.full((len(x),), 7.0)}


def test_the_curve_of_the_elbo_is_of_all_its_terms():
    loss, curves = FurtherTerm(z_dim=2).loss(torch.zeros(3, 784))
    torch.testing.assert_close(curves["gen/elbo"], -(curves["gen/kl_z"] + curves["gen/rec"] + 7))
    assert loss == -curves["gen/elbo"]


class TwiceAsMany(GMVAE):
    """Every component once more, moved by 100."""

    def prior(self):
        m, v = super().prior()
        return torch.cat([m, m + 100]), torch.cat([v, v])


def test_a_mixture_of_other_components_is_sampled_as_it_is_evaluated():
    z = TwiceAsMany(z_dim=2, k=3).sample_z(4000)
    assert abs((z[:, 0] > 50).float().mean() - 0.5) < 0.04


# In a notebook


def test_a_run_of_another_model_is_not_loaded_as_a_vae(tmp_path):
    """A model of one's own may have weights of the same names and shapes."""
    for name in ("half-vae", "clipped_vae", "fsvae", "vae"):
        folder = tmp_path / f"model={name}_z=3_run=0000"
        folder.mkdir()
        torch.save(VAE(z_dim=3).state_dict(), folder / "model-00020.pt")
        if name == "vae":
            assert type(codebase.load(folder)) is VAE
            continue
        for path in (folder, folder / "model-00020.pt"):
            with pytest.raises(InputError, match=rf"of the model {name}, although its weights look like those of VAE"):
                codebase.load(path)
        assert isinstance(codebase.load(folder, TwiceTheLoss(z_dim=3)), TwiceTheLoss)


class TwiceTheLoss(VAE):
    def loss(self, x):
        return 2 * super().loss(x)[0], {}


def test_doubly_reparameterised_gradients_have_the_same_mean_and_a_smaller_variance():
    """The loss and the decoder's gradient are those of the VAE; of the encoder's, the variance is less than a third."""
    usual = VAE(2, 4, x_dim=6, n_hidden=5).double()
    model = example("dregvae", "DReGVAE")(2, 4, x_dim=6, n_hidden=5).double()
    model.load_state_dict(usual.state_dict())
    x = torch.rand(3, 6).round().double()

    def draw(of, seed):
        """The loss, its terms, and the gradient of the encoder and of the decoder from the random numbers of a seed."""
        torch.manual_seed(seed)
        loss, terms = of.loss(x)
        encoder, decoder = (
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, net.parameters(), retain_graph=True)])
            for net in (of.enc, of.dec)
        )
        return loss, terms, encoder, decoder

    loss, terms, _, decoder = draw(usual, 1)
    found = draw(model, 1)
    torch.testing.assert_close((found[0], found[3]), (loss, decoder))
    torch.testing.assert_close(found[1], terms)
    of_usual, of_model = (torch.stack([draw(each, seed)[2] for seed in range(400)]) for each in (usual, model))
    error = ((of_usual.var(0) + of_model.var(0)) / 400).sqrt()
    assert ((of_usual.mean(0) - of_model.mean(0)).abs() <= 5 * error).all()
    assert of_model.var(0).sum() < of_usual.var(0).sum() / 3
