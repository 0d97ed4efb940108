"""Pictures of a model: samples, reconstructions, what z does to an image; and the curves of a training.

A model's pictures are {name: Picture}; the run scripts put them together in `look`. splits: as data.binary_splits or
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
EDGE = 16  # pixels for the labels of rows or columns, before the picture is doubled
ROWS = 10  # units in a traversal; pairs of images in interpolations, if there are no labels
COLUMNS = 13  # values of z in a row of these
PRIOR_DRAWS = 10_000  # draws from which the quantiles and standard deviations of a prior are computed


class Picture(NamedTuple):
    """pixels: (H, W, 3) uint8, as matplotlib's imshow takes them; legend: a sentence."""

    pixels: np.ndarray
    legend: str


def grid(images, shape, columns=20, legend="", left=(), top=()):
    """The Picture of images (n, X) in [0, 1], each of shape (C, height, width), line by line in rows of `columns`.

    Twice as large. left, top: labels of the rows and of the columns.
    """
    from torchvision.utils import make_grid  # imported here, because it takes a second

    tiles = make_grid(images.reshape(-1, *shape).cpu(), nrow=columns, padding=1, pad_value=0.3)
    pixels = (tiles * 255 + 0.5).clamp(0, 255).permute(1, 2, 0).to(torch.uint8).numpy()
    x, y, (_, height, width) = EDGE * bool(left), EDGE * bool(top), shape
    drawing = Image.fromarray(np.pad(pixels, ((y, 0), (x, 0), (0, 0)), constant_values=255))
    draw = ImageDraw.Draw(drawing)
    for i, text in enumerate(left):
        draw.text((2, y + i * (height + 1) + height // 2 - 5), str(text), "black")
    for i, text in enumerate(top):
        draw.text((x + i * (width + 1) + width // 2 - 2, 2), str(text), "black")
    return Picture(np.asarray(drawing).repeat(2, 0).repeat(2, 1), legend)


@torch.no_grad()
def unlabelled(model, splits, images):
    """The pictures of a model without labels: samples, 200 means of p(x|z), z ~ p(z); reconstructions; and `latent`."""
    x = scaled(splits["subset"][0])
    drawn = grid(model.mean_x(model.sample_z(200)), images.shape, legend="means of p(x|z), each of another z ~ p(z)")
    channels, height, width = images.shape
    both = torch.cat([each.reshape(-1, *images.shape) for each in (x, model.reconstruct(x))], dim=-1)
    legend = "pairs: a test image, and on its right its reconstruction"
    both = grid(both, (channels, height, 2 * width), 10, legend)
    return {"samples": drawn, "reconstructions": both} | latent(model, splits, images)


@torch.no_grad()
def samples_by_class(model, images):
    """samples: every class in twenty styles z, which are the same at every checkpoint if `look` calls this first."""
    z = model.sample_z(20)
    tiles = model.mean_x(z, torch.eye(model.classes, device=z.device)[:CLASSES].unsqueeze(1))  # (rows, 20, X)
    legend = "row = class, column = style z; the same z in all rows"
    return {"samples": grid(tiles, images.shape, legend=legend, left=range(len(tiles)))}


@torch.no_grad()
def reconstructions_by_class(model, splits, images):
    """reconstructions: for each class a test image, its reconstruction, and every class in its style."""
    x, y = subset(splits, images)
    first, _ = pairs(x, y)
    x, y = x[first], y[first]
    styles = model.mean_x(model.mean_z(x, y).unsqueeze(1), torch.eye(y.shape[1], device=y.device)[:CLASSES])
    tiles = torch.cat([x.unsqueeze(1), model.reconstruct(x, y).unsqueeze(1), styles], dim=1)  # (n, 2 + C, X)
    legend = "each row: a test image, its reconstruction, and every digit in its style"
    top = ["x", "x'", *range(styles.shape[1])]
    return {"reconstructions": grid(tiles, images.shape, len(top), legend, y.argmax(-1).tolist(), top)}


def mistakes(log_q, images):
    """mistakes: the most confident ones of a classifier, log q(y|x) of the test images, (N, C)."""
    worst = evaluate.mistakes(log_q, images.y_test)[:CLASSES, :CLASSES].to(images.x_test.device)
    tiles = scaled(images.x_test[worst]) * (worst >= 0).unsqueeze(-1)  # (row, column, X)
    legend = "row = true digit, column = predicted digit; the most confident such mistake, black if there is none"
    return {"mistakes": grid(tiles, images.shape, len(worst), legend, range(len(worst)), range(len(worst)))}


def subset(splits, images):
    """The images of the test subset, scaled, (n, X), and if there are classes, their true labels, one-hot, (n, C)."""
    x, *y = map(scaled, splits["subset"])
    if not y and images.classes:
        y = [one_hot(images.y_test[test_subset(images).to(images.y_test.device)], images.classes).to(x.device)]
    return x, *y


@torch.no_grad()
def latent(model, splits, images):
    """What z does to an image.

    interpolations: between two test images, of one class if there are classes, the means of p(x|z) for z on the
    straight line between their posterior means. traversal: the first test image; in each row one unit of z changes, one
    of those that change it most. If z has two dimensions, in place of the traversal: manifold, the means of p(x|z) on a
    grid of z (Kingma and Welling 2014, figure 4), and posterior, the posterior means of all test images.
    """
    draws = model.sample_z(PRIOR_DRAWS)  # (PRIOR_DRAWS, D)
    x, *labels = subset(splits, images)
    y = labels if len(splits["subset"]) > 1 or hasattr(model, "classes") else []  # what the model takes
    z = model.mean_z(x, *y)  # (n, D)

    first, last = pairs(x, *labels)
    t = torch.linspace(0, 1, COLUMNS, device=z.device)[:, None]
    line = torch.lerp(z[first].unsqueeze(1), z[last].unsqueeze(1), t)  # (rows, COLUMNS, D)
    between = model.mean_x(line, *(each[first].unsqueeze(1) for each in y))  # (rows, COLUMNS, X)
    tiles = torch.cat([x[first].unsqueeze(1), between, x[last].unsqueeze(1)], dim=1)
    legend = "row = two test images, and between them the means of p(x|z) on a straight line in z"
    shown = {"interpolations": grid(tiles, images.shape, COLUMNS + 2, legend)}

    y = [each[0] for each in y]  # of the first image
    if z.shape[1] == 2:
        z_1, z_2 = draws.quantile((torch.arange(20, device=z.device) + 0.5) / 20, dim=0).T
        plane = torch.stack(torch.meshgrid(z_1, z_2.flip(0), indexing="xy"), dim=-1)  # (row, column, 2)
        legend = "z_1 increases to the right, z_2 upwards: the 2.5 %, 7.5 %, ..., 97.5 % quantiles of the prior"
        shown["manifold"] = grid(model.mean_x(plane, *y), images.shape, legend=legend)
        shown["posterior"] = scatter(evaluate.posterior_means(model, splits["test"]), images.y_test, images.classes)
        return shown
    values = draws.mean(0) + torch.linspace(-3, 3, COLUMNS, device=z.device)[:, None] * draws.std(0)  # (COLUMNS, D)
    is_unit = torch.eye(z.shape[1], dtype=torch.bool, device=z.device).unsqueeze(1)  # (D, 1, D)
    tiles = model.mean_x(torch.where(is_unit, values, z[0]), *y)  # (D, COLUMNS, X)
    units = tiles.var(1).sum(-1).argsort(descending=True)[:ROWS]
    rows = [unit + 1 for unit in units.tolist()]
    legend = "row i: z_i from -3 to 3 standard deviations of the prior; the other units as in a test image"
    return shown | {"traversal": grid(tiles[units], images.shape, COLUMNS, legend, rows)}


def pairs(x, y=None):
    """Rows of images x (n, X), lists (first, last): two images of each class y (n, C), without labels ROWS pairs."""
    half = len(x) // 2
    members = [[i * half // ROWS, i * half // ROWS + half] for i in range(ROWS)]
    if y is not None:
        members = [(y.argmax(-1) == c).nonzero()[:, 0].tolist() for c in range(y.shape[1])]
    members = [rows for rows in members if rows][:CLASSES]
    return [rows[0] for rows in members], [rows[-1] for rows in members]


def scatter(points, labels, classes):
    """A plot of posterior means (n, 2), coloured by their labels (n,) if there are classes."""
    from matplotlib import colormaps  # imported here, because it takes a second
    from matplotlib.figure import Figure

    colours = colormaps["tab10" if classes <= 10 else "turbo"].resampled(max(1, classes))(range(classes))
    figure = Figure((7, 6), layout="constrained")
    axes = figure.add_subplot(xlabel="z_1", ylabel="z_2", aspect="equal")
    axes.scatter(*points.cpu().T, s=2, color=colours[labels.cpu()] if classes else "black")
    for c, colour in enumerate(colours[:CLASSES]):
        axes.plot([], [], "o", color=colour, label=c)  # for the legend
    if classes:
        figure.legend(loc="outside right upper", ncols=1 + min(classes, CLASSES) // 26)
    return rendered(figure, "posterior means of the test images, coloured by class")


def curves(history):
    """The Picture of the training's loss and of the negative ELBOs, in nats. history: {tag: {step: value}}."""
    from matplotlib.figure import Figure

    figure, later = Figure((8, 5), layout="constrained"), []
    axes = figure.add_subplot(xlabel="training step", ylabel="nats")
    for tag in ("train/loss", *(tag for tag in history if tag.startswith("eval/nelbo_"))):
        points = [(step, value) for step, value in sorted(history.get(tag, {}).items()) if math.isfinite(value)]
        points = [point for point in points if point[0] > 0] or points  # before the training it is several times larger
        axes.plot(*np.reshape(points, (-1, 2)).T, ".-", linewidth=1, markersize=3, label=tag)
        later += [value for step, value in points if step >= points[-1][0] / 10]
    if later:  # the first steps, whose loss is several times as large, and rare peaks may lie outside
        low, high = np.quantile(later, [0.01, 0.99])
        margin = 0.1 * (high - low) or 1
        axes.set_ylim(low - margin, high + margin)
    axes.grid(alpha=0.3)
    axes.legend()
    return rendered(figure, "the loss of the training, and the negative ELBO of test, training and validation images")


def rendered(figure, legend):
    """The Picture of a matplotlib figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Picture(np.array(canvas.buffer_rgba())[..., :3], legend)
