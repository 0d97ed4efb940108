"""Data sets by name, as uint8 tensors. Scripts and notebooks use data.<name>.

mnist, svhn, npz and glyphs read or draw images; subsets chooses those that are evaluated, and the labelled ones of an
SSVAE; batches has the training batches. N images, B images of a batch, X pixels (channel first, flattened), C classes.
"""

# ruff: noqa: F401 (names imported here for use as data.<name>)

from pathlib import Path
from typing import NamedTuple

import torch

from codebase.data import glyphs, mnist, npz, svhn
from codebase.data.batches import Batches, Prepared, binarise, binary_batches, labelled_batches, semi_supervised_batches
from codebase.data.download import DownloadError
from codebase.data.subsets import binarise_once, binary_splits, labelled_splits, labelled_subset, one_hot, test_subset
from codebase.data.svhn import SVHN_SPLITS
from codebase.errors import InputError
from codebase.utils import scaled

GLYPHS_SEED = 236  # a fixed data set: its seed does not depend on the run


class Data(NamedTuple):
    """A data set. Labels are used to choose subsets, and by models that condition on them."""

    name: str  # as in the run name: mnist, svhn, glyphs, or an .npz file's name with a checksum of its contents
    origin: str  # where the data come from, for messages
    shape: tuple  # of one image, (channels, height, width)
    classes: int  # C; 0 without labels
    x_train: torch.Tensor  # (N, X) uint8
    y_train: torch.Tensor  # (N,) int64, 0 to C - 1, or -1: without a label; None without labels
    x_test: torch.Tensor
    y_test: torch.Tensor
    x_validation: torch.Tensor = None  # None or empty without validation images
    y_validation: torch.Tensor = None

    @property
    def x_dim(self):
        """X, the number of values of one image."""
        return self.x_train.shape[1]

    @property
    def n_validation(self):
        """The number of validation images."""
        return 0 if self.x_validation is None else len(self.x_validation)

    def sizes(self):
        """The numbers of images."""
        return {"train": len(self.x_train), "test": len(self.x_test), "validation": self.n_validation}

    def to(self, device):
        """The data set on a device."""
        return self._replace(**{k: v.to(device) for k, v in self._asdict().items() if isinstance(v, torch.Tensor)})

    def hold_out(self, n):
        """The data set whose last n training images are validation images. InputError if no training image is left."""
        x, y, left = self.x_train, self.y_train, len(self.x_train) - n
        if left < 1:
            raise InputError(f"--validation {n} leaves none of the {len(x):,} training images.")
        images = self._replace(x_train=x[:left], x_validation=x[left:])
        return images if y is None else images._replace(y_train=y[:left], y_validation=y[left:])


def load(dataset, data_dir=None, usual="mnist", split="extra"):
    """The data set of that name. Raises InputError.

    dataset: 'mnist' or 'svhn' (in data_dir, by default data; missing files are downloaded), 'glyphs' (the built-in
    digits, in colour if `usual` is 'svhn'), the path of an .npz file, or 'auto': `usual`, or the glyphs, with a
    warning, if that cannot be downloaded. split: SVHN's training images, a key of SVHN_SPLITS.
    """
    dataset, folder = str(dataset), Path(data_dir or "data")
    name = usual if dataset == "auto" else dataset
    if split != "extra" and name != "svhn":
        raise InputError(f"--split {split} is for SVHN: it cannot be used with --dataset {dataset}.")
    if name.endswith(".npz"):
        return Data(*npz.read(Path(name)))
    if name == "glyphs":
        return draw_glyphs(usual == "svhn")
    if name not in ("mnist", "svhn"):
        raise InputError(f"--dataset {dataset}: the choices are auto, mnist, svhn, glyphs, or a path of an .npz file.")
    try:
        return Data(*(mnist.read(folder) if name == "mnist" else svhn.read(folder, split)))
    except DownloadError as error:
        if dataset != "auto":
            raise
        instead = f"USING THE BUILT-IN GLYPHS INSTEAD: the numbers below are not {usual.upper()}'s."
        again = "To resume or evaluate this run, add --dataset glyphs."
        print("!" * 100, error, instead, again, "!" * 100, sep="\n")
        return draw_glyphs(usual == "svhn")


def draw_glyphs(colour):
    """60,000 training and 10,000 test images of the built-in digits; the same on every machine."""
    x, y = map(torch.from_numpy, glyphs.draw(70_000, GLYPHS_SEED, colour=colour))
    shape, x = tuple(x.shape[1:]), x.flatten(1)
    return Data("glyphs", "the built-in glyphs", shape, 10, x[:60_000], y[:60_000], x[60_000:], y[60_000:])


def require_labels(data):
    """Raises InputError if the data set has no labels, only one class, or no training image of a class."""
    need = "this model needs labels of at least two classes, from 0 on, each with training images"
    if data.classes < 2:
        raise InputError(f"{data.origin} has {'labels of one class only' if data.classes else 'no labels'}; {need}.")
    absent = sorted({*range(data.classes)} - {*data.y_train.unique().tolist()})
    if absent:
        shuffle = "; --validation holds out the last ones: shuffle them" if data.n_validation else ""
        raise InputError(f"{data.origin} has no training image of class {absent[0]}; {need}{shuffle}.")
    if data.n_validation and data.y_validation.min() < 0:
        raise InputError(f"--validation {data.n_validation} holds out images without a label (-1).")
