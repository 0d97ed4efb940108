"""Downloads of MNIST and SVHN by torchvision. If one fails, the error says which files to put where."""

import contextlib
import socket
import time

from codebase import processes
from codebase.errors import InputError

TIMEOUT = 20  # seconds without an answer of the server, after which a download fails


class DownloadError(InputError):
    """The data are not on this machine and could not be downloaded."""


@contextlib.contextmanager
def downloading(what, files):
    """In the block: torchvision downloads `files`, what is missing of the data set `what`, to one folder.

    If anything fails, they are deleted, and DownloadError says which files to put where.
    """
    folder, done, before = files[0].parent, False, socket.getdefaulttimeout()
    print(f"downloading  {what} to {folder}", flush=True)
    try:
        socket.setdefaulttimeout(TIMEOUT)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "a") as file:
            while not processes.lock(file):  # another process downloads them
                time.sleep(0.1)
            yield
        done = True
    except Exception as error:  # of the network, the server, or the disk: many types
        reason = " ".join(str(error).split()) or type(error).__name__
        put = f"Put its files ({', '.join(path.name for path in files)}) into {folder}"
        line = f"{what} could not be downloaded ({reason}). {put}, or say where they are with --data_dir."
        raise DownloadError(line) from error
    finally:
        socket.setdefaulttimeout(before)
        for path in [folder / ".lock", *(files if not done else [])]:  # files are incomplete then; also after Ctrl-C
            if path.is_file():
                path.unlink()
