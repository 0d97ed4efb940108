"""Grids of images: which image is where."""

from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from codebase.runs import pictures


def test_rows_from_left_to_right(tmp_path):
    """Six colour images of 2 x 3 pixels in rows of three: each is in its place, upright, in its own colour."""
    images = torch.arange(6 * 3 * 2 * 3).reshape(6, -1) / 255
    run = SimpleNamespace(data=SimpleNamespace(shape=(3, 2, 3)), logs=tmp_path)
    pictures.save_grid(run, "six", images, columns=3)
    with Image.open(tmp_path / "six.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (2 * 3 + 1, 3 * 4 + 1, 3)
    for i in range(6):
        row, column = divmod(i, 3)
        tile = pixels[1 + 3 * row : 3 + 3 * row, 1 + 4 * column : 4 + 4 * column]
        assert tile.transpose(2, 0, 1).ravel().tolist() == (images[i] * 255).round().int().tolist()
