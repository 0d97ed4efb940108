"""Pictures: grids of images, as PNG files and in TensorBoard."""

import io

from codebase.runs.files import write_atomically


def grid(images, shape, columns=20):
    """Images (n, X) in [0, 1], each of shape (C, height, width), in rows of `columns`, left to right, top to bottom.

    Returns one image, (3, H, W) in [0, 1], with a thin grey line between its tiles.
    """
    from torchvision.utils import make_grid  # imported here, because it takes a second

    return make_grid(images.reshape(-1, *shape).cpu(), nrow=columns, padding=1, pad_value=0.3)


def save_grid(run, name, images, writer=None, step=None, columns=20, description=""):
    """Save a grid of images; see save_picture."""
    save_picture(run, name, grid(images, run.data.shape, columns), writer, step, description)


def save_picture(run, name, picture, writer=None, step=None, description=""):
    """Write a picture (3, H, W) in [0, 1] to logs/<run>/<name>.png, and to TensorBoard if there is a writer.

    description: its legend in TensorBoard.
    """
    from torchvision.utils import save_image

    png = io.BytesIO()
    save_image(picture, png, format="png")
    run.logs.mkdir(parents=True, exist_ok=True)
    write_atomically(run.logs / f"{name}.png", lambda file: file.write(png.getvalue()))
    if writer is not None:
        writer.add_image(name, png.getvalue(), picture.shape, step, description)
