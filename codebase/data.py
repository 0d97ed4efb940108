"""Data sets by name, as uint8 tensors; endless shuffled batches; the homework's test subset.

Dimension letters: N images, B images of a batch, X pixels (channel first, flattened), C channels.
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

from codebase import InputError, glyphs


class Data(NamedTuple):
    """A data set. Labels are only there to choose subsets and for the models that use them."""

    name: str  # as in the run name: mnist, svhn, glyphs, or an .npz file's name with a checksum of its contents
    origin: str  # where it came from, in words
    shape: tuple  # of one image, (C, height, width)
    x_train: torch.Tensor  # (N, X) uint8
    y_train: torch.Tensor  # (N,) int64, 0 to 9
    x_test: torch.Tensor
    y_test: torch.Tensor


GREY = (1, 28, 28)
COLOUR = (3, 32, 32)
CLASSES = 10
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


def load(dataset, data_dir):
    """The data set of that name, of grey 28 x 28 images.

    dataset: 'mnist' (from data_dir, or downloaded to it, never another), 'auto' (the same, and where that fails the
    glyphs, said loudly), 'glyphs', or the path of an .npz file. Raises InputError, with nothing written.
    """
    return choose(dataset, "mnist", GREY, lambda: read_mnist(Path(data_dir)))


def load_svhn(dataset, data_dir, split):
    """The data set of that name, of colour 32 x 32 images: as `load`, with 'svhn' for 'mnist'.

    split: which of SVHN's files are the training images: 'extra', 'train', or 'train+extra'.
    """
    return choose(dataset, "svhn", COLOUR, lambda: read_svhn(Path(data_dir), split))


def choose(dataset, real, shape, read):
    """The data set of a name: the real one, of that name, by read(); glyphs; or the images of an .npz file."""
    if dataset.endswith(".npz"):
        return read_npz(Path(dataset), shape)
    if dataset == "glyphs":
        return draw_glyphs(shape)
    if dataset not in ("auto", real):
        raise InputError(f"--dataset {dataset}: the choices are auto, {real}, glyphs, and the path of an .npz file.")
    try:
        return read()
    except DownloadError as error:
        if dataset == real:
            raise
        line = "!" * 100
        print(
            f"{line}\n{error}\nUSING THE BUILT-IN GLYPHS INSTEAD: the numbers below are not {real.upper()}'s.\n{line}"
        )
        return draw_glyphs(shape)


def to_data(name, origin, shape, x_train, y_train, x_test, y_test):
    """Data from numpy arrays of images (N, ...) and labels (N,)."""
    images = [torch.tensor(x).flatten(1) for x in (x_train, x_test)]
    labels = [torch.tensor(y.astype(np.int64)) for y in (y_train, y_test)]  # in this machine's byte order
    return Data(name, origin, shape, images[0], labels[0], images[1], labels[1])


def draw_glyphs(shape):
    """60,000 training and 10,000 test images of the built-in digits, GREY or COLOUR; the same on every machine."""
    x, y = glyphs.draw(70_000, GLYPHS_SEED, colour=shape == COLOUR)
    return to_data("glyphs", "the built-in glyphs", shape, x[:60_000], y[:60_000], x[60_000:], y[60_000:])


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
    return to_data("mnist", f"MNIST from {raw}", GREY, x_train, y_train, x_test, y_test)


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
    return Data("svhn", f"SVHN, {split}, from {data_dir}", COLOUR, x_train, y_train, *test)


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
    y = content["y"].ravel().astype(np.int64) % CLASSES
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


def read_npz(path, shape):
    """One's own images from an .npz in the layout of Keras: x_train, y_train, x_test, y_test.

    Images uint8, (N, height, width[, C]) with height, width and C those of `shape`; labels integers 0 to 9, (N,).
    Nothing in the file is executed: pickled arrays are refused. Raises InputError.
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

    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError(f"{path} has no array {', '.join(missing)}; it has {', '.join(there) or 'none'}.")
    for name in ("x_train", "x_test"):
        arrays[name] = check_images(f"{path}: {name}", arrays[name], shape)
    for name in ("train", "test"):
        check_labels(f"{path}: y_{name}", arrays[f"y_{name}"], len(arrays[f"x_{name}"]))

    checksum = 0
    for name in names:
        checksum = zlib.crc32(np.ascontiguousarray(arrays[name], dtype=np.uint8), checksum)
    stem = re.sub(r"[^A-Za-z0-9.-]+", "-", path.stem)
    return to_data(f"{stem}-{checksum:08x}", str(path), shape, *(arrays[name] for name in names))


