"""Shuffled batches of training images, as a function of the step, and the binarisation of grey images."""

import numpy as np
import torch

from codebase.data.subsets import one_hot
from codebase.errors import InputError
from codebase.utils import scaled


def binarise(x):
    """A random binarisation of grey images: uint8, exactly Bern(x / 255), or floats, Bern(x). Returns float32."""
    if x.is_floating_point():
        return torch.bernoulli(x)
    return (x > torch.randint_like(x, 255)).float()  # randint: 0 to 254


class Batches:
    """batches[t]: the shuffled rows of training step t = 0, 1, ..., a tuple of (batch_size, ...), one of each tensor.

    tensors: of equal length N. Every epoch has a new order, a function of (seed, epoch) only; its last N mod batch_size
    rows are left out. If batch_size = N, the rows are not shuffled. Raises InputError if batch_size > N.
    """

    def __init__(self, tensors, batch_size, seed):
        n = len(tensors[0])
        if batch_size > n:
            raise InputError(f"--batch_size {batch_size} is more than the {n:,} training images.")
        self.tensors, self.batch_size, self.seed = tuple(tensors), batch_size, seed
        self.epoch = self.order = None  # the newest one

    def __getitem__(self, t):
        n, device = len(self.tensors[0]), self.tensors[0].device
        if self.batch_size == n:
            return self.tensors
        epoch, i = divmod(t, n // self.batch_size)
        if epoch != self.epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(n)
            self.epoch, self.order = epoch, torch.from_numpy(order).to(device)
        rows = self.order[i * self.batch_size : (i + 1) * self.batch_size]
        return tuple(each.index_select(0, rows) for each in self.tensors)


class Prepared:
    """batches[t]: prepare(*rows), where rows are those of all `parts` at step t."""

    def __init__(self, prepare, *parts):
        self.prepare, self.parts = prepare, parts

    def __getitem__(self, t):
        return self.prepare(*(rows for part in self.parts for rows in part[t]))


def binary_batches(x, batch_size, seed):
    """Batches (x,), (B, X), freshly binarised. x: grey images, (N, X) uint8."""
    return Prepared(lambda x: (binarise(x),), Batches((x,), batch_size, seed))


def labelled_batches(x, y, classes, batch_size, seed):
    """Batches (x, y): images in [0, 1], (B, X), and one-hot rows, (B, C), float32. x: (N, X) uint8; y: (N,) int64."""
    if y.min() < 0:
        raise InputError("this model needs the labels of all training images; some have none (-1).")
    return Prepared(lambda x, y: (scaled(x), one_hot(y, classes)), Batches((x, y), batch_size, seed))


def semi_supervised_batches(x, x_labelled, y_labelled, batch_size, seed):
    """Batches (x, x_labelled, y_labelled), (B, X), (B', X) and (B', C), all images freshly binarised.

    x: (N, X) uint8, all images; x_labelled: (L, X) uint8; y_labelled: (L, C), one-hot rows. B' = min(L, B): if L <= B,
    every batch has all labelled images.
    """
    every = Batches((x,), batch_size, seed)
    few = Batches((x_labelled, y_labelled), min(batch_size, len(x_labelled)), seed)
    return Prepared(lambda x, x_labelled, y: (binarise(x), binarise(x_labelled), y), every, few)
