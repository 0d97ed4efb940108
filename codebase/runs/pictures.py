"""Pictures: grids of images, as PNG files and in TensorBoard."""

from functools import partial

import torch
from torchvision.utils import make_grid, save_image

from codebase.runs.files import write_atomically

CLASSES = 50  # pictures with a row for each class show at most this many, the first ones


def grid(images, shape, columns=20):
    """Images (n, X) in [0, 1], each of shape (C, height, width), in rows of `columns`, left to right, top to bottom.

    Returns one image, (3, H, W) in [0, 1], with a thin grey line between its tiles.
    """
    return make_grid(images.reshape(-1, *shape).cpu(), nrow=columns, padding=1, pad_value=0.3)


def save_grid(run, name, images, writer=None, step=None, columns=20, description=""):
    """Write a grid of images to logs/<run>/<name>.png, and to TensorBoard if there is a writer.

    description: its legend in TensorBoard.
    """
    picture = grid(images, run.data.shape, columns)
    run.logs.mkdir(parents=True, exist_ok=True)
    write_atomically(run.logs / f"{name}.png", partial(save_image, picture, format="png"))
    if writer is not None:
        writer.add_image(name, picture, step, description)


def draw_samples(run, model, x, writer, step):
    """samples.png: 200 means of p(x|z), z ~ p(z). reconstructions.png: images x (n, X), each beside its reconstruction.

    For models without labels.
    """
    samples = model.mean_x(model.sample_z(200))
    save_grid(run, "samples", samples, writer, step, description="means of p(x|z), each of another z ~ p(z)")
    pairs = torch.stack([x, model.reconstruct(x)], dim=1).flatten(0, 1)
    legend = "test images, each with its reconstruction on its right"
    save_grid(run, "reconstructions", pairs, writer, step, description=legend)


def draw_samples_by_class(run, model, writer, step):
    """samples.png: every class in twenty styles. Row = class, column = style z_j, the same in all rows.

    The z are the same at every checkpoint if no random numbers are drawn before. Returns one-hot labels, (rows, C).
    """
    y = torch.eye(model.classes, device=run.device)[:CLASSES]  # (rows, C)
    tiles = model.mean_x(model.sample_z(20), y.unsqueeze(1))  # (rows, 20, X)
    legend = "row = class, column = style z; the same z in all rows"
    save_grid(run, "samples", tiles, writer, step, description=legend)
    return y
