"""The user's own images: an .npz file with the arrays x_train, y_train, x_test, y_test, as Keras names them."""

import re
import zlib

import numpy as np
import torch

from codebase.errors import InputError


def read(path):
    """The fields of Data, from an .npz file.

    Images: grey (N, height, width[, 1]) or in colour (N, height, width, 3); see as_bytes for their values. Labels:
    integers from 0 to at most 999, (N,), or none at all. Pickled arrays are refused, so that nothing in the file is
    executed. Raises InputError.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; --dataset takes the path of an .npz file.")
    try:
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            kinds = "xy" if "y_train" in file or "y_test" in file else "x"
            arrays = {name: file[name] for kind in kinds for name in (f"{kind}_train", f"{kind}_test")}
    except Exception as error:  # a missing array or a damaged file: numpy and zipfile raise many types
        what = "of plain arrays x_train, x_test and, if there are labels, y_train, y_test"
        raise InputError(
            f"{path} is not a readable .npz file {what} ({str(error) or type(error).__name__})."
        ) from error

    train, test = arrays["x_train"], arrays["x_test"]
    if train.dtype != test.dtype:
        raise InputError(f"{path}: x_train is of {train.dtype} values and x_test of {test.dtype}: use one type.")
    binary = is_binary(train) and is_binary(test)
    if not binary and any(is_binary(x) and x.max() == 1 for x in (train, test)):
        raise InputError(f"{path}: only one of x_train and x_test is of 0 and 1 alone: scale them alike.")
    tensors, shapes, classes, checksum = [], [], 0, 0
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays.get(f"y_{part}")
        if x.ndim not in (3, 4) or x.shape[3:] not in ((), (1,), (3,)) or x.size == 0:
            raise InputError(
                f"{path}: x_{part} must hold grey images as (N, height, width) or colour images as (N, height, width, "
                f"3), N at least 1; it is {x.shape}."
            )
        x = as_bytes(x, binary, f"{path}: x_{part}")
        x = np.ascontiguousarray((x if x.ndim == 4 else x[..., None]).transpose(0, 3, 1, 2))
        checksum = zlib.crc32(x, zlib.crc32(repr(x.shape).encode(), checksum))
        shapes.append(x.shape[1:])
        if y is not None:
            must = f"{path}: y_{part} must hold"
            if y.shape != (len(x),) or y.dtype.kind not in "iu":
                raise InputError(f"{must} {len(x):,} whole numbers, one for each image; it is {y.shape} {y.dtype}.")
            if y.min() < 0 or y.max() > 999:
                raise InputError(f"{must} labels from 0 to at most 999; its labels are from {y.min()} to {y.max()}.")
            checksum = zlib.crc32(y.astype("<i8"), checksum)
            classes = max(classes, int(y.max()) + 1)
            y = torch.from_numpy(y.astype(np.int64))  # in native byte order
        tensors += [torch.from_numpy(x).flatten(1), y]
    if shapes[0] != shapes[1]:
        raise InputError(f"{path}: x_train and x_test must hold images of the same size and number of channels.")
    return name_in_run(path, checksum), str(path), shapes[0], classes, *tensors


def name_in_run(path, checksum):
    """The name of a file in the name of a run: 'my images.npz' is 'my-images-1a2b3c4d'. checksum: of its contents."""
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '-', path.stem)}-{checksum:08x}"


def is_binary(x):
    """Has an array of whole numbers or truth values only 0 and 1?"""
    return x.dtype.kind in "bui" and x.size > 0 and x.min() >= 0 and x.max() <= 1


def as_bytes(x, binary, what):
    """Images as uint8 values from 0 to 255. x holds uint8 from 0 to 255, or floats from 0 to 1, rounded to k / 255.

    binary: all images hold only 0 and 1. They become 0 and 255, so that binarising them changes nothing. InputError,
    which names `what`, for other values.
    """
    if binary:
        return x.astype(np.uint8) * np.uint8(255)
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind == "f" and x.min() >= 0 and x.max() <= 1:
        return np.rint(x.astype(np.float32) * np.float32(255)).astype(np.uint8)
    seen = f"{x.dtype} from {x.min()} to {x.max()}" if x.dtype.kind in "buif" else str(x.dtype)
    raise InputError(
        f"{what} must hold uint8 values from 0 to 255, floats from 0 to 1, or only 0 and 1; it holds {seen}. "
        "Scale them to one of these ranges."
    )
