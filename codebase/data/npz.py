"""The user's own images: an .npz file with the arrays x_train, y_train, x_test, y_test, as Keras names them."""

import re
import zlib

import numpy as np
import torch

from codebase.errors import InputError


def read(path):
    """The fields of Data, from an .npz file. Raises InputError.

    Images: grey (N, height, width[, 1]) or in colour (N, height, width, 3), of any type; whole numbers from 0 to 255,
    or values from 0 to 1, which are rounded to k / 255, so that binary images stay binary. Labels: see class_numbers.
    Labels that cannot be used are no error. Pickled arrays are refused, so that nothing in the file is executed.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; --dataset takes the path of an .npz file.")
    try:
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            images = [file["x_train"], file["x_test"]]
            labels = [file["y_train"], file["y_test"]] if "y_train" in file or "y_test" in file else [None, None]
    except Exception as error:  # a missing array or a damaged file: numpy and zipfile raise many types
        what = "of plain arrays x_train, x_test and, if there are labels, y_train, y_test"
        reason = str(error) or type(error).__name__
        raise InputError(f"{path} is not a readable .npz file {what} ({reason}).") from error

    sizes = {x.shape[1:3] + (x.shape[3:] or (1,)) for x in images}  # {(height, width, channels)}
    if len(sizes) > 1 or sizes.pop()[2:] not in ((1,), (3,)) or not all(x.size for x in images):
        must = "at least one image each, all of one size, grey (N, height, width) or in colour (N, height, width, 3)"
        raise InputError(f"{path}: x_train and x_test must hold {must}; they are {in_words(images)}.")
    of_0_to_1 = all(x.dtype.kind in "buif" and x.min() >= 0 and x.max() <= 1 for x in images)
    if not of_0_to_1 and not all(are_bytes(x) and x.max() != 1 for x in images):  # max() == 1: only one is binary
        must = "both of them whole numbers from 0 to 255, or both of them values from 0 to 1"
        nan = [int(np.isnan(x).sum()) if x.dtype.kind == "f" else 0 for x in images]
        they = f"they hold nan {sum(nan):,} times" if any(nan) else f"they are {in_words(images)}"
        raise InputError(f"{path}: x_train and x_test must hold {must}; {they}.")

    unlabelled = "no labels (y_train, y_test)"
    if labels[0] is not None:
        must = "whole numbers from 0 to at most 999, one for each image (in y_train also -1: without a label)"
        unlabelled = f"no labels that can be used: y_train and y_test must hold {must}; they are {in_words(labels)}"
        labels = [class_numbers(y, len(x)) for x, y in zip(images, labels, strict=True)]
        if any(y is None for y in labels) or labels[1].min() < 0:
            labels = [None, None]

    tensors, classes, checksum = [], 0, 0
    for x, y in zip(images, labels, strict=True):
        x = np.rint(x.astype(np.float32) * np.float32(255)).astype(np.uint8) if of_0_to_1 else x.astype(np.uint8)
        x = np.ascontiguousarray(x.reshape(*x.shape[:3], -1).transpose(0, 3, 1, 2))
        checksum = zlib.crc32(x, zlib.crc32(repr(x.shape).encode(), checksum))
        if y is not None:
            checksum = zlib.crc32(y.astype("<i8"), checksum)
            classes = max(classes, int(y.max()) + 1)
            y = torch.from_numpy(y)
        tensors += [torch.from_numpy(x).flatten(1), y]
    return name_in_run(path, checksum), str(path), x.shape[1:], classes, *tensors, unlabelled


def are_bytes(x):
    """Are all values whole numbers from 0 to 255?"""
    if x.dtype == np.uint8 or x.dtype.kind not in "uif":
        return x.dtype == np.uint8
    return x.min() >= 0 and x.max() <= 255 and (x == x.astype(np.uint8)).all()  # nan is not above 0


def class_numbers(y, n):
    """The labels of n images as int64, (n,), from -1 to 999: whole numbers (n,) or (n, 1) of any type, or one-hot rows.

    None if y is something else.
    """
    if y.dtype.kind not in "buif" or y.ndim not in (1, 2) or len(y) != n or not y.size:
        return None
    y = y.astype(np.float64)
    if y.ndim == 2:
        is_one_hot = y.shape[1] > 1 and (y.max(1) == 1).all() and (np.count_nonzero(y, 1) == 1).all()
        y = y.argmax(1) if is_one_hot else y
    y = y.ravel()
    return y.astype(np.int64) if len(y) == n and ((y >= -1) & (y <= 999) & (y == np.rint(y))).all() else None


def in_words(arrays):
    """Arrays in words, such as 'uint8 (60000, 28, 28) from 0 to 255 and uint8 (10000, 28, 28) from 0 to 255'."""
    ranges = (f" from {x.min()} to {x.max()}" if x.size and x.dtype.kind in "buif" else "" for x in arrays)
    return " and ".join(f"{x.dtype} {x.shape}{values}" for x, values in zip(arrays, ranges, strict=True))


def name_in_run(path, checksum):
    """The name of a file in the name of a run: 'my images.npz' is 'my-images-1a2b3c4d'. checksum: of its contents."""
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '-', path.stem)}-{checksum:08x}"
