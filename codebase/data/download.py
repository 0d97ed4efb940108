"""Downloads of MNIST and SVHN by torchvision. If one fails, the error says which files to put where."""

import contextlib
import os
import socket
import tempfile
from pathlib import Path

from codebase.errors import InputError

TIMEOUT = 20  # seconds without an answer of the server, after which a download fails


class DownloadError(InputError):
    """The data are not on this machine and could not be downloaded."""


@contextlib.contextmanager
def downloading(what, files):
    """In the block: torchvision downloads `files`, what is missing of `what`, somewhere below the folder that is given.

    Then they are moved to their places, so none is ever incomplete there. DownloadError if anything fails.
    """
    folder, before = files[0].parent, socket.getdefaulttimeout()
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    print(f"downloading  {what} to {folder}", flush=True)
    try:
        socket.setdefaulttimeout(TIMEOUT)
        with tempfile.TemporaryDirectory(prefix="download-", dir=existing) as temporary:  # a failure makes no folder
            yield Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            for path in Path(temporary).rglob("*"):
                if path.is_file():
                    os.replace(path, folder / path.name)
    except Exception as error:  # of the network, the server, or the disk: many types
        reason = " ".join(str(error).split()) or type(error).__name__
        why = f"There is no {what} in {folder}, and it could not be downloaded ({reason})."
        put = f"Put {', '.join(path.name for path in files)} there, or say where they are with --data_dir"
        raise DownloadError(f"{why} {put}; or use --dataset glyphs.") from error
    finally:
        socket.setdefaulttimeout(before)
