"""Data sets by name, as uint8 tensors; endless shuffled batches; the homework's test subset.

Dimension letters: N images, B images of a batch, X pixels (channel first, flattened), C classes.
"""

import contextlib
import gzip
import hashlib
import http.client
import io
import itertools
import re
import shutil
import socket
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from codebase import glyphs, processes
from codebase.errors import InputError


class Data(NamedTuple):
    """A data set. Labels are used to choose subsets, and by the models that are conditioned on them."""

    name: str  # as in the run name: mnist, svhn, glyphs, or an .npz file's name with a checksum of its contents
    origin: str  # where it came from, in words
    shape: tuple  # of one image, (channels, height, width)
    classes: int  # C; 0 without labels
    x_train: torch.Tensor  # (N, X) uint8
    y_train: torch.Tensor  # (N,) int64, 0 to C - 1; None without labels
    x_test: torch.Tensor
    y_test: torch.Tensor

    @property
    def x_dim(self):
        """X, the values of one image."""
        return self.x_train.shape[1]


GREY = (1, 28, 28)
COLOUR = (3, 32, 32)
MAX_CLASSES = 1000  # of images of one's own
GLYPHS_SEED = 236  # the glyphs are one data set: their seed is not the run's

# MNIST's four files, unpacked: name, bytes of header, bytes in all, SHA-256.
MNIST_FILES = [
    (
        "train-images-idx3-ubyte",
        16,
        47_040_016,
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    ("train-labels-idx1-ubyte", 8, 60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    ("t10k-images-idx3-ubyte", 16, 7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    ("t10k-labels-idx1-ubyte", 8, 10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
]

# The homework's 100 test images of MNIST: positions among the images of each class, in file order. One of them is there
# twice (class 5, 128); it stays, because the published numbers have it.
MNIST_TEST_SUBSET = [
    [684, 559, 629, 192, 835, 763, 707, 359, 9, 723],
    [277, 599, 1094, 600, 314, 705, 551, 87, 174, 849],
    [537, 845, 72, 777, 115, 976, 755, 448, 850, 99],
    [984, 177, 755, 797, 659, 147, 910, 423, 288, 961],
    [265, 697, 639, 544, 543, 714, 244, 151, 675, 510],
    [459, 882, 183, 28, 802, 128, 128, 53, 550, 488],
    [756, 273, 335, 388, 617, 42, 442, 543, 888, 257],
    [57, 291, 779, 430, 91, 398, 611, 908, 633, 84],
    [203, 324, 774, 964, 47, 639, 131, 972, 868, 180],
    [1000, 846, 143, 660, 227, 954, 791, 719, 909, 373],
]

# The homework's 100 training images of MNIST whose labels the SSVAE sees, likewise; one is there twice (class 4, 2176).
MNIST_LABELLED = [
    [2732, 2607, 1653, 3264, 4931, 4859, 5827, 1033, 4373, 5874],
    [5924, 3468, 6458, 705, 2599, 2135, 2222, 2897, 1701, 537],
    [2893, 2163, 5072, 4851, 2046, 1871, 2496, 99, 2008, 755],
    [797, 659, 3219, 423, 3337, 2745, 4735, 544, 714, 2292],
    [151, 2723, 3531, 2930, 1207, 802, 2176, 2176, 1956, 3622],
    [3560, 756, 4369, 4484, 1641, 3114, 4984, 4353, 4071, 4009],
    [2105, 3942, 3191, 430, 4187, 2446, 2659, 1589, 2956, 2681],
    [4180, 2251, 4420, 4870, 1071, 4735, 6132, 5251, 5068, 1204],
    [3918, 1167, 1684, 3299, 2767, 2957, 4469, 560, 5425, 1605],
    [5795, 1472, 3678, 256, 3762, 5412, 1954, 816, 2435, 1634],
]


def load(dataset, data_dir="data", auto="mnist", split="extra"):
    """The data set of that name.

    dataset: 'mnist' or 'svhn' (from data_dir, or downloaded to it, never another), 'glyphs' (the built-in digits, grey,
    or in colour if auto is 'svhn'), the path of an .npz file, or 'auto': the data set that `auto` names, and if it
    cannot be had the glyphs, said loudly. split: which of SVHN's files are the training images: 'extra', 'train', or
    'train+extra'. Raises InputError, with nothing written.
    """
    dataset, colour = str(dataset), auto == "svhn"
    if dataset.endswith(".npz"):
        return read_npz(Path(dataset))
    if dataset == "glyphs":
        return draw_glyphs(colour)
    read = {"mnist": lambda: read_mnist(Path(data_dir)), "svhn": lambda: read_svhn(Path(data_dir), split)}
    if dataset not in ("auto", *read):
        raise InputError(f"--dataset {dataset}: the choices are auto, mnist, svhn, glyphs, and a path of an .npz file.")
    try:
        with processes.first_one_first():  # which downloads what is missing
            return read[auto if dataset == "auto" else dataset]()
    except DownloadError as error:
        if dataset != "auto":
            raise
        line = "!" * 100
        print(
            f"{line}\n{error}\nUSING THE BUILT-IN GLYPHS INSTEAD: the numbers below are not {auto.upper()}'s.\n{line}"
        )
        return draw_glyphs(colour)


def require_labels(data):
    """InputError if the data set has no labels, or all are the same."""
    if data.classes < 2:
        why = "has labels of one class only" if data.classes else "has no labels (y_train, y_test)"
        raise InputError(f"{data.origin} {why}; this model needs those of two classes or more.")


def to_data(name, origin, shape, classes, x_train, y_train, x_test, y_test):
    """Data from numpy arrays of images (N, ...), and of labels (N,) if there are any."""
    images = [torch.tensor(x).flatten(1) for x in (x_train, x_test)]
    labels = [torch.tensor(y.astype(np.int64)) if classes else None for y in (y_train, y_test)]  # native byte order
    return Data(name, origin, shape, classes, images[0], labels[0], images[1], labels[1])


def draw_glyphs(colour):
    """60,000 training and 10,000 test images of the built-in digits; the same on every machine."""
    x, y = glyphs.draw(70_000, GLYPHS_SEED, colour=colour)
    parts = x[:60_000], y[:60_000], x[60_000:], y[60_000:]
    return to_data("glyphs", "the built-in glyphs", COLOUR if colour else GREY, 10, *parts)


# MNIST


class DownloadError(InputError):
    """The data are not on this machine and could not be downloaded."""


def read_mnist(data_dir):
    """MNIST from torchvision's layout, data_dir/MNIST/raw, each file plain or gzipped; downloaded where one is missing.

    Raises InputError for a file that is not MNIST's, and DownloadError.
    """
    raw = data_dir / "MNIST" / "raw"
    if not all(find_mnist(raw, name) for name, *_ in MNIST_FILES):
        download_mnist(data_dir)
    x_train, y_train, x_test, y_test = (read_mnist_file(raw, *file) for file in MNIST_FILES)
    return to_data("mnist", f"MNIST from {raw}", GREY, 10, x_train, y_train, x_test, y_test)


def find_mnist(raw, name):
    """The path of one of MNIST's files, plain or gzipped; None where there is neither."""
    return next((path for path in (raw / name, raw / f"{name}.gz") if path.is_file()), None)


def read_mnist_file(raw, name, header, size, sha256):
    """The images (N, 28, 28) or labels (N,) of one of MNIST's files, uint8. Its checksum says that it is genuine."""
    path = find_mnist(raw, name)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read(size + 1)  # no more, whatever a damaged file would unpack to
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged ({error}): delete it and it will be downloaded again.") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        length = "more than" if len(content) > size else f"{len(content):,} of"
        raise InputError(
            f"{path} is not MNIST's file of that name ({length} {size:,} bytes): delete it and it will be downloaded "
            "again; other images than MNIST's come as --dataset FILE.npz."
        )
    values = np.frombuffer(content, np.uint8, offset=header)
    return values.reshape(-1, 28, 28) if "images" in name else values


def download_mnist(data_dir):
    """Put MNIST's files into data_dir/MNIST/raw through torchvision, checked by its checksums. Raises DownloadError."""

    def fetch(folder):
        from torchvision.datasets import MNIST  # here, because importing it takes a second

        with contextlib.redirect_stdout(io.StringIO()):  # its list of failed mirrors; the last one is in the error
            MNIST(folder, download=True)
        return Path(folder, "MNIST", "raw").glob("*.gz")

    download("MNIST", [f"{name}.gz" for name, *_ in MNIST_FILES], data_dir / "MNIST" / "raw", data_dir, fetch)


def download(what, names, target, data_dir, fetch):
    """Put files into the folder `target`, within data_dir, all or none of them.

    names: the files', for the error; fetch(folder) -> the paths of the files, which it has put into an empty folder and
    checked. A server that sends no byte for 20 s is given up. Raises DownloadError.
    """
    patience = socket.getdefaulttimeout()
    beside = next(path for path in [data_dir.absolute(), *data_dir.absolute().parents] if path.is_dir())
    try:
        socket.setdefaulttimeout(20)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=beside) as folder:
            print(f"downloading  {what} to {target}", flush=True)
            paths = list(fetch(folder))
            target.mkdir(parents=True, exist_ok=True)
            for path in paths:
                shutil.move(path, target / path.name)
    except (OSError, EOFError, RuntimeError, ValueError, zlib.error, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DownloadError(
            f"{what} could not be downloaded ({reason}). Put its files ({', '.join(names)}) into {target}, "
            "or say where they are with --data_dir."
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


# SVHN

SVHN_SPLITS = {"extra": ["extra"], "train": ["train"], "train+extra": ["train", "extra"]}
SVHN_ROWS = 4096  # images of a file that are turned at a time, so that there is no second copy of all


def read_svhn(data_dir, split):
    """SVHN from torchvision's layout, data_dir/{train,extra,test}_32x32.mat; downloaded where one is missing.

    split: the training images. Raises InputError for a file that is not SVHN's, and DownloadError.
    """
    train = SVHN_SPLITS[split]
    names = [f"{part}_32x32.mat" for part in (*train, "test")]
    missing = [name for name in names if not (data_dir / name).is_file()]
    if missing:
        download_svhn(data_dir, missing)
    *parts, test = (read_svhn_file(data_dir / name) for name in names)
    x_train, y_train = parts[0] if len(parts) == 1 else (torch.cat(each) for each in zip(*parts, strict=True))
    return Data("svhn", f"SVHN, {split}, from {data_dir}", COLOUR, 10, x_train, y_train, *test)


def read_svhn_file(path):
    """The images (N, 3072) and labels (N,) of one of SVHN's files. Its checksum says that it is genuine.

    The file holds X, (32, 32, 3, N) uint8: row, column, channel, image; and y, (N, 1), with 10 for the digit 0.
    """
    import scipy.io  # here, because only SVHN needs it
    from torchvision.datasets import SVHN
    from torchvision.datasets.utils import check_md5

    md5 = {name: md5 for _, name, md5 in SVHN.split_list.values()}[path.name]
    if not check_md5(path, md5):
        raise InputError(
            f"{path} is not SVHN's file of that name, or damaged: delete it and it will be downloaded again."
        )
    content = scipy.io.loadmat(path, variable_names=["X", "y"])
    x = np.require(content.pop("X"), np.uint8, ["F", "W"]).T  # (N, 3, column, row), in the order of memory
    for i in range(0, len(x), SVHN_ROWS):
        rows = x[i : i + SVHN_ROWS]
        rows[:] = rows.swapaxes(2, 3).copy()  # (n, 3, row, column)
    y = content["y"].ravel().astype(np.int64) % 10
    return torch.from_numpy(x).flatten(1), torch.from_numpy(y)


def download_svhn(data_dir, names):
    """Put files of SVHN into data_dir, from torchvision's address, checked by its checksums. Raises DownloadError."""

    def fetch(folder):
        from torchvision.datasets import SVHN
        from torchvision.datasets.utils import download_url

        for url, name, md5 in SVHN.split_list.values():
            if name in names:
                download_url(url, folder, name, md5)
        return Path(folder).glob("*.mat")

    download("SVHN", names, data_dir, data_dir, fetch)


# Images of one's own


def read_npz(path):
    """One's own images from an .npz in the layout of Keras: x_train, y_train, x_test, y_test.

    Images uint8, grey (N, height, width[, 1]) or in colour (N, height, width, 3); labels integers from 0 to at most
    999, (N,), or none at all. Nothing in the file is executed: pickled arrays are refused. Raises InputError.
    """
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            there = list(file)
            arrays = {name: file[name] for name in names if name in there}
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; --dataset takes the path of an .npz file.") from error
    except Exception as error:  # a damaged file makes numpy and zipfile raise a dozen kinds of them
        if isinstance(error, PermissionError):
            raise
        reason = str(error) or type(error).__name__
        raise InputError(f"{path} is not a readable .npz file of plain arrays ({reason}).") from error

    unlabelled = not any(name.startswith("y") for name in arrays)
    missing = [name for name in names if name not in arrays and not (unlabelled and name.startswith("y"))]
    if missing:
        raise InputError(f"{path} has no array {', '.join(missing)}; it has {', '.join(there) or 'none'}.")
    for name in ("x_train", "x_test"):
        arrays[name] = check_images(f"{path}: {name}", arrays[name])
    shape = arrays["x_train"].shape[1:]
    if arrays["x_test"].shape[1:] != shape:
        raise InputError(f"{path}: x_train and x_test must hold images of the same size and number of channels.")
    classes = 0
    for name in () if unlabelled else ("train", "test"):
        classes = max(classes, check_labels(f"{path}: y_{name}", arrays[f"y_{name}"], len(arrays[f"x_{name}"])))

    checksum = 0
    for name in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(arrays[name], dtype=np.uint8), checksum)
    stem = re.sub(r"[^A-Za-z0-9.-]+", "-", path.stem)
    return to_data(f"{stem}-{checksum:08x}", str(path), shape, classes, *(arrays.get(name) for name in names))


def check_images(name, x):
    """Images (N, height, width[, channels]) as (N, channels, height, width). Raises InputError for anything else."""
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or x.shape[3:] not in ((), (1,), (3,)) or x.size == 0:
        raise InputError(
            f"{name} must hold grey images as (N, height, width) or colour images as (N, height, width, 3), N at least "
            f"1, of uint8 values from 0 to 255; it is {x.shape} {x.dtype}."
        )
    return (x if x.ndim == 4 else x[..., None]).transpose(0, 3, 1, 2)


def check_labels(name, y, n):
    """The number of classes, the largest label + 1. InputError if y is not n integers from 0 to MAX_CLASSES - 1."""
    if y.shape != (n,) or y.dtype.kind not in "iu":
        raise InputError(f"{name} must hold {n:,} whole numbers, one for each image; it is {y.shape} {y.dtype}.")
    if y.min() < 0 or y.max() >= MAX_CLASSES:
        raise InputError(f"{name} must hold labels from 0 to at most 999; its labels are from {y.min()} to {y.max()}.")
    return int(y.max()) + 1


# Subsets and batches


def test_subset(data):
    """Indices of the test images that the bounds are reported on, about 100, or fewer where there are fewer. (n,).

    MNIST: the homework's, in its order. Other data: 100 // C of each class, at least one, chosen once and for all
    (RandomState(0)); without labels 100 of all.
    """
    members = by_class(data.y_test, data.classes) if data.classes else [np.arange(len(data.x_test))]
    if data.name == "mnist":
        chosen = [m[rows] for m, rows in zip(members, MNIST_TEST_SUBSET, strict=True)]
    else:
        random = np.random.RandomState(0)
        chosen = [random.permutation(m)[: max(1, 100 // len(members))] for m in members]
    return torch.from_numpy(np.concatenate(chosen))


def labelled_subset(data, n, seed):
    """Indices of the n training images whose labels are seen, the same number of each class, class by class. (n,).

    100 of MNIST are the homework's, in its order; others are chosen by the seed. Raises InputError where n is not a
    multiple of the number of classes, or a class has too few images.
    """
    members = by_class(data.y_train, data.classes)
    each, rest = divmod(n, data.classes)
    if rest or n == 0:
        raise InputError(
            f"--labels {n} is not a multiple of {data.classes}: each class needs the same number of labelled images."
        )
    few = min(range(data.classes), key=lambda c: len(members[c]))
    if len(members[few]) < each:
        raise InputError(
            f"--labels {n} takes {each:,} training images of each class, but class {few} has {len(members[few]):,}."
        )
    if data.name == "mnist" and n == 100:
        chosen = [m[rows] for m, rows in zip(members, MNIST_LABELLED, strict=True)]
    else:
        random = np.random.default_rng(seed)
        chosen = [random.permutation(m)[:each] for m in members]
    return torch.from_numpy(np.concatenate(chosen))


def by_class(y, classes):
    """The indices of each class, in file order: a list of C arrays. y: (N,)."""
    return [np.flatnonzero(y.numpy() == c) for c in range(classes)]


def binarise_once(x):
    """The fixed binary version of grey test images, RandomState(0).binomial(1, x / 255). (N, X) uint8, as x is."""
    grey = x.numpy().astype(np.float32) / np.float32(255)
    return torch.from_numpy(np.random.RandomState(0).binomial(1, grey).astype(np.uint8))


def binarise(x):
    """A fresh binary version of grey images on their own device: x' ~ Bern(x / 255), exactly.

    x: uint8. Returns float32 in {0, 1}. The grey value is compared with a uniform integer of 0 to 254.
    """
    return (x > torch.randint_like(x, 255)).float()


def batches(tensors, batch_size, seed, start=0):
    """Endless batches of shuffled rows: tuples of (batch_size, ...), one from each of the tensors (of equal length N).

    Every epoch is a fresh order, a function of (seed, epoch) alone, and leaves out the last N mod batch_size rows of
    it; so the batches from step `start` on are those that an uninterrupted run sees there. Where all rows are one batch
    they are left in their order. Raises InputError where batch_size > N.
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
    (B', C); B' = L, the labelled images of every step, or B where there are more than that.
    """
    unlabelled = batches((x,), batch_size, seed, start)
    labelled = batches((x_labelled, y_labelled), min(batch_size, len(x_labelled)), seed, start)
    both = zip(unlabelled, labelled, strict=True)
    return ((binarise(rows), binarise(rows_labelled), y) for (rows,), (rows_labelled, y) in both)


def scaled(x):
    """uint8 values as float32 in [0, 1]."""
    return x.float() / 255


def one_hot(y, classes):
    """Labels (N,) int64 as rows (N, C), float32."""
    return torch.nn.functional.one_hot(y, classes).float()


def binary_splits(data, device):
    """Images that bounds are evaluated on, binarised once: {'subset': (x,), 'test': (x,), 'train': (x,)}, x float32.

    subset: the test images of test_subset; test: all of them; train: as many training images as in the subset.
    """
    return {name: (binarise_once(x).float().to(device),) for name, (x, _) in evaluated(data).items()}


def labelled_splits(data, device):
    """The same with labels: {'subset': (x, y), 'test': (x, y), 'train': (x, y)}, x uint8, y one-hot rows."""
    splits = evaluated(data).items()
    return {name: (x.to(device), one_hot(y, data.classes).to(device)) for name, (x, y) in splits}


def evaluated(data):
    """The images of the splits, and their labels if there are any: {name: (x, y)}."""
    subset = test_subset(data)
    parts = {"subset": (data.x_test, data.y_test, subset), "test": (data.x_test, data.y_test, slice(None))}
    parts["train"] = data.x_train, data.y_train, slice(len(subset))
    return {name: (x[rows], None if y is None else y[rows]) for name, (x, y, rows) in parts.items()}
