"""Pictures of a model: each from its definition, for models whose p(x|z) shows z."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal

from codebase import data, pictures
from codebase.models.gmvae import GMVAE
from codebase.models.vae import VAE

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


def tiles_of(picture, shape):
    """The tiles of a grid, (rows, columns, height, width, 3), with a line of one pixel between them."""
    _, height, width = shape
    rows, columns = (n // (size + 1) for n, size in zip(picture.pixels.shape, (height, width), strict=False))
    tiles = picture.pixels[1:, 1:].reshape(rows, height + 1, columns, width + 1, 3)
    return tiles[:, :height, :, :width].swapaxes(1, 2)


def drawn(model, x, y=None):
    """The pictures of `latent`: {name: (rows, columns, D) of grey values, or a plot}."""
    images = SimpleNamespace(shape=(1, 1, x.shape[1]), y_test=y, classes=0 if y is None else int(y.max()) + 1)
    torch.manual_seed(0)
    found = pictures.latent(model, {"subset": (x,), "test": (x,)}, images)
    return {
        name: picture.pixels if name == "posterior" else tiles_of(picture, images.shape)[:, :, 0, :, 0]
        for name, picture in found.items()
    }


def test_a_grid_goes_from_left_to_right():
    """Six colour images of 2 x 3 pixels in rows of three: each is in its place, upright, in its own colour."""
    images, shape = torch.arange(6 * 3 * 2 * 3).reshape(6, -1) / 255, (3, 2, 3)
    picture = pictures.grid(images, shape, columns=3, legend="six")
    assert picture.legend == "six"
    assert picture.pixels.shape == (2 * 3 + 1, 3 * 4 + 1, 3)
    found = tiles_of(picture, shape).reshape(6, 2, 3, 3)
    for image, tile in zip(images, found, strict=True):
        assert tile.transpose(2, 0, 1).ravel().tolist() == (image * 255).round().int().tolist()


def as_z(pixels):
    return Normal(0.0, SCALE).icdf(torch.tensor(pixels / 255.0).clamp(0.002, 0.998))


def images(n, d):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(1)).round()


@pytest.mark.parametrize("kind", [ShowsZ, MovedPrior])
def test_a_row_of_the_traversal_changes_one_unit(kind):
    """From -3 to 3 standard deviations of the prior. The units by the variance of their posterior means: 2, 1, 0."""
    model, x = kind(), images(40, 3)
    z = as_z(drawn(model, x)["traversal"])
    mean, deviation = (0, 1) if kind is ShowsZ else (1, 2)
    assert z.shape == (3, pictures.COLUMNS, 3)
    expected = model.posterior(x[:1])[0].repeat(3, pictures.COLUMNS, 1).double()
    for row, unit in enumerate((2, 1, 0)):
        expected[row, :, unit] = mean + deviation * torch.linspace(-3, 3, pictures.COLUMNS)
    torch.testing.assert_close(z, expected, atol=0.15, rtol=0)


class MovedMean(ShowsZ):
    """A posterior whose mean is not the first of its two parameters."""

    def mean_z(self, x):
        return 1 - super().mean_z(x)


@pytest.mark.parametrize("kind", [ShowsZ, MovedMean])
def test_interpolations_are_straight_lines_between_two_test_images(kind):
    model, x = kind(), images(40, 3)
    tiles = drawn(model, x)["interpolations"]
    assert tiles.shape == (pictures.ROWS, pictures.COLUMNS + 2, 3)
    for i, row in enumerate(tiles):
        first, last = x[2 * i], x[20 + 2 * i]
        assert (row[0] == 255 * first.numpy()).all()
        assert (row[-1] == 255 * last.numpy()).all()
        a, b = (model.mean_z(each) for each in (first, last))
        t = torch.linspace(0, 1, pictures.COLUMNS)[:, None]
        torch.testing.assert_close(as_z(row[1:-1]), ((1 - t) * a + t * b).double(), atol=0.1, rtol=0)


def test_images_of_bytes_are_drawn_as_those_in_0_1():
    """All pictures of a model without labels, whose splits hold uint8 images."""
    x = torch.randint(0, 256, (30, 3), dtype=torch.uint8)
    found = []
    for each in (x, x / 255):
        torch.manual_seed(0)
        images = SimpleNamespace(shape=(1, 1, 3), classes=0)
        found.append(pictures.unlabelled(ShowsZ(), {"subset": (each,)}, images))
    assert found[0].keys() == {"samples", "reconstructions", "interpolations", "traversal"}
    assert all((picture.pixels == found[1][name].pixels).all() for name, picture in found[0].items())


@pytest.mark.parametrize("n", [1, 3, 100])
def test_pairs_without_labels_are_among_the_images(n):
    first, last = pictures.pairs(n)
    assert len(first) == len(last) == pictures.ROWS
    assert max(first + last) < n


def test_pairs_with_labels_are_of_one_class():
    y = torch.eye(4)[torch.tensor([2, 0, 2, 1, 0, 2])]  # none of class 3
    assert pictures.pairs(6, y) == ([1, 3, 0], [4, 3, 5])


@pytest.mark.parametrize("kind", [ShowsZ, MovedPrior])
def test_the_manifold_is_at_the_quantiles_of_the_prior(kind):
    """z_1 increases to the right, z_2 upwards."""
    z = as_z(drawn(kind(2), images(40, 2), torch.zeros(40, dtype=torch.int64))["manifold"])
    mean, deviation = (0.0, 1.0) if kind is ShowsZ else (1.0, 2.0)
    quantiles = Normal(mean, deviation).icdf((torch.arange(20, dtype=torch.float64) + 0.5) / 20)
    expected = torch.stack([quantiles.expand(20, 20), quantiles.flip(0)[:, None].expand(20, 20)], dim=-1)
    torch.testing.assert_close(z, expected, atol=0.15, rtol=0)


def test_posterior_means_of_two_classes():
    """Class 0 at (1, 2), class 1 at (-1, 2): in the upper right and the upper left quarter, each in its colour."""
    x = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    pixels, middle = drawn(ShowsZ(2), x, torch.tensor([0, 1]))["posterior"], pictures.PLOT / 2
    assert pixels.shape == (pictures.PLOT, pictures.PLOT, 3)
    unit = 0.93 * middle / 2
    points = [pixels[int(middle - 2 * unit + 1), int(middle + side * unit + 1)] for side in (1, -1)]
    legend = [pixels[12 + 11 * c, 12] for c in (0, 1)]
    assert (np.array(points) == np.array(legend)).all()
    assert (points[0] != points[1]).any()


def test_a_point_that_is_not_finite_is_left_out():
    finite = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    both = torch.cat([finite, torch.tensor([[torch.nan, 0.0], [1.0, torch.inf]])])
    found, expected = (pictures.scatter(p, torch.arange(len(p)), 4) for p in (both, finite))
    assert (found.pixels == expected.pixels).all()
    assert pictures.scatter(both[2:], None, 0).pixels.shape == (pictures.PLOT, pictures.PLOT, 3)


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


def test_labels_of_the_latent_pictures():
    """The true ones of the test subset, given or not: an interpolation is within one class, in the order of the
    classes; the traversal has the first image's label."""
    y, x = torch.tensor([2, 0, 1, 0, 2, 1, 1]), images(7, 6)
    mine = SimpleNamespace(name="mine", shape=(1, 1, 6), classes=3, y_test=y)
    rows = data.test_subset(mine)
    found = pictures.latent(ShowsLabels(), {"subset": (x[rows],), "test": (x[rows],)}, mine)
    labels = {name: tiles_of(each, mine.shape)[:, :, 0, :3, 0].argmax(-1) for name, each in found.items()}
    assert labels["interpolations"][:, 1:-1].tolist() == [[c] * pictures.COLUMNS for c in (0, 1, 2)]
    assert labels["traversal"].tolist() == [[y[rows[0]]] * pictures.COLUMNS] * 6


