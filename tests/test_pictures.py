"""Pictures: those of a model from their definitions, for models whose p(x|z) shows z; and the plots."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
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


def tiles_of(picture, shape, left=0, top=0):
    """The tiles of a grid, (rows, columns, height, width, 3), with a line of one pixel between them; left, top: edges.

    The picture is twice as large.
    """
    _, height, width = shape
    pixels = picture.pixels[2 * top :: 2, 2 * left :: 2]
    rows, columns = (n // (size + 1) for n, size in zip(pixels.shape, (height, width), strict=False))
    tiles = pixels[1:, 1:].reshape(rows, height + 1, columns, width + 1, 3)
    return tiles[:, :height, :, :width].swapaxes(1, 2)


def drawn(model, x, y=None):
    """The grids of `latent`: {name: (rows, columns, D) of grey values}."""
    images = SimpleNamespace(shape=(1, 1, x.shape[1]), y_test=y, classes=0)
    torch.manual_seed(0)
    found = pictures.latent(model, {"subset": (x,), "test": (x,)}, images)
    posterior = found.pop("posterior", None)
    assert (posterior is not None) == (model.z_dim == 2)
    edges = {"traversal": pictures.EDGE}
    return {name: tiles_of(each, images.shape, edges.get(name, 0))[:, :, 0, :, 0] for name, each in found.items()}


def test_a_grid_goes_from_left_to_right():
    """Six colour images of 2 x 3 pixels in rows of three: each is in its place, upright, in its own colour."""
    images, shape = torch.arange(6 * 3 * 2 * 3).reshape(6, -1) / 255, (3, 2, 3)
    picture = pictures.grid(images, shape, columns=3, legend="six")
    assert picture.legend == "six"
    assert picture.pixels.shape == (2 * (2 * 3 + 1), 2 * (3 * 4 + 1), 3)
    found = tiles_of(picture, shape).reshape(6, 2, 3, 3)
    for image, tile in zip(images, found, strict=True):
        assert tile.transpose(2, 0, 1).ravel().tolist() == (image * 255).round().int().tolist()


def as_z(pixels):
    return Normal(0.0, SCALE).icdf(torch.tensor(pixels / 255.0).clamp(0.002, 0.998))


def images(n, d):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(1)).round()


@pytest.mark.parametrize("kind", [ShowsZ, MovedPrior])
def test_a_row_of_the_traversal_changes_one_unit(kind):
    """From -3 to 3 standard deviations of the prior."""
    model, x = kind(), images(40, 3)
    z = as_z(drawn(model, x)["traversal"])
    mean, deviation = (0, 1) if kind is ShowsZ else (1, 2)
    assert z.shape == (3, pictures.COLUMNS, 3)
    expected = model.posterior(x[:1])[0].repeat(3, pictures.COLUMNS, 1).double()
    units = z.var(1).argmax(-1).tolist()
    assert sorted(units) == [0, 1, 2]
    for row, unit in enumerate(units):
        expected[row, :, unit] = mean + deviation * torch.linspace(-3, 3, pictures.COLUMNS)
    torch.testing.assert_close(z, expected, atol=0.15, rtol=0)


def test_the_units_of_the_traversal_are_those_that_change_the_image_most():
    """The pixels show units 1 and 2, the second one more; the posterior means of unit 0 vary most."""
    model = ShowsZ()
    model.size.data = torch.tensor([9.0, 1.0, 1.0])
    model.mean_x = lambda z: Normal(0.0, SCALE).cdf(z * torch.tensor([0.0, 0.5, 1.0]))
    rows = drawn(model, images(40, 3))["traversal"].astype(float).var(1)
    assert rows.argmax(-1)[:2].tolist() == [2, 1]
    assert rows[2].max() == 0


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
    x = torch.randint(0, 256, (30, 3), dtype=torch.uint8)
    found = []
    for each in (x, x / 255):
        torch.manual_seed(0)
        images = SimpleNamespace(shape=(1, 1, 3), classes=0)
        found.append(pictures.unlabelled(ShowsZ(), {"subset": (each,)}, images))
    assert found[0].keys() == {"samples", "reconstructions", "interpolations", "traversal"}
    assert all((picture.pixels == found[1][name].pixels).all() for name, picture in found[0].items())


def test_pairs_of_images():
    assert pictures.pairs(torch.zeros(100, 3)) == (list(range(0, 50, 5)), list(range(50, 100, 5)))
    for n in (1, 3):
        first, last = pictures.pairs(torch.zeros(n, 3))
        assert len(first) == len(last) == pictures.ROWS
        assert max(first + last) < n
    y = torch.eye(4)[torch.tensor([2, 0, 2, 1, 0, 2])]  # none of class 3
    assert pictures.pairs(torch.zeros(6, 3), y) == ([1, 3, 0], [4, 3, 5])


@pytest.mark.parametrize("kind", [ShowsZ, MovedPrior])
def test_the_manifold_is_at_the_quantiles_of_the_prior(kind):
    """z_1 increases to the right, z_2 upwards."""
    z = as_z(drawn(kind(2), images(40, 2), torch.zeros(40, dtype=torch.int64))["manifold"])
    mean, deviation = (0.0, 1.0) if kind is ShowsZ else (1.0, 2.0)
    quantiles = Normal(mean, deviation).icdf((torch.arange(20, dtype=torch.float64) + 0.5) / 20)
    expected = torch.stack([quantiles.expand(20, 20), quantiles.flip(0)[:, None].expand(20, 20)], dim=-1)
    torch.testing.assert_close(z, expected, atol=0.15, rtol=0)


@pytest.fixture
def figures(monkeypatch):
    """The figures of matplotlib that are rendered from now on."""
    seen, original = [], pictures.rendered
    monkeypatch.setattr(pictures, "rendered", lambda figure, *args: seen.append(figure) or original(figure, *args))
    return seen


def places(axes, points):
    """(row, column) of points in the picture of axes."""
    height = axes.figure.bbox.height
    return [(int(height - down), int(across)) for across, down in axes.transData.transform(points)]


@pytest.mark.parametrize("labels", [[3, 0, 11, 3], None])
def test_posterior_means_are_drawn_where_they_are_in_the_colour_of_their_class(figures, labels):
    """z_1 to the right, z_2 upwards, in the same unit; a point that is not finite is left out."""
    points = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [0.5, -1.0], [torch.nan, 0.0]])
    picture = pictures.scatter(points, labels and torch.tensor(labels), 12 if labels else 0)
    (axes,) = figures[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z_1", "z_2")
    assert (picture.pixels.dtype, picture.pixels.shape) == (np.uint8, (600, 700, 3))
    right, left, below = places(axes, points[:3])
    assert right[0] == left[0] < below[0]
    assert abs((below[0] - left[0]) / 3 - (right[1] - left[1]) / 2) < 2
    found = [tuple(picture.pixels[place]) for place in (right, left, below)]
    legend = {line.get_label(): line.get_color() for each in figures[0].legends for line in each.legend_handles}
    assert len({tuple(colour) for colour in legend.values()}) == (12 if labels else 0)
    colours = [legend[str(c)] for c in labels[:3]] if labels else [(0, 0, 0)] * 3
    assert np.abs(np.array(found) - 255 * np.array([to_rgb(colour) for colour in colours])).max() < 4


@pytest.mark.parametrize(("n", "classes"), [(0, 0), (0, 3), (1, 1), (1000, 200)])
def test_a_plot_of_any_number_of_points_and_classes(figures, n, classes):
    points, labels = torch.randn(n, 2), torch.arange(n) % classes if classes else None
    pictures.scatter(points, labels, classes)
    assert [len(legend.get_texts()) for legend in figures[0].legends] == ([min(classes, 50)] if classes else [])


def test_the_curves_are_those_of_the_history(figures):
    """In the order of their steps, without step 0, with their names. The first steps do not squash the others."""
    steps = [*range(100, 20_001, 100)]
    loss = {step: 100 + 300 * np.exp(-step / 500) + step % 300 / 100 for step in reversed(steps)}
    test = {step: 101 + 440 * np.exp(-step / 500) for step in range(0, 20_001, 1000)}
    history = {
        "gen/rec": loss,
        "eval/nelbo_test": test,
        "train/loss": loss,
        "eval/nelbo_train": {0: 541.0, 20_000: 99.5},
    }
    picture = pictures.curves(history)
    (axes,) = figures[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training step", "nats")
    found = {line.get_label(): dict(zip(*line.get_data(), strict=True)) for line in axes.lines}
    later = {name: {step: value for step, value in points.items() if step} for name, points in history.items()}
    assert found == {name: points for name, points in later.items() if name != "gen/rec"}
    assert list(found["train/loss"]) == steps
    assert {text.get_text() for text in axes.get_legend().get_texts()} == found.keys()
    low, high = axes.get_ylim()
    assert low < 99.5
    assert np.mean([value < high for step, value in loss.items() if step >= 2000]) > 0.98
    assert high < 120
    ((row, column),) = places(axes, [(20_000, 99.5)])
    assert (picture.pixels[row, column] < 250).any()


@pytest.mark.parametrize(
    ("history", "points"),
    [
        ({}, {"train/loss": 0}),
        ({"train/loss": {3: 2.5}, "test/accuracy_percent": {0: 10.0}}, {"train/loss": 1}),
        ({"train/loss": {}, "eval/nelbo_test": {0: 540.0}}, {"train/loss": 0, "eval/nelbo_test": 1}),
        ({"train/loss": {100: 7.0, 200: 7.0, 300: np.nan, 400: np.inf}}, {"train/loss": 2}),
    ],
)
def test_curves_of_few_points(figures, history, points):
    pictures.curves(history)
    (axes,) = figures[0].axes
    assert {line.get_label(): len(line.get_xdata()) for line in axes.lines} == points
    for name, values in history.items():
        if points.get(name):
            low, high = axes.get_ylim()
            assert low < next(iter(values.values())) < high


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
    edges = {"traversal": pictures.EDGE}
    tiles = {name: tiles_of(each, mine.shape, edges.get(name, 0)) for name, each in found.items()}
    labels = {name: each[:, :, 0, :3, 0].argmax(-1) for name, each in tiles.items()}
    assert labels["interpolations"][:, 1:-1].tolist() == [[c] * pictures.COLUMNS for c in (0, 1, 2)]
    assert labels["traversal"].tolist() == [[y[rows[0]]] * pictures.COLUMNS] * 6


def test_a_model_without_labels_interpolates_within_a_class():
    y = torch.tensor([2, 0, 1, 0, 2, 1, 1])
    mine = SimpleNamespace(name="mine", shape=(1, 1, 3), classes=3, y_test=y)
    x = data.one_hot(y, 3)[data.test_subset(mine)]
    tiles = tiles_of(pictures.latent(ShowsZ(), {"subset": (x,)}, mine)["interpolations"], mine.shape)[:, :, 0, :, 0]
    assert tiles[:, 0].argmax(-1).tolist() == tiles[:, -1].argmax(-1).tolist() == [0, 1, 2]


def test_a_mixture_has_these_pictures_too():
    assert drawn(GMVAE(2, k=3, x_dim=6), images(7, 6), torch.zeros(7).long()).keys() == {"interpolations", "manifold"}


def test_mistakes_are_the_most_confident_ones():
    """Of two images of class 0 that are taken for class 1, the more confident one; where there is none, black."""
    x = torch.arange(1, 5, dtype=torch.uint8).unsqueeze(1).expand(4, 6)
    mine = SimpleNamespace(shape=(1, 2, 3), x_test=x, y_test=torch.tensor([0, 0, 1, 2]))
    log_q = torch.tensor([[0.4, 0.5, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2]]).log()
    picture, edge = pictures.mistakes(log_q, mine)["mistakes"], pictures.EDGE
    found = tiles_of(picture, mine.shape, edge, edge)[:, :, 0, 0, 0]
    assert (picture.pixels[: 2 * edge, 2 * edge :] < 255).any()  # the labels of the columns
    assert (picture.pixels[2 * edge :, : 2 * edge] < 255).any()
    assert found.tolist() == [[0, 2, 0], [0, 0, 0], [4, 0, 0]]
