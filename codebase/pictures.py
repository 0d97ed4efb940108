"""Grids of images, as PNG files and in TensorBoard."""

from functools import partial

from torchvision.utils import make_grid, save_image

from codebase.checkpoints import write_atomically

CLASSES = 50  # of a data set of more classes, pictures with a row for each show the first ones


def grid(images, shape, columns=20):
    """Images (n, X) in [0, 1], each of shape (C, height, width), in rows of `columns`, left to right, top to bottom.

    Returns one image, (3, H, W) in [0, 1], with a thin grey line between its tiles.
    """
    return make_grid(images.reshape(-1, *shape).cpu(), nrow=columns, padding=1, pad_value=0.3)


def show(name, picture, folder, writer=None, step=None):
    """Write a picture (3, H, W) to folder/name.png, and to TensorBoard where there is a writer."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{name}.png", partial(save_image, picture, format="png"))
    if writer is not None:
        writer.add_image(name, picture, step)
