"""Endless shuffled batches of training images, and the binarisation of grey images."""

import itertools

import numpy as np
import torch

from codebase.errors import InputError
from codebase.utils import scaled


def binarise(x):
    """A random binarisation of grey images, exactly Bern(x / 255). x: uint8. Returns float32 in {0, 1}."""
    return (x > torch.randint_like(x, 255)).float()  # randint: 0 to 254


def batches(tensors, batch_size, seed, start=0):
    """Endless batches of shuffled rows: tuples of (batch_size, ...), one from each of the tensors (of equal length N).

    Every epoch has a new order, a function of (seed, epoch) only; its last N mod batch_size rows are left out. So a run
    that is resumed at step `start` gets the batches of an uninterrupted run. If batch_size = N, the rows are not
    shuffled. Raises InputError if batch_size > N.
    """
    n, device = len(tensors[0]), tensors[0].device
    if batch_size > n:
        raise InputError(f"--batch_size {batch_size} is more than the {n:,} training images.")
    if batch_size == n:
        return itertools.repeat(tuple(tensors))

    def shuffled():
        order = None
        for step in itertools.count(start):
            epoch, i = divmod(step, n // batch_size)
            if order is None or i == 0:
                order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(n)).to(device)
            rows = order[i * batch_size : (i + 1) * batch_size]
            yield tuple(t.index_select(0, rows) for t in tensors)

    return shuffled()


def binary_batches(x, batch_size, seed, start=0):
    """Endless batches (x,) of freshly binarised grey images, otherwise as `batches`. x: (N, X) uint8. Yields (B, X)."""
    return ((binarise(rows),) for (rows,) in batches((x,), batch_size, seed, start))


def labelled_batches(x, y, classes, batch_size, seed, start=0):
    """Endless batches (x, y) of images in [0, 1] with their labels as one-hot rows, otherwise as `batches`.

    x: (N, X) uint8; y: (N,) int64. Yields (B, X) and (B, C), both float32.
    """
    return ((scaled(rows), one_hot(labels, classes)) for rows, labels in batches((x, y), batch_size, seed, start))


def semi_supervised_batches(x, x_labelled, y_labelled, batch_size, seed, start=0):
    """Endless batches (x, x_labelled, y_labelled), all images freshly binarised, otherwise as `batches`.

    x: (N, X) uint8, all images; x_labelled: (L, X) uint8; y_labelled: (L, C), one-hot rows. Yields (B, X), (B', X) and
    (B', C); B' = min(L, B): if L <= B, every batch has all labelled images.
    """
    unlabelled = batches((x,), batch_size, seed, start)
    labelled = batches((x_labelled, y_labelled), min(batch_size, len(x_labelled)), seed, start)
    both = zip(unlabelled, labelled, strict=True)
    return ((binarise(rows), binarise(rows_labelled), y) for (rows,), (rows_labelled, y) in both)


def one_hot(y, classes):
    """Labels (N,) int64 as one-hot rows (N, C), float32."""
    return torch.nn.functional.one_hot(y, classes).float()
