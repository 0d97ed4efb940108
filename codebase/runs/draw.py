"""What the run scripts draw of a model at every checkpoint: samples, reconstructions, and what z does to an image."""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw

from codebase import evaluate
from codebase.data import one_hot, scaled, test_subset
from codebase.runs.pictures import save_grid, save_picture

CLASSES = 50  # pictures with a row for each class show at most this many, the first ones
ROWS = 10  # units in traversal.png; pairs of images in interpolations.png, if there are no labels
COLUMNS = 13  # values of z in a row of these
PRIOR_DRAWS = 10_000  # draws from which the quantiles and standard deviations of a prior are computed
PLOT = 600  # width and height of posterior.png, in pixels


def draw_samples(run, model, splits, writer, step):
    """samples.png: 200 means of p(x|z), z ~ p(z). reconstructions.png: test images, each beside its reconstruction.

    And the pictures of draw_latent. For models without labels. splits: as data.binary_splits returns them.
    """
    x = scaled(splits["subset"][0])
    samples = model.mean_x(model.sample_z(200))
    save_grid(run, "samples", samples, writer, step, description="means of p(x|z), each of another z ~ p(z)")
    both = torch.stack([x, model.reconstruct(x)], dim=1).flatten(0, 1)
    legend = "test images, each with its reconstruction on its right"
    save_grid(run, "reconstructions", both, writer, step, description=legend)
    draw_latent(run, model, splits, writer, step)


def draw_samples_by_class(run, model, writer, step):
    """samples.png: every class in twenty styles. Row = class, column = style z_j, the same in all rows.

    The z are the same at every checkpoint if no random numbers are drawn before. Returns one-hot labels, (rows, C).
    """
    y = torch.eye(model.classes, device=run.device)[:CLASSES]  # (rows, C)
    tiles = model.mean_x(model.sample_z(20), y.unsqueeze(1))  # (rows, 20, X)
    legend = "row = class, column = style z; the same z in all rows"
    save_grid(run, "samples", tiles, writer, step, description=legend)
    return y


def draw_latent(run, model, splits, writer, step):
    """What z does to an image. splits: as data.binary_splits or data.labelled_splits returns them.

    interpolations.png: each row begins and ends with a test image, both of one class if the model has labels. Between
    them are means of p(x|z), for z on the straight line between the posterior means of the two images.
    traversal.png: the first test image, but in each row one unit of z goes from -3 to 3 standard deviations of the
    prior. The rows are the units whose posterior means vary most over the images.
    If z has two dimensions, manifold.png and posterior.png take the place of the traversal; see draw_plane.
    """
    draws = model.sample_z(PRIOR_DRAWS)  # (PRIOR_DRAWS, D)
    x, *y = splits["subset"]
    x = scaled(x)
    if not y and hasattr(model, "classes"):  # the SSVAE: the true labels, not the predicted ones
        y = [one_hot(run.data.y_test[test_subset(run.data)], model.classes).to(x.device)]
    z = model.mean_z(x, *y)  # (n, D)

    first, last = pairs(len(x), *y)
    t = torch.linspace(0, 1, COLUMNS, device=z.device)[:, None]
    line = torch.lerp(z[first].unsqueeze(1), z[last].unsqueeze(1), t)  # (rows, COLUMNS, D)
    between = model.mean_x(line, *(each[first].unsqueeze(1) for each in y))  # (rows, COLUMNS, X)
    tiles = torch.cat([x[first].unsqueeze(1), between, x[last].unsqueeze(1)], dim=1)
    legend = "row = two test images, and between them the means of p(x|z) on a straight line in z"
    save_grid(run, "interpolations", tiles, writer, step, COLUMNS + 2, legend)

    y = [each[0] for each in y]  # of the first image
    if z.shape[1] == 2:
        draw_plane(run, model, splits["test"], draws, y, writer, step)
        return
    units = z.var(0, correction=0).argsort(descending=True)[:ROWS]
    values = draws.mean(0) + torch.linspace(-3, 3, COLUMNS, device=z.device)[:, None] * draws.std(0)  # (COLUMNS, D)
    changed = z[0].repeat(len(units), COLUMNS, 1)
    for row, unit in enumerate(units):
        changed[row, :, unit] = values[:, unit]
    rows = ", ".join(f"z_{unit + 1}" for unit in units.tolist())
    legend = f"rows: {rows}, each from -3 to 3 standard deviations of the prior; the other units as in a test image"
    save_grid(run, "traversal", model.mean_x(changed, *y), writer, step, COLUMNS, legend)


def pairs(n, y=None):
    """The images between which interpolations.png interpolates: their indices, two lists (first, last).

    Without labels ROWS pairs of images that are far apart in the test subset; with labels y (n, C) one of each class.
    """
    if y is None:
        first = [i * (n // 2) // ROWS for i in range(ROWS)]
        return first, [i + n // 2 for i in first]
    members = [(y.argmax(-1) == c).nonzero()[:, 0].tolist() for c in range(y.shape[1])]
    several = [of_class for of_class in members if of_class][:CLASSES]
    return [of_class[0] for of_class in several], [of_class[-1] for of_class in several]


def draw_plane(run, model, test, draws, y, writer, step):
    """For a z of two dimensions. draws: of the prior, (n, 2); y: the label of manifold.png, for models with labels.

    manifold.png: the means of p(x|z) on a grid of z, at equally spaced quantiles of the prior (Kingma and Welling 2014,
    figure 4). z_1 increases to the right, z_2 upwards.
    posterior.png: the posterior mean of z of every test image, coloured by its class.
    """
    levels = (torch.arange(20, device=draws.device) + 0.5) / 20
    z_1, z_2 = draws.quantile(levels, dim=0).T
    z = torch.stack([z_1.expand(20, 20), z_2.flip(0)[:, None].expand(20, 20)], dim=-1)  # (row, column, 2)
    legend = "z_1 increases to the right, z_2 upwards: the 2.5 %, 7.5 %, ..., 97.5 % quantiles of the prior"
    save_grid(run, "manifold", model.mean_x(z, *y), writer, step, description=legend)
    means = evaluate.posterior_means(model, test).cpu()
    picture = scatter(means, run.data.y_test, run.data.classes)
    save_picture(run, "posterior", picture, writer, step, "posterior means of the test images, coloured by class")


def scatter(points, labels, classes):
    """A plot of points (n, 2) with its axes: the first coordinate increases to the right, the second upwards.

    labels: (n,), which give the colours if there are classes. Points that are not finite are left out. Returns a
    picture, (3, PLOT, PLOT) in [0, 1].
    """
    finite = points.isfinite().all(1)
    points, labels = points[finite], labels[finite] if classes else torch.zeros(int(finite.sum()))
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
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
