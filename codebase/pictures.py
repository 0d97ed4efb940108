"""Pictures of a model: samples, reconstructions, and what z does to an image.

Each function returns {name: Picture}; the run scripts put them together in `look`. splits: as data.binary_splits or
data.labelled_splits returns them; images: the data set.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from codebase import evaluate
from codebase.data import one_hot, scaled, test_subset

CLASSES = 50  # pictures with a row for each class show at most this many, the first ones
ROWS = 10  # units in a traversal; pairs of images in interpolations, if there are no labels
COLUMNS = 13  # values of z in a row of these
PRIOR_DRAWS = 10_000  # draws from which the quantiles and standard deviations of a prior are computed
PLOT = 600  # width and height of the plot of posterior means, in pixels


class Picture(NamedTuple):
    """pixels: (H, W, 3) uint8, as matplotlib's imshow takes them; legend: a sentence."""

    pixels: np.ndarray
    legend: str


def grid(images, shape, columns=20, legend=""):
    """The Picture of images (n, X) in [0, 1], each of shape (C, height, width), in rows of `columns`.

    They go from left to right and from top to bottom, with a thin grey line between them.
    """
    from torchvision.utils import make_grid  # imported here, because it takes a second

    tiles = make_grid(images.reshape(-1, *shape).cpu(), nrow=columns, padding=1, pad_value=0.3)
    return Picture((tiles * 255 + 0.5).clamp(0, 255).permute(1, 2, 0).to(torch.uint8).numpy(), legend)


@torch.no_grad()
def unlabelled(model, splits, images):
    """The pictures of a model without labels: samples, 200 means of p(x|z), z ~ p(z); reconstructions; and `latent`."""
    x = scaled(splits["subset"][0])
    drawn = model.mean_x(model.sample_z(200))
    both = torch.stack([x, model.reconstruct(x)], dim=1).flatten(0, 1)
    legend = "test images, each with its reconstruction on its right"
    return {
        "samples": grid(drawn, images.shape, legend="means of p(x|z), each of another z ~ p(z)"),
        "reconstructions": grid(both, images.shape, legend=legend),
    } | latent(model, splits, images)


@torch.no_grad()
def samples_by_class(model, images):
    """samples: every class in twenty styles. Row = class, column = style z_j, the same in all rows.

    The z are the same at every checkpoint if no random numbers are drawn before.
    """
    y = every_class(model)  # (rows, C)
    tiles = model.mean_x(model.sample_z(20), y.unsqueeze(1))  # (rows, 20, X)
    return {"samples": grid(tiles, images.shape, legend="row = class, column = style z; the same z in all rows")}


def every_class(model):
    """One-hot labels of the classes that are shown, (rows, C)."""
    return torch.eye(model.classes, device=next(model.parameters()).device)[:CLASSES]


@torch.no_grad()
def reconstructions_by_class(model, splits, images):
    """reconstructions: for each class a test image, its reconstruction, and every class in its style."""
    x, y = splits["subset"]
    label = y.argmax(-1)
    rows = torch.stack([(label == c).nonzero()[0, 0] for c in label.unique()[:CLASSES]])
    x, y = scaled(x[rows]), y[rows]
    styles = model.mean_x(model.mean_z(x, y).unsqueeze(1), every_class(model))  # (n, C, X)
    tiles = torch.cat([x.unsqueeze(1), model.reconstruct(x, y).unsqueeze(1), styles], dim=1)  # (n, 2 + C, X)
    legend = "each row: a test image, its reconstruction, and every digit in its style"
    return {"reconstructions": grid(tiles, images.shape, tiles.shape[1], legend)}


def mistakes(log_q, images):
    """mistakes: row = true class, column = predicted class, by log q(y|x) of the test images, (N, C).

    Each tile is the most confident such mistake, black if there is none.
    """
    worst = evaluate.mistakes(log_q, images.y_test)[:CLASSES, :CLASSES]
    there = (worst.flatten() >= 0).to(images.x_test.device)
    tiles = scaled(images.x_test[worst.flatten()]) * there.unsqueeze(1)
    legend = "row = true digit, column = predicted digit; the most confident such mistake, black if there is none"
    return {"mistakes": grid(tiles, images.shape, len(worst), legend)}


