"""What is drawn of a model's latent space: each picture from its definition, for models whose p(x|z) shows z."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.distributions import Normal

from codebase import data
from codebase.models.gmvae import GMVAE
from codebase.models.vae import VAE
from codebase.runs import draw

SCALE = 5.0  # standard deviation of the normal whose distribution function maps z to a grey value


class ShowsZ(VAE):
    """The pixels of E[x|z] are Phi(z / SCALE); the posterior mean of z is 2 x - 1, scaled by unit."""

    log_likelihood = sample_x = is_density = None

    def __init__(self, d=3):
        super().__init__(d, x_dim=d, enc=nn.Identity(), dec=nn.Identity())
        self.size = nn.Parameter(torch.arange(1.0, d + 1))

    def posterior(self, x):
        m = self.size * (2 * x - 1)
        return m, torch.full_like(m, 0.5)

    def mean_x(self, z):
        return Normal(0.0, SCALE).cdf(z)


class MovedPrior(ShowsZ):
    kl = GMVAE.kl

    def log_prior(self, z):
        return Normal(1.0, 2.0).log_prob(z).sum(-1)

    def sample_z(self, n):
        return 1 + 2 * torch.randn(n, self.z_dim)


def drawn(tmp_path, model, x, y=None):
    """The pictures of draw_latent: {name: array (rows, columns, height of a tile, width of a tile) or plot}, as z."""
    shape, classes = (1, 1, x.shape[1]), 0 if y is None else int(y.max()) + 1
    run = SimpleNamespace(data=SimpleNamespace(shape=shape, y_test=y, classes=classes), logs=tmp_path)
    torch.manual_seed(0)
    with torch.no_grad():
        draw.draw_latent(run, model, {"subset": (x,), "test": (x,)}, None, None)
    found = {}
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as picture:
            pixels = np.asarray(picture)[..., 0]
        if path.stem != "posterior":  # tiles of 1 x D pixels with a line of one pixel between them
            pixels = pixels[1::2].reshape(len(pixels) // 2, -1)[:, 1:]
            pixels = pixels.reshape(len(pixels), -1, x.shape[1] + 1)[:, :, :-1]
        found[path.stem] = pixels
    return found


def as_z(pixels):
    return Normal(0.0, SCALE).icdf(torch.tensor(pixels / 255.0).clamp(0.002, 0.998))


def images(n, d):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(1)).round()


@pytest.mark.parametrize("kind", [ShowsZ, MovedPrior])
def test_a_row_of_the_traversal_changes_one_unit(tmp_path, kind):
    """From -3 to 3 standard deviations of the prior. The units by the variance of their posterior means: 2, 1, 0."""
    model, x = kind(), images(40, 3)
    z = as_z(drawn(tmp_path, model, x)["traversal"])
    mean, deviation = (0, 1) if kind is ShowsZ else (1, 2)
    assert z.shape == (3, draw.COLUMNS, 3)
    expected = model.posterior(x[:1])[0].repeat(3, draw.COLUMNS, 1).double()
    for row, unit in enumerate((2, 1, 0)):
        expected[row, :, unit] = mean + deviation * torch.linspace(-3, 3, draw.COLUMNS)
    torch.testing.assert_close(z, expected, atol=0.15, rtol=0)


class MovedMean(ShowsZ):
    """A posterior whose mean is not the first of its two parameters."""

    def mean_z(self, x):
        return 1 - super().mean_z(x)


@pytest.mark.parametrize("kind", [ShowsZ, MovedMean])
def test_interpolations_are_straight_lines_between_two_test_images(tmp_path, kind):
    model, x = kind(), images(40, 3)
    tiles = drawn(tmp_path, model, x)["interpolations"]
    assert tiles.shape == (draw.ROWS, draw.COLUMNS + 2, 3)
    for i, row in enumerate(tiles):
        first, last = x[2 * i], x[20 + 2 * i]
        assert (row[0] == 255 * first.numpy()).all()
        assert (row[-1] == 255 * last.numpy()).all()
        a, b = (model.mean_z(each) for each in (first, last))
        t = torch.linspace(0, 1, draw.COLUMNS)[:, None]
        torch.testing.assert_close(as_z(row[1:-1]), ((1 - t) * a + t * b).double(), atol=0.1, rtol=0)


def test_images_of_bytes_are_drawn_as_those_in_0_1(tmp_path):
    """All pictures of a model without labels, whose splits hold uint8 images."""
    pictures = []
    for i, x in enumerate((torch.randint(0, 256, (30, 3), dtype=torch.uint8),) * 2):
        folder = tmp_path / str(i)
        run = SimpleNamespace(data=SimpleNamespace(shape=(1, 1, 3), classes=0), logs=folder)
        torch.manual_seed(0)
        with torch.no_grad():
            draw.draw_samples(run, ShowsZ(), {"subset": (x / 255 if i else x,)}, None, None)
        pictures.append({path.name: path.read_bytes() for path in folder.glob("*.png")})
    assert pictures[0].keys() == {
        f"{name}.png" for name in ("samples", "reconstructions", "interpolations", "traversal")
    }
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize("n", [1, 3, 100])
def test_pairs_without_labels_are_among_the_images(n):
    first, last = draw.pairs(n)
    assert len(first) == len(last) == draw.ROWS
    assert max(first + last) < n


def test_pairs_with_labels_are_of_one_class():
    y = torch.eye(4)[torch.tensor([2, 0, 2, 1, 0, 2])]  # none of class 3
    assert draw.pairs(6, y) == ([1, 3, 0], [4, 3, 5])


@pytest.mark.parametrize("kind", [ShowsZ, MovedPrior])
def test_the_manifold_is_at_the_quantiles_of_the_prior(tmp_path, kind):
    """z_1 increases to the right, z_2 upwards."""
    z = as_z(drawn(tmp_path, kind(2), images(40, 2), torch.zeros(40, dtype=torch.int64))["manifold"])
    mean, deviation = (0.0, 1.0) if kind is ShowsZ else (1.0, 2.0)
    quantiles = Normal(mean, deviation).icdf((torch.arange(20, dtype=torch.float64) + 0.5) / 20)
    expected = torch.stack([quantiles.expand(20, 20), quantiles.flip(0)[:, None].expand(20, 20)], dim=-1)
    torch.testing.assert_close(z, expected, atol=0.15, rtol=0)


def test_posterior_means_of_two_classes(tmp_path):
    """Class 0 at (1, 2), class 1 at (-1, 2): in the upper right and the upper left quarter, each in its colour."""
    x = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    draws = drawn(tmp_path, ShowsZ(2), x, torch.tensor([0, 1]))
    assert draws["posterior"].shape == (draw.PLOT, draw.PLOT)
    with Image.open(tmp_path / "posterior.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    unit = 0.93 * draw.PLOT / 2 / 2
    points = [pixels[int(draw.PLOT / 2 - 2 * unit + 1), int(draw.PLOT / 2 + side * unit + 1)] for side in (1, -1)]
    legend = [pixels[12 + 11 * c, 12] for c in (0, 1)]
    assert (np.array(points) == np.array(legend)).all()
    assert (points[0] != points[1]).any()


def test_a_point_that_is_not_finite_is_left_out():
    finite = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    both = torch.cat([finite, torch.tensor([[torch.nan, 0.0], [1.0, torch.inf]])])
    assert draw.scatter(both, torch.arange(4), 4).equal(draw.scatter(finite, torch.arange(2), 4))
    assert draw.scatter(both[2:], None, 0).shape == (3, draw.PLOT, draw.PLOT)


class ShowsLabels(ShowsZ):
    """With labels y (..., 3), E[x|y, z] shows the label in its first three pixels, and z in the others."""

    log_likelihood = sample_x = is_density = None

    def __init__(self):
        super().__init__(6)
        self.classes = 3

    def posterior(self, x, y):
        return super().posterior(x)

    def mean_x(self, z, y):
        return torch.cat([y.expand(*z.shape[:-1], 3), super().mean_x(z)[..., 3:]], dim=-1)


def test_labels_of_the_latent_pictures(tmp_path):
    """The true ones of the test subset, given or not: an interpolation is within one class, in the order of the
    classes; the traversal has the first image's label."""
    y, x = torch.tensor([2, 0, 1, 0, 2, 1, 1]), images(7, 6)
    run = SimpleNamespace(data=SimpleNamespace(name="mine", shape=(1, 1, 6), classes=3, y_test=y), logs=tmp_path)
    rows = data.test_subset(run.data)
    x = x[rows]
    with torch.no_grad():
        draw.draw_latent(run, ShowsLabels(), {"subset": (x,), "test": (x,)}, None, None)
    labels = {}
    for name in ("interpolations", "traversal"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            pixels = np.asarray(picture)[1::2, 1:, 0]
        labels[name] = pixels.reshape(len(pixels), -1, 7)[..., :3].argmax(-1)
    assert labels["interpolations"][:, 1:-1].tolist() == [[c] * draw.COLUMNS for c in (0, 1, 2)]
    assert labels["traversal"].tolist() == [[y[rows[0]]] * draw.COLUMNS] * 6


def test_a_mixture_has_these_pictures_too(tmp_path):
    run = SimpleNamespace(data=SimpleNamespace(shape=(1, 2, 3), y_test=None, classes=0), logs=tmp_path)
    x = images(7, 6)
    with torch.no_grad():
        draw.draw_latent(run, GMVAE(2, k=3, x_dim=6), {"subset": (x,), "test": (x,)}, None, None)
    assert {path.name for path in tmp_path.iterdir()} == {"interpolations.png", "manifold.png", "posterior.png"}


@pytest.mark.parametrize(
    "name", ["vae", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gmvae", "ssvae", "fsvae"))]
)
def test_every_script_draws_them(on_digits, folders, fsvae, name):
    call = fsvae if name == "fsvae" else lambda *args: on_digits(f"run_{name}.py", *args)
    assert call("--z", 3, "--iter_max", 2)[0] == 0
    _, logs = folders()
    assert {"interpolations.png", "traversal.png"} <= {path.name for path in logs.iterdir()}
