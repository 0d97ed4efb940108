"""The built-in digits: the same bytes everywhere, digits of every class, variation within a class."""

import hashlib

import numpy as np
import pytest

from codebase.data import glyphs

CHECKSUMS = {
    False: "f377fa5edc5af1e82831f6e2e9962104162269936752e29f7bfc363fa0fb2edf",
    True: "55958285d804aab3de078c82eb00458201d27b2b0c67dbb6bb092c5f0843903f",
}


@pytest.mark.parametrize("colour", [False, True])
def test_the_same_bytes_on_every_machine(colour):
    x, y = glyphs.draw(1200, seed=3, colour=colour)
    assert x.shape == ((1200, 3, 32, 32) if colour else (1200, 1, 28, 28))
    assert (x.dtype, y.dtype) == (np.uint8, np.int64)
    assert hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest() == CHECKSUMS[colour]
    assert not np.array_equal(x[:10], glyphs.draw(10, seed=1, colour=colour)[0])


@pytest.mark.slow
@pytest.mark.parametrize("colour", [False, True])
def test_labels_tell_the_digits_and_digits_vary(colour):
    """The nearest of 5,000 others has the same label far above chance (0.1), and no two images are alike."""
    x, y = glyphs.draw(5200, seed=0, colour=colour)
    assert ((np.bincount(y, minlength=10) - 520) ** 2 / 520).sum() < 33  # chi-square: once in 10,000 seeds
    flat = x.reshape(len(x), -1).astype(np.float32)
    if colour:  # the sign of the contrast is no property of the digit
        flat = flat.reshape(-1, 3, 1024).mean(1)
        flat = np.abs(flat - np.median(flat, axis=1, keepdims=True))
    flat -= flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    similarity = flat[:200] @ flat[200:].T
    right = (y[200:][similarity.argmax(1)] == y[:200]).mean()
    assert right > (0.5 if colour else 0.9)
    assert similarity.max() < 0.999


def test_grey_digits_have_mnists_look():
    """White on black, about as much ink as MNIST's (13 % of the brightest possible), dark at the border."""
    x, _ = glyphs.draw(1000, seed=0)
    assert 0.09 < x.mean() / 255 < 0.16
    border = np.concatenate([x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]], axis=-1)
    assert border.mean() < 1
    assert (x == 0).mean() > 0.6
    assert (x.max((1, 2, 3)) == 255).mean() > 0.9
