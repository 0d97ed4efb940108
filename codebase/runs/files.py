"""Atomic writing of files, and locks: one process at a time uses a folder. Only the process of rank 0 writes."""

import contextlib
import io
import os
import shutil
from pathlib import Path

from codebase import processes
from codebase.errors import InputError


class InUse(InputError):
    """Another process trains in the folder."""


@contextlib.contextmanager
def errors_with_path(path):
    """In the block: an OSError names the file `path`."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_atomically(path, write):
    """Call write(file) with a binary file; what it writes becomes the file `path`, completely or not at all.

    It is written under another name, flushed to the disk, and renamed. OSError if that fails; an older file at `path`
    is then still there.
    """
    if processes.rank() > 0:
        return
    content = io.BytesIO()
    write(content)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with errors_with_path(path), open(temporary, "wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # flush the new name, too
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


@contextlib.contextmanager
def locked(folder):
    """In the block: only this process may train in the folder, which is made if missing. InUse if another one does.

    The operating system frees the lock when a process ends, however it ends. A folder that is still empty is deleted.
    """
    if processes.rank() > 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as file:
        if not processes.lock(file):
            raise InUse(f"{folder} is in use by another process. Stop that one, or give another --run.")
        try:
            yield
        finally:
            if {path.name for path in folder.iterdir()} <= {".lock"}:
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):
                    folder.parent.rmdir()  # checkpoints/, if this was the first run


def clear(folder, what="*"):
    """Delete what is in a folder, except its lock. What cannot be deleted is left, unless it would pass for new."""
    for path in Path(folder).glob(what) if processes.rank() == 0 else ():
        try:
            if path.is_dir() and not path.is_symlink():
                clear(path)
                path.rmdir()
            elif path.name != ".lock":
                path.unlink(missing_ok=True)
        except OSError as error:
            if path.suffix in (".pt", ".json"):
                raise
            print(f"{path} cannot be deleted, and is left ({error.strerror})", flush=True)