def check_images(name, x, shape):
    """Images (N, height, width[, C]) as (N, C, height, width); InputError where they are not uint8 of that shape."""
    channels, height, width = shape
    wanted = (height, width, channels) if channels > 1 else (height, width)
    if channels == 1 and x.shape[3:] == (1,):
        x = x[..., 0]
    if x.dtype != np.uint8 or x.shape[1:] != wanted or len(x) == 0:
        raise InputError(
            f"{name} must hold images as (N, {', '.join(map(str, wanted))}) uint8 values from 0 to 255, N at least 1; "
            f"it is {x.shape} {x.dtype}."
        )
    return x.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)


def check_labels(name, y, n):
    """InputError where y is not n integers, each a class."""
    if y.shape != (n,) or y.dtype.kind not in "iu":
        raise InputError(f"{name} must hold {n:,} whole numbers, one for each image; it is {y.shape} {y.dtype}.")
    if y.min() < 0 or y.max() >= CLASSES:
        raise InputError(f"{name} must hold labels from 0 to {CLASSES - 1}; its are from {y.min()} to {y.max()}.")


# Subsets and batches


def test_subset(data):
    """Indices of the test images that the bounds are reported on. Returns (100,), or fewer where there are fewer.

    MNIST: the homework's, in its order. Other data: ten of each class, chosen once and for all (RandomState(0)).
    """
    members = by_class(data.y_test)
    if data.name == "mnist":
        chosen = [m[rows] for m, rows in zip(members, MNIST_TEST_SUBSET, strict=True)]
    else:
        random = np.random.RandomState(0)
        chosen = [random.permutation(m)[:10] for m in members]
    return torch.from_numpy(np.concatenate(chosen))


def labelled_subset(data, n, seed):
    """Indices of the n training images whose labels are seen, the same number of each class, class by class. (n,).

    100 of MNIST are the homework's, in its order; others are chosen by the seed. Raises InputError where n is not a
    multiple of the number of classes, or a class has too few images.
    """
    members = by_class(data.y_train)
    each, rest = divmod(n, CLASSES)
    if rest or n == 0:
        raise InputError(
            f"--labels {n}: as many of each of the {CLASSES} classes are needed, so a multiple of {CLASSES}."
        )
    few = min(range(CLASSES), key=lambda c: len(members[c]))
    if len(members[few]) < each:
        raise InputError(
            f"--labels {n} takes {each:,} training images of each class, and of class {few} there are "
            f"{len(members[few]):,}."
        )
    if data.name == "mnist" and n == 100:
        chosen = [m[rows] for m, rows in zip(members, MNIST_LABELLED, strict=True)]
    else:
        random = np.random.default_rng(seed)
        chosen = [random.permutation(m)[:each] for m in members]
    return torch.from_numpy(np.concatenate(chosen))


def by_class(y):
    """The indices of each class, in file order: a list of CLASSES arrays. y: (N,)."""
    return [np.flatnonzero(y.numpy() == c) for c in range(CLASSES)]


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


def labelled_batches(x, y, batch_size, seed, start=0):
    """Endless batches (x, y) of images in [0, 1] with their labels as one-hot rows, otherwise as `batches`.

    x: (N, X) uint8; y: (N,) int64. Yields (B, X) and (B, C), both float32.
    """
    return ((scaled(rows), one_hot(labels)) for rows, labels in batches((x, y), batch_size, seed, start))


def semi_supervised_batches(x, x_labelled, y_labelled, batch_size, seed, start=0):
    """Endless batches (x, x_labelled, y_labelled), all images freshly binarised, otherwise as `batches`.

    x: (N, X) uint8, all images; x_labelled: (L, X) uint8; y_labelled: (L,) int64. Yields (B, X), (B', X), and the
    labels as one-hot rows (B', C); B' = L, the labelled images of every step, or B where there are more than that.
    """
    unlabelled = batches((x,), batch_size, seed, start)
    labelled = batches((x_labelled, one_hot(y_labelled)), min(batch_size, len(x_labelled)), seed, start)
    both = zip(unlabelled, labelled, strict=True)
    return ((binarise(rows), binarise(rows_labelled), y) for (rows,), (rows_labelled, y) in both)


def scaled(x):
    """uint8 values as float32 in [0, 1]."""
    return x.float() / 255


def one_hot(y):
    """Labels (N,) int64 as rows (N, C), float32."""
    return torch.nn.functional.one_hot(y, CLASSES).float()


def binary_test_splits(data, device):
    """The test images that bounds are reported on, binarised once: {'subset': (x,), 'test': (x,)}, x float32."""
    splits = {"subset": data.x_test[test_subset(data)], "test": data.x_test}
    return {name: (binarise_once(x).float().to(device),) for name, x in splits.items()}


def labelled_test_splits(data, device):
    """The test images that bounds are reported on: {'subset': (x, y), 'test': (x, y)}, x uint8, y one-hot rows."""
    subset = test_subset(data)
    splits = {"subset": (data.x_test[subset], data.y_test[subset]), "test": (data.x_test, data.y_test)}
    return {name: (x.to(device), one_hot(y).to(device)) for name, (x, y) in splits.items()}
