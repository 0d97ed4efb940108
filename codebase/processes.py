"""Several processes, started by torchrun: they share the runs of a series, or all of them work on one run.

    torchrun --nproc-per-node 2 run_vae.py --replicates 10      a series: each process takes the next run
    torchrun --nproc-per-node 2 run_vae.py                      one run, data-parallel

Data-parallel: every process executes the whole program, with the same weights. It computes the gradient for its rows
of each batch, and the gradients are averaged. It evaluates its chunks of the images. Only the process of rank 0 prints
and writes files. Without torchrun there is one process, of rank 0.
"""

import contextlib
import os
import time

import numpy as np
import torch
import torch.distributed as dist

from codebase.errors import InputError


def torchrun_rank_and_size():
    """The number of this process, and how many torchrun has started; (0, 1) without torchrun."""
    return (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if dist.is_torchelastic_launched() else (0, 1)


def use_own_gpu():
    """Let "cuda" be this process's own GPU. If there are fewer GPUs than processes, several processes share one."""
    if torchrun_rank_and_size()[1] > 1:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())


def share_out(function, n):
    """[function(0), ..., function(n - 1)], texts; in other processes than the first one an empty list.

    Each process takes the next number that no other one has taken.
    """
    store = next(dist.rendezvous("env://"))[0] if torchrun_rank_and_size()[1] > 1 else dist.HashStore()
    # After a restart by torchrun (--max-restarts), the processes share out the numbers again.
    store = dist.PrefixStore(f"share {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
    while (i := store.add("taken", 1) - 1) < n:
        store.set(f"result {i}", function(i))
    results = [f"result {i}" for i in range(n)] if torchrun_rank_and_size()[0] == 0 else []
    while results and not store.check(results):  # until the other processes are done
        time.sleep(0.2)
    return [store.get(result).decode() for result in results]


# One run, data-parallel. With only one process per run, the functions below do nothing.


def rank():
    """The number of this process among those that work on the same run."""
    return dist.get_rank() if dist.is_initialized() else 0


def size():
    """How many processes work on the same run."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def data_parallel(device):
    """In the block: all processes work on one run. device: the flag --device."""
    if torchrun_rank_and_size()[1] == 1:
        yield
        return
    on_gpus = device in ("auto", "cuda") and torch.cuda.is_available()
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    if on_gpus and here > torch.cuda.device_count():
        raise InputError(
            f"--nproc-per-node {here} is more than the number of GPUs here, {torch.cuda.device_count()}; "
            "to work on one run, each process needs its own GPU."
        )
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    yield
    if on_gpus:  # with gloo this can hang in PyTorch 2.6, and is not needed
        dist.destroy_process_group()


def has_another_ended(error):
    """Does the error say that another process cannot be reached, because it has ended?"""
    return isinstance(error, dist.DistError) or (size() > 1 and "gloo" in str(error))


def wait():
    """Wait until every process has called this function."""
    if size() > 1:
        dist.barrier()


@contextlib.contextmanager
def first_process_first():
    """The process of rank 0 executes the block first; when it has left the block, the others do."""
    if rank() > 0:
        wait()
    try:
        yield
    finally:
        if rank() == 0:
            wait()


class OwnRows:
    """This process's rows of each of the batches. All processes have the same number of rows.

    In all processes except the first, the random seed of step t is a function of (seed, t, rank). So the random numbers
    differ between processes, and are the same after a resume. InputError if the rows cannot be shared equally.
    """

    def __init__(self, batches, seed):
        self.batches, self.seed = batches, seed

    def __getitem__(self, t):
        n = size()
        if rank() > 0:
            torch.manual_seed(int(np.random.SeedSequence([self.seed, t, rank()]).generate_state(1, np.uint64)[0]))
        batch = self.batches[t]
        if any(len(each) % n for each in batch):
            rows = " and ".join(f"{len(each):,}" for each in batch)
            raise InputError(f"{n} processes cannot share {rows} images of a batch equally: change --batch_size.")
        return tuple(each.chunk(n)[rank()] for each in batch) if n > 1 else batch


@torch.no_grad()
def average(tensors):
    """Replace each tensor by its mean over the processes, in place. Every process has tensors of the same shapes."""
    if size() == 1:
        return
    flat = torch.cat([each.flatten() for each in tensors])  # one message instead of dozens
    dist.all_reduce(flat)
    flat = flat / size()
    for each, mean in zip(tensors, flat.split([each.numel() for each in tensors]), strict=True):
        each.copy_(mean.view_as(each))


@torch.no_grad()
def copy_from_first(tensors):
    """Replace each tensor by that of the first process, in place."""
    for each in tensors if size() > 1 else ():
        dist.broadcast(each, 0)


def maximum(number):
    """The largest of the processes' numbers."""
    return max(gather([number]))


def gather(own):
    """The lists of all processes, interleaved: item i comes from process i mod size()."""
    if size() == 1:
        return own
    lists = [None] * size()
    dist.all_gather_object(lists, own)
    return [lists[i % size()][i // size()] for i in range(sum(map(len, lists)))]
