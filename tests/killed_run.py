"""Run scripts in separate processes, to be killed: by a signal, or by themselves in the middle of a write.

They are forked from a process that has imported everything already, so that a test can afford dozens of them.
"""

import io
import multiprocessing
import os
import resource
import runpy
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest
import torch
from tensorboardX.record_writer import RecordWriter
from tqdm import tqdm

from codebase import evaluate
from codebase.runs import course, files

ROOT = Path(__file__).parent.parent
FORKS = multiprocessing.get_context("forkserver")
LATER = ["torch._dynamo", "torchvision.utils", "matplotlib.backends.backend_agg"]  # imported at their first use
FORKS.set_forkserver_preload(["killed_run", *LATER])


def start(folder, args, die_at=None, disk=None, watch=(), rank=0, torchrun=None):
    """Start a script, args[0], in a folder; output: folder/output.txt. Returns the process.

    die_at: the write at which it kills itself; see die_at_write. disk: the largest size of a file, as if the disk were
    full. watch: Python's audit events to be printed as 'AUDIT (event, ...)'. rank, torchrun: see start_together.
    """
    how = die_at, disk, watch, rank, torchrun
    process = FORKS.Process(target=run, args=(folder, [*map(str, args)], *how), daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the process that they are forked from
        process.start()
    return process


def start_together(folder, n, args):
    """Start a script n times, as torchrun does: with its environment. Output: output.txt, output-1.txt, ..."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment |= {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)}
    return [start(folder, args, rank=rank, torchrun=environment) for rank in range(n)]


def finish(process):
    """Wait for its end. Returns its exit code; after some minutes the process is killed, and the code is None."""
    process.join(timeout=300)
    code = process.exitcode
    process.kill()
    process.join()
    return code


def run(folder, args, die_at, disk, watch, rank, torchrun):
    os.chdir(folder)
    if torchrun:
        os.environ.update(torchrun, RANK=str(rank), LOCAL_RANK=str(rank))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    output = os.open(f"output-{rank}.txt" if rank else "output.txt", flags)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(stream, "w", closefd=False), line_buffering=True) for stream in (1, 2)
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # tqdm's usual lock has a semaphore, which a killed process would never release
    course.LOG_EVERY, evaluate.ELBO_SAMPLES = 7, 2
    if die_at is not None:
        die_at_write(die_at)
    if disk is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (disk, disk))
    sys.addaudithook(lambda *event: print("AUDIT", event) if event[0] in watch else None)
    sys.argv = args
    runpy.run_path(str(ROOT / args[0]), run_name="__main__")


def die_at_write(n):
    """SIGKILL at the n-th place at which a write can be interrupted: in the middle of a file or event, before it is
    flushed, before and after it is renamed, before an old file is deleted."""
    passed = [0]

    def here():
        passed[0] += 1
        return passed[0] == n

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def cut(module, name, after=False):
        function = getattr(module, name)

        def cut_function(*args, **kwargs):
            if here():
                die()
            result = function(*args, **kwargs)
            if after and here():
                die()
            return result

        setattr(module, name, cut_function)

    class Half(io.FileIO):
        """A file of which only the first half of what is written arrives."""

        def write(self, content):
            if here():
                super().write(content[: len(content) // 2])
                die()
            return super().write(content)

    def write_event(self, event):
        write_whole(self, event)
        if here():
            self._writer.flush()
            os.truncate(self.path, os.path.getsize(self.path) - len(event) // 2)
            die()

    write_whole, RecordWriter.write = RecordWriter.write, write_event
    files.open = Half
    cut(os, "fsync")
    cut(os, "replace", after=True)
    cut(Path, "unlink")
