"""What MNIST and SVHN share: a download by torchvision, or a message that says which files to put where."""

import contextlib
import io
import socket

from codebase.errors import InputError

PATIENCE = 20  # seconds; a server that is silent for longer is given up


class DownloadError(InputError):
    """The data are not on this machine and could not be downloaded."""


@contextlib.contextmanager
def downloading(what, files):
    """Inside: torchvision downloads files that are missing.

    what: the data set's name for the messages; files: the paths of the missing files, all in one folder. If anything
    fails, none of the files is left there, and DownloadError says which files to put where.
    """
    folder, done, before = files[0].parent, False, socket.getdefaulttimeout()
    print(f"downloading  {what} to {folder}", flush=True)
    try:
        socket.setdefaulttimeout(PATIENCE)
        with contextlib.redirect_stdout(io.StringIO()):  # torchvision's list of servers that failed
            yield
        done = True
    except Exception as error:  # of the network, the server, or the disk: a dozen kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        put = f"Put its files ({', '.join(path.name for path in files)}) into {folder}"
        line = f"{what} could not be downloaded ({reason}). {put}, or say where they are with --data_dir."
        raise DownloadError(line) from error
    finally:
        socket.setdefaulttimeout(before)
        for path in files:
            if not done and path.is_file():
                path.unlink()  # half of it
