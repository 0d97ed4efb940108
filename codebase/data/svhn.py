"""SVHN, in torchvision's layout: train_32x32.mat, extra_32x32.mat and test_32x32.mat in DATA_DIR."""

import numpy as np
import torch

from codebase.data.download import downloading
from codebase.errors import InputError

SVHN_SPLITS = {"extra": ["extra"], "train": ["train"], "train+extra": ["train", "extra"]}
CHUNK = 4096  # images that are transposed at a time, so that there is no second copy of all


def read(data_dir, split):
    """The fields of Data. Missing files are downloaded. Raises DownloadError, and InputError for wrong files."""
    from torchvision.datasets import SVHN, utils  # imported here, because it takes a second

    files = {part: data_dir / f"{part}_32x32.mat" for part in (*SVHN_SPLITS[split], "test")}
    missing = {part: path for part, path in files.items() if not path.is_file()}
    if missing:
        with downloading("SVHN", list(missing.values())) as temporary:
            for part in missing:
                url, name, md5 = SVHN.split_list[part]
                utils.download_url(url, temporary, name, md5)
    *train, test = map(read_file, files.values())
    x, y = train[0] if len(train) == 1 else map(torch.cat, zip(*train, strict=True))
    return "svhn", f"SVHN, {split}, from {data_dir}", (3, 32, 32), 10, x, y, *test


def read_file(path):
    """The images (N, 3072), uint8, and labels (N,), int64, of a file. Raises InputError if its checksum is wrong.

    The file holds X, (32, 32, 3, N) uint8: row, column, channel, image; and y, (N, 1), with 10 for the digit 0.
    """
    import scipy.io  # imported here, because only SVHN needs it
    from torchvision.datasets import SVHN, utils

    if not utils.check_md5(path, SVHN.split_list[path.name.split("_")[0]][2]):
        raise InputError(f"{path} is not SVHN's file of that name, or is damaged: delete it to download it again.")
    content = scipy.io.loadmat(path, variable_names=["X", "y"])
    x = np.require(content.pop("X"), np.uint8, ["F", "W"]).T  # (N, 3, column, row), C-contiguous
    for i in range(0, len(x), CHUNK):
        x[i : i + CHUNK] = x[i : i + CHUNK].swapaxes(2, 3).copy()  # (N, 3, row, column)
    y = content["y"].ravel().astype(np.int64) % 10
    return torch.from_numpy(x).flatten(1), torch.from_numpy(y)
