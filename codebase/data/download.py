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
def downloading(what, files, error_type=DownloadError):
    """In the block: torchvision downloads `files`, what is missing of `what`, to one folder.

    If anything fails, also by Ctrl-C, new files and folders are deleted, and an error says which files to put where.
    """
    folder, done, before = files[0].parent, False, socket.getdefaulttimeout()
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    there = {*folder.glob("*")}
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
        put = f"Put {', '.join(path.name for path in files)} there, or say where they are with --data_dir."
        raise error_type(f"There is no {what} in {folder}, and it could not be downloaded ({reason}). {put}") from error
    finally:
        socket.setdefaulttimeout(before)
        new = {*folder.glob("*")} - there  # which may be incomplete
        for path in [folder / ".lock", *(new if not done else [])]:
            if path.is_file():
                path.unlink()
        for path in made:
            with contextlib.suppress(OSError):  # it is not empty: the download is in it
                path.rmdir()
