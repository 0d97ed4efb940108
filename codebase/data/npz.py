"""The user's own images: an .npz file with the arrays x_train, y_train, x_test, y_test, as Keras names them."""

import re
import zlib

import numpy as np
import torch

from codebase.errors import InputError


def read(path):
    """The fields of Data, from an .npz file. Raises InputError.

    Images: grey (N, height, width[, 1]) or in colour (N, height, width, 3), of any type; whole numbers from 0 to 255,
    or values from 0 to 1, which are rounded to k / 255, so that binary images stay binary. Labels: see class_numbers;
    those that cannot be used are left out, with a remark. Pickled arrays are refused: nothing in the file is executed.
    """
    try:
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            images = [file["x_train"], file["x_test"]]
            labels = [file["y_train"], file["y_test"]] if "y_train" in file or "y_test" in file else [None, None]
    except Exception as error:  # a missing array or a damaged file: numpy and zipfile raise many types
        what = "of plain arrays x_train, x_test and, if there are labels, y_train, y_test"
        reason = str(error) or type(error).__name__
        raise InputError(f"{path} is not a readable .npz file {what} ({reason}).") from error

    sizes = {x.shape[1:3] + (x.shape[3:] or (1,)) for x in images}  # {(height, width, channels)}
    fit = len(sizes) == 1 and sizes.pop()[2:] in ((1,), (3,)) and all(x.size for x in images)
    of_0_to_1 = fit and all(x.dtype.kind in "buif" and x.min() >= 0 and x.max() <= 1 for x in images)
    if not of_0_to_1 and not (fit and all(are_whole(x, 0, 255) and x.max() != 1 for x in images)):  # 1: one is binary
        must = "images of one size, grey (N, height, width) or in colour (N, height, width, 3)"
        must += ", both of them whole numbers from 0 to 255, or both of them values from 0 to 1"
        raise InputError(f"{path}: x_train and x_test must hold {must}; they are {in_words(images)}.")

    if labels[0] is not None:
        of_classes = [class_numbers(y, len(x)) for x, y in zip(images, labels, strict=True)]
        if any(y is None for y in of_classes) or of_classes[1].min() < 0:
            must = "whole numbers from 0 to at most 999, one for each image (in y_train also -1: without a label)"
            they = f"y_train and y_test must hold {must}; they are {in_words(labels)}"
            print(f"{path}: the labels are left out: {they}.", flush=True)
            of_classes = [None, None]
        labels = of_classes

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
    return name_in_run(path, checksum), str(path), x.shape[1:], classes, *tensors


def are_whole(x, low, high):
    """Are all values whole numbers from low to high?"""
    is_whole = x.dtype.kind in "bui" or (x.dtype.kind == "f" and (x == np.rint(x)).all())
    return is_whole and x.min() >= low and x.max() <= high


def class_numbers(y, n):
    """The labels of n images as int64, (n,), from -1 to 999: whole numbers (n,) or (n, 1) of any type, or one-hot rows.

    None if y is something else.
    """
    if y.size > n and y.ndim == 2 and are_whole(y, 0, 1) and (np.count_nonzero(y, 1) == 1).all():
        y = y.argmax(1)  # one-hot
    return y.ravel().astype(np.int64) if y.size == n and are_whole(y, -1, 999) else None


def in_words(arrays):
    """Arrays in words, such as 'uint8 (60000, 28, 28) from 0 to 255 and uint8 (10000, 28, 28) from 0 to 255'."""
    ranges = (f" from {x.min()} to {x.max()}" if x.size and x.dtype.kind in "buif" else "" for x in arrays)
    return " and ".join(f"{x.dtype} {x.shape}{values}" for x, values in zip(arrays, ranges, strict=True))


def name_in_run(path, checksum):
    """The name of a file in the name of a run: 'my images.npz' is 'my-images-1a2b3c4d'. checksum: of its contents."""
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '-', path.stem)}-{checksum:08x}"
