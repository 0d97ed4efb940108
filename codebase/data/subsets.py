"""The images that bounds are evaluated on, and the labelled images of an SSVAE; for MNIST those of the homework."""

import numpy as np
import torch

from codebase.data.batches import one_hot
from codebase.errors import InputError

TRAIN_IMAGES = 1000  # of the training images, those whose NELBO is a curve
# The homework's 100 test images of MNIST, two classes per line: positions among the images of the class, in file order.
# One of them occurs twice (class 5, 128), as in the published numbers.
MNIST_TEST_SUBSET = [
    [684,559,629,192,835,763,707,359,9,723], [277,599,1094,600,314,705,551,87,174,849],
    [537,845,72,777,115,976,755,448,850,99], [984,177,755,797,659,147,910,423,288,961],
    [265,697,639,544,543,714,244,151,675,510], [459,882,183,28,802,128,128,53,550,488],
    [756,273,335,388,617,42,442,543,888,257], [57,291,779,430,91,398,611,908,633,84],
    [203,324,774,964,47,639,131,972,868,180], [1000,846,143,660,227,954,791,719,909,373],
]  # fmt: skip

# In the same format the homework's 100 labelled training images of MNIST; one occurs twice (class 4, 2176).
MNIST_LABELLED = [
    [2732,2607,1653,3264,4931,4859,5827,1033,4373,5874], [5924,3468,6458,705,2599,2135,2222,2897,1701,537],
    [2893,2163,5072,4851,2046,1871,2496,99,2008,755], [797,659,3219,423,3337,2745,4735,544,714,2292],
    [151,2723,3531,2930,1207,802,2176,2176,1956,3622], [3560,756,4369,4484,1641,3114,4984,4353,4071,4009],
    [2105,3942,3191,430,4187,2446,2659,1589,2956,2681], [4180,2251,4420,4870,1071,4735,6132,5251,5068,1204],
    [3918,1167,1684,3299,2767,2957,4469,560,5425,1605], [5795,1472,3678,256,3762,5412,1954,816,2435,1634],
]  # fmt: skip


def test_subset(data):
    """Indices (n,) of the test images on which bounds are reported: about 100, fewer if there are fewer.

    MNIST: the homework's, in its order. Other data: 100 // C of each of the C classes that have test images, at least
    one, always the same ones (RandomState(0)); without labels, 100 of all images.
    """
    members = by_class(data.y_test, data.classes) if data.classes else [np.arange(len(data.x_test))]
    members = [of_class for of_class in members if len(of_class)]
    if data.name == "mnist":
        chosen = [m[rows] for m, rows in zip(members, MNIST_TEST_SUBSET, strict=True)]
    else:
        random = np.random.RandomState(0)
        chosen = [random.permutation(m)[: max(1, 100 // len(members))] for m in members]
    return torch.from_numpy(np.concatenate(chosen))


def labelled_subset(data, n, seed):
    """Indices (n,) of the labelled training images, the same number of each class, class by class.

    For MNIST and n = 100 the homework's, in its order; for other n, other data, or if there are validation images, they
    are chosen by the seed. Raises InputError if n is not a multiple of the number of classes, or if a class has too few
    images.
    """
    members = by_class(data.y_train, data.classes)
    each, rest = divmod(n, data.classes)
    if rest or n == 0:
        raise InputError(f"--labels {n} is not a multiple of {data.classes}, the number of classes.")
    there, few = min((len(m), c) for c, m in enumerate(members))
    if there < each:
        raise InputError(f"--labels {n} needs {each:,} training images of each class, but class {few} has {there:,}.")
    if data.name == "mnist" and n == 100 and data.n_validation == 0:
        chosen = [m[rows] for m, rows in zip(members, MNIST_LABELLED, strict=True)]
    else:
        random = np.random.default_rng(seed)
        chosen = [random.permutation(m)[:each] for m in members]
    return torch.from_numpy(np.concatenate(chosen))


def by_class(y, classes):
    """The indices of each class, in file order: a list of C arrays. y: (N,)."""
    return [np.flatnonzero(y.cpu().numpy() == c) for c in range(classes)]


def binarise_once(x):
    """The fixed binary version of grey test images, RandomState(0).binomial(1, x / 255). x, result: (N, X) uint8."""
    grey = x.cpu().numpy().astype(np.float32) / np.float32(255)
    return torch.from_numpy(np.random.RandomState(0).binomial(1, grey).astype(np.uint8)).to(x.device)


def binary_splits(data):
    """The images that bounds are evaluated on, binarised: {'subset': (x,), 'test': (x,), 'train': (x,)}, x float32.

    subset: the test images of test_subset; test: all test images; train: the first training images, TRAIN_IMAGES or
    fewer. If there are validation images: also 'validation'.
    """
    x = rows_of_each_split(data, "x")
    return {name: (binarise_once(x[name]).float(),) for name in x}


def labelled_splits(data):
    """The same with labels, not binarised: {'subset': (x, y), 'test': (x, y), 'train': (x, y)}, x uint8, y one-hot."""
    x, y = rows_of_each_split(data, "x"), rows_of_each_split(data, "y")
    return {name: (x[name], one_hot(y[name], data.classes)) for name in x}


def rows_of_each_split(data, kind):
    """The images of each split, or the labels. kind: 'x' or 'y'."""
    train, test, validation = (getattr(data, f"{kind}_{part}") for part in ("train", "test", "validation"))
    rows = {"subset": test[test_subset(data).to(test.device)], "test": test, "train": train[:TRAIN_IMAGES]}
    return rows if validation is None else rows | {"validation": validation}
