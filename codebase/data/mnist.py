"""MNIST, in torchvision's layout: four files in DATA_DIR/MNIST/raw, each plain or gzipped."""

import contextlib
import gzip
import hashlib
import zlib

import torch

from codebase.data.download import downloading
from codebase.errors import InputError

MNIST_FILES = {  # name: SHA-256 of the unpacked file
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def read(data_dir):
    """The fields of Data. Missing files are downloaded. Raises DownloadError, and InputError for wrong files."""
    raw = data_dir / "MNIST" / "raw"
    zipped = [raw / f"{name}.gz" for name in MNIST_FILES]
    missing = [path for path in zipped if not (path.is_file() or path.with_suffix("").is_file())]
    if missing:
        from torchvision.datasets import MNIST  # imported here, because it takes a second

        with downloading("MNIST", missing) as temporary:
            MNIST(temporary, download=True)
    return "mnist", f"MNIST from {raw}", (1, 28, 28), 10, *(read_file(raw / name) for name in MNIST_FILES)


def read_file(path):
    """The images (N, 784), uint8, or labels (N,), int64, of a file. Raises InputError if its checksum is wrong."""
    there = path if path.is_file() else path.with_name(f"{path.name}.gz")
    content = bytearray(there.read_bytes())
    if there != path:
        with contextlib.suppress(gzip.BadGzipFile, EOFError, zlib.error):  # a damaged file: the checksum is wrong
            content = bytearray(gzip.decompress(content))
    if hashlib.sha256(content).hexdigest() != MNIST_FILES[path.name]:
        raise InputError(
            f"{there} is not MNIST's file of that name, or is damaged: delete it to download it again. "
            "Images of your own can be used with --dataset FILE.npz."
        )
    if "labels" in path.name:
        return torch.frombuffer(content, dtype=torch.uint8, offset=8).long()
    return torch.frombuffer(content, dtype=torch.uint8, offset=16).view(-1, 784)