@torch.no_grad()
def latent(model, splits, images):
    """What z does to an image.

    interpolations: each row begins and ends with a test image, both of one class if the model has labels. Between them
    are means of p(x|z), for z on the straight line between the posterior means of the two images.
    traversal: the first test image, but in each row one unit of z goes from -3 to 3 standard deviations of the prior.
    The rows are the units whose posterior means vary most over the images.
    If z has two dimensions, manifold and posterior take the place of the traversal; see plane.
    """
    draws = model.sample_z(PRIOR_DRAWS)  # (PRIOR_DRAWS, D)
    x, *y = splits["subset"]
    x = scaled(x)
    if not y and hasattr(model, "classes"):  # the SSVAE: the true labels, not the predicted ones
        y = [one_hot(images.y_test[test_subset(images).to(images.y_test.device)], model.classes).to(x.device)]
    z = model.mean_z(x, *y)  # (n, D)

    first, last = pairs(len(x), *y)
    t = torch.linspace(0, 1, COLUMNS, device=z.device)[:, None]
    line = torch.lerp(z[first].unsqueeze(1), z[last].unsqueeze(1), t)  # (rows, COLUMNS, D)
    between = model.mean_x(line, *(each[first].unsqueeze(1) for each in y))  # (rows, COLUMNS, X)
    tiles = torch.cat([x[first].unsqueeze(1), between, x[last].unsqueeze(1)], dim=1)
    legend = "row = two test images, and between them the means of p(x|z) on a straight line in z"
    shown = {"interpolations": grid(tiles, images.shape, COLUMNS + 2, legend)}

    y = [each[0] for each in y]  # of the first image
    if z.shape[1] == 2:
        return shown | plane(model, splits, images, draws, *y)
    units = z.var(0, correction=0).argsort(descending=True)[:ROWS]
    values = draws.mean(0) + torch.linspace(-3, 3, COLUMNS, device=z.device)[:, None] * draws.std(0)  # (COLUMNS, D)
    changed = z[0].repeat(len(units), COLUMNS, 1)
    for row, unit in enumerate(units):
        changed[row, :, unit] = values[:, unit]
    rows = ", ".join(f"z_{unit + 1}" for unit in units.tolist())
    legend = f"rows: {rows}, each from -3 to 3 standard deviations of the prior; the other units as in a test image"
    return shown | {"traversal": grid(model.mean_x(changed, *y), images.shape, COLUMNS, legend)}


def pairs(n, y=None):
    """The images between which to interpolate: their indices, two lists (first, last).

    Without labels ROWS pairs of images that are far apart in the test subset; with labels y (n, C) one of each class.
    """
    if y is None:
        first = [i * (n // 2) // ROWS for i in range(ROWS)]
        return first, [i + n // 2 for i in first]
    members = [(y.argmax(-1) == c).nonzero()[:, 0].tolist() for c in range(y.shape[1])]
    several = [of_class for of_class in members if of_class][:CLASSES]
    return [of_class[0] for of_class in several], [of_class[-1] for of_class in several]


def plane(model, splits, images, draws, *y):
    """For a z of two dimensions. draws: of the prior, (n, 2); y: the label of the manifold, for models with labels.

    manifold: the means of p(x|z) on a grid of z, at equally spaced quantiles of the prior (Kingma and Welling 2014,
    figure 4). z_1 increases to the right, z_2 upwards.
    posterior: the posterior mean of z of every test image, coloured by its class.
    """
    levels = (torch.arange(20, device=draws.device) + 0.5) / 20
    z_1, z_2 = draws.quantile(levels, dim=0).T
    z = torch.stack([z_1.expand(20, 20), z_2.flip(0)[:, None].expand(20, 20)], dim=-1)  # (row, column, 2)
    legend = "z_1 increases to the right, z_2 upwards: the 2.5 %, 7.5 %, ..., 97.5 % quantiles of the prior"
    manifold = grid(model.mean_x(z, *y), images.shape, legend=legend)
    means = evaluate.posterior_means(model, splits["test"]).cpu()
    return {"manifold": manifold, "posterior": scatter(means, images.y_test, images.classes)}


def scatter(points, labels, classes):
    """A plot of points (n, 2) with its axes: the first coordinate increases to the right, the second upwards.

    labels: (n,), which give the colours if there are classes. Points that are not finite are left out. Returns a
    Picture of PLOT x PLOT pixels.
    """
    finite = points.isfinite().all(1)
    points, labels = points[finite], labels.cpu()[finite] if classes else torch.zeros(int(finite.sum()))
    picture = Image.new("RGB", (PLOT, PLOT), "white")
    pen = ImageDraw.Draw(picture)
    middle, largest = PLOT / 2, max([1e-9, *points.abs().flatten().tolist()])
    unit = 0.93 * middle / largest  # pixels
    pen.line([(0, middle), (PLOT, middle)], "lightgrey")
    pen.line([(middle, 0), (middle, PLOT)], "lightgrey")
    colours = [f"hsv({360 * c // classes}, 90%, {90 - 30 * (c % 2)}%)" for c in range(classes)]
    for (z_1, z_2), c in zip(points.tolist(), labels.tolist(), strict=True):
        across, down = middle + unit * z_1, middle - unit * z_2
        pen.rectangle([across, down, across + 1, down + 1], colours[c] if classes else "black")
    tick = 10 ** math.floor(math.log10(largest))
    for i in range(-int(largest / tick), int(largest / tick) + 1):  # numbers along the lower and the right edge
        pen.text((middle + unit * i * tick, PLOT - 12), f"{i * tick:g}", "black")
        pen.text((PLOT - 20, middle - unit * i * tick - 6), f"{i * tick:g}", "black")
    pen.text((PLOT - 60, middle - 14), "z_1", "black")
    pen.text((middle + 4, 2), "z_2", "black")
    for c, colour in enumerate(colours[:CLASSES]):
        pen.rectangle([8, 8 + 11 * c, 16, 16 + 11 * c], colour)
        pen.text((20, 6 + 11 * c), str(c), "black")
    return Picture(np.array(picture), "posterior means of the test images, coloured by class")


def curves(history):
    return Picture(np.zeros((10, 10, 3), np.uint8), "")