def test_a_mixture_has_these_pictures_too():
    assert drawn(GMVAE(2, k=3, x_dim=6), images(7, 6), torch.zeros(7).long()).keys() == {
        "interpolations",
        "manifold",
        "posterior",
    }


def test_mistakes_are_the_most_confident_ones():
    """Of two images of class 0 that are taken for class 1, the more confident one; where there is none, black."""
    x = torch.arange(1, 5, dtype=torch.uint8).unsqueeze(1).expand(4, 6)
    mine = SimpleNamespace(shape=(1, 2, 3), x_test=x, y_test=torch.tensor([0, 0, 1, 2]))
    log_q = torch.tensor([[0.4, 0.5, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2]]).log()
    found = tiles_of(pictures.mistakes(log_q, mine)["mistakes"], mine.shape)[:, :, 0, 0, 0]
    assert found.tolist() == [[0, 2, 0], [0, 0, 0], [4, 0, 0]]


@pytest.mark.parametrize(
    "name", ["vae", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gmvae", "ssvae", "fsvae"))]
)
def test_every_script_draws_them(on_digits, folders, fsvae, name):
    call = fsvae if name == "fsvae" else lambda *args: on_digits(f"run_{name}.py", *args)
    assert call("--z", 3, "--iter_max", 2)[0] == 0
    _, logs = folders()
    assert {"interpolations.png", "traversal.png"} <= {path.name for path in logs.iterdir()}
