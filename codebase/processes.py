"""Locks between processes; and one run on several, started by torchrun, each with its rows of every batch.

    torchrun --nproc-per-node 2 run_vae.py

Every process executes the whole program, with the same weights; gradients are averaged, and each evaluates its chunks
of the images. Only the first one, of rank 0, prints and writes files. A process that works alone has rank 0 of 1.
"""

import contextlib
import errno
import os

import numpy as np
import torch
import torch.distributed as dist

from codebase.errors import InputError

if os.name == "nt":
    import msvcrt
else:
    import fcntl


def lock(file):
    """Lock an open file until it is closed or this process ends, however it ends. False if another one has locked it.

    On a file system without locks it only says so.
    """
    try:
        if os.name == "nt":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise OSError(error.errno, error.strerror, file.name) from error
        folder = os.path.dirname(file.name)
        print(f"{folder} is on a file system without locks: make sure that no other process uses it", flush=True)
    return True


def launched():
    """The number of this process among those that torchrun has started; 0 without torchrun."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def rank():
    """The number of this process among those that work on the same run."""
    return dist.get_rank() if size() > 1 else 0


def size():
    """How many processes work on the same run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextlib.contextmanager
def on_one_run(device):
    """In the block: all processes of torchrun work on one run. device: the flag --device."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    on_gpus = device in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpus and int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():
        raise InputError("to work on one run, each process needs its own GPU: use a smaller --nproc-per-node.")
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    yield
    if on_gpus:  # with gloo this can hang in PyTorch 2.6, and is not needed
        dist.destroy_process_group()


def gather(own):
    """The lists of all processes, interleaved: item i comes from process i mod size()."""
    if size() == 1:
        return own
    lists = [None] * size()
    dist.all_gather_object(lists, own)
    return [lists[i % size()][i // size()] for i in range(sum(map(len, lists)))]


@torch.no_grad()
def average(tensors):
    """Replace each tensor by its mean over the processes, in place. Every process has tensors of the same shapes."""
    if size() > 1:
        flat = torch.cat([each.flatten() for each in tensors])  # one message instead of dozens
        dist.all_reduce(flat)
        for each, mean in zip(tensors, (flat / size()).split([each.numel() for each in tensors]), strict=True):
            each.copy_(mean.view_as(each))


class OwnRows:
    """This process's rows of each of the batches. InputError if they cannot be shared equally.

    Except in the first process, the random numbers of step t have a seed, a function of (seed, t, rank): so they differ
    between processes, and are the same after a resume.
    """

    def __init__(self, batches, seed):
        self.batches, self.seed = batches, seed

    def __getitem__(self, t):
        if rank() > 0:
            torch.manual_seed(int(np.random.SeedSequence([self.seed, t, rank()]).generate_state(1, np.uint64)[0]))
        batch = self.batches[t]
        if any(len(rows) % size() for rows in batch):
            raise InputError(f"{size()} processes cannot share the images of a batch equally: change --batch_size.")
        return tuple(rows.chunk(size())[rank()] for rows in batch)


@torch.no_grad()
def copy_from_first(tensors):
    """Replace each tensor by that of the first process, in place."""
    for each in tensors if size() > 1 else ():
        dist.broadcast(each, 0)
