"""The images that bounds are evaluated on, and the labelled images of an SSVAE; for MNIST those of the homework."""

import numpy as np
import torch

from codebase.errors import InputError

TRAIN_IMAGES = 1000  # of the training images, those whose NELBO is a curve


def test_subset(data):
    """Indices (n,) of the test images on which bounds are reported: about 100, fewer if there are fewer.

    100 // C of each of the C classes that have test images, at least one, always the same ones; without labels, 100 of
    all images. For MNIST the homework's, drawn with replacement: one of them occurs twice.
    """
    members = by_class(data.y_test, data.classes) if data.classes else [np.arange(len(data.x_test))]
    members = [of_class for of_class in members if len(of_class)]
    each, twice, random = max(1, 100 // len(members)), data.name == "mnist", np.random.RandomState(0)
    chosen = [random.choice(of_class, min(each, len(of_class)), replace=twice) for of_class in members]
    return torch.from_numpy(np.concatenate(chosen))


def labelled_subset(data, n, seed):
    """Indices (n,) of the labelled training images, the same number of each class, class by class.

    They are chosen by the seed. For MNIST, n = 100, and no validation images they are the homework's, drawn with
    replacement: one occurs twice. InputError if n is not a multiple of the number of classes, or a class has too few.
    """
    members = by_class(data.y_train, data.classes)
    each, rest = divmod(n, data.classes)
    if rest or n == 0:
        raise InputError(f"--labels {n} is not a multiple of {data.classes}, the number of classes.")
    there, few = min((len(of_class), c) for c, of_class in enumerate(members))
    if there < each:
        need = f"{n} labels need {each:,} training images of each class, but class {few} has {there:,}"
        raise InputError(f"{need}: --labels {there * data.classes} is the most.")
    if data.name == "mnist" and n == 100 and data.n_validation == 0:
        random = np.random.RandomState(0)
        chosen = [random.choice(of_class, each) for of_class in members]
    else:
        random = np.random.default_rng(seed)
        chosen = [random.permutation(of_class)[:each] for of_class in members]
    return torch.from_numpy(np.concatenate(chosen))


def by_class(y, classes):
    """The indices of each class, in file order: a list of C arrays. y: (N,)."""
    return [np.flatnonzero(y.cpu().numpy() == c) for c in range(classes)]


def one_hot(y, classes):
    """Labels (N,) int64 as one-hot rows (N, C), float32."""
    return torch.nn.functional.one_hot(y, classes).float()


def binarise_once(x):
    """The fixed binary version of grey test images, RandomState(0).binomial(1, x / 255). x, result: (N, X) uint8."""
    grey = x.cpu().numpy().astype(np.float32) / np.float32(255)
    return torch.from_numpy(np.random.RandomState(0).binomial(1, grey).astype(np.uint8)).to(x.device)


def binary_splits(data):
    """The images that bounds are evaluated on, binarised: {'subset': (x,), 'test': (x,), 'train': (x,)}, x float32.

    subset: the test images of test_subset; test: all; train: the first TRAIN_IMAGES training images. If there are
    validation images: also 'validation'.
    """
    return {name: (binarise_once(x).float(),) for name, x in rows_of_each_split(data, "x").items()}


def labelled_splits(data):
    """The same with labels, not binarised: {'subset': (x, y), 'test': (x, y), 'train': (x, y)}, x uint8, y one-hot."""
    x, y = rows_of_each_split(data, "x"), rows_of_each_split(data, "y")
    return {name: (x[name], one_hot(y[name], data.classes)) for name in x}


def rows_of_each_split(data, kind):
    """The images of each split, or the labels. kind: 'x' or 'y'."""
    train, test, validation = (getattr(data, f"{kind}_{part}") for part in ("train", "test", "validation"))
    rows = {"subset": test[test_subset(data).to(test.device)], "test": test, "train": train[:TRAIN_IMAGES]}
    return rows | {"validation": validation} if data.n_validation else rows
