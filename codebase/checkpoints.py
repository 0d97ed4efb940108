"""Checkpoints: model-{step:05d}.pt, a bare state_dict as in the homework, and training.pt beside it, to go on from.

training.pt is all that is needed for that, the weights among it; training-previous.pt is the one before it. A file is
written under another name, flushed to the disk and renamed, so that it is whole or absent. Files are read with
weights_only=True: nothing in them is executed.
"""

import contextlib
import errno
import io
import math
import os
import pickle
import re
import shutil
import warnings
import zipfile
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from codebase import processes
from codebase.errors import InputError

# Constants that some editions of the homework saved, which no model here needs.
SKIPPED = {"y_prior", "x_v"}


@contextlib.contextmanager
def naming(path):
    """Inside, an OSError of writing a file says which."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_atomically(path, write, previous=None):
    """Call write(file) on a binary file, put what it wrote on the disk beside `path`, and give it the name `path`.

    previous: another name, which the file that was at `path` gets. OSError where it cannot be written; what was at
    `path` is still there then. Of several processes that work on one run, the first one alone writes.
    """
    if processes.rank() > 0:
        return
    content = io.BytesIO()
    write(content)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), open(temporary, "wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
        sync_names(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_names(folder):
    """Put the names of a folder's files on the disk, too, where the system has a way to."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def locked(folder):
    """Inside, the folder is this process's to train in; it is made if need be. InputError where it is another's.

    The operating system takes the lock back from a process that ends, however it ends. Some network file systems have
    no locks: that is said, and left to the user.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"{folder} is in use: another process is training this run. Stop that one first, or train another (--run)."
        ) from error
    except NotImplementedError:
        print(f"{folder} is on a file system without locks: see to it that no other process trains this run")
    try:
        yield
    finally:
        lock.release()


def clear(folder):
    """Delete all that is in a run's folder, but for the lock."""
    for path in Path(folder).iterdir():
        if path.name == ".lock":
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def sweep(folder):
    """Delete what a process that was killed while it wrote has left in a folder."""
    for path in Path(folder).glob(".*.tmp"):
        path.unlink(missing_ok=True)


def steps(folder):
    """The steps of a run's checkpoints, ascending."""
    names = [re.fullmatch(r"model-(\d{5,})\.pt", path.name) for path in Path(folder).glob("model-*.pt")]
    return sorted(int(name[1]) for name in names if name)


def weights_path(folder, step):
    return Path(folder) / f"model-{step:05d}.pt"


def states(folder):
    """The paths of the training states that a folder has, the newest first."""
    return [path for path in (Path(folder) / "training.pt", Path(folder) / "training-previous.pt") if path.exists()]


def save(folder, step, model, optimizer, flags, seconds):
    """Save the weights after `step` steps, then the training state; of step 0 the state alone.

    flags: a plain dict of what decides the run's weights, so that it is not gone on with by mistake with others;
    seconds: spent on training.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = model.state_dict()
    if step > 0:
        write_atomically(weights_path(folder, step), lambda file: torch.save(weights, file))
    state = {
        "step": step,
        "seconds": seconds,
        "weights": weights,
        "optimizer": optimizer.state_dict(),
        "random": random_state(),
        "flags": flags,
    }
    previous = folder / "training-previous.pt"
    write_atomically(folder / "training.pt", lambda file: torch.save(state, file), previous)


def prune(folder, step, keep, iter_save):
    """Delete the checkpoints before `step`, but for the newest `keep` of those every iter_save steps up to it."""
    done = [each for each in steps(folder) if each <= step]
    kept = {step, *[each for each in done if each % iter_save == 0][-keep:]}
    for each in done:
        if each not in kept:
            weights_path(folder, each).unlink()


def random_state():
    """The states of torch's random number generators: the CPU's, and CUDA's or MPS's where there is one."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = [torch.cuda.get_rng_state()]  # of the GPU in use, whatever its number; older files list all
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state):
    """Undo what has been drawn since random_state(). States of devices that this machine lacks are left out."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def read(path):
    """What torch.save put into a file, on the CPU. Raises InputError for a file that is absent or anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles, which are refused or harmless
            if zipfile.is_zipfile(path):  # PyTorch's archives, whose checksums it does not look at (older files: none)
                with zipfile.ZipFile(path) as archive:
                    damaged = archive.testzip()
                if damaged:
                    raise ValueError(f"the checksum of {damaged} is wrong")
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.") from error
    except Exception as error:  # a damaged file makes torch and zipfile raise a dozen kinds of them
        if of_the_system(error):
            raise
        raise InputError(f"{path} is not a checkpoint that can be read safely ({reason(error)}).") from error


def of_the_system(error):
    """Is it an error of the disk or of access, which says nothing of what a file holds?"""
    kinds = (errno.EIO, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ESTALE)
    return isinstance(error, OSError) and error.errno in kinds


# What PyTorch calls an allocation that fails, with the class RuntimeError; the last is from its writer of archives.
NO_MEMORY = ("allocate memory", "not enough memory", "Storage size calculation overflowed", "CUDA error: out of memory")
NO_MEMORY += ("CUBLAS_STATUS_ALLOC_FAILED", "unexpected pos")


def of_memory(error):
    """Is it an allocation that failed?"""
    named = isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
    return named or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def reason(error):
    """Why PyTorch refuses a file, in a few words; its long advice how to read it unsafely all the same is left out."""
    if of_memory(error):
        return "there is too little memory for it, or it is damaged"
    if isinstance(error, EOFError):
        return "it ends too soon"
    if isinstance(error, pickle.UnpicklingError):
        call = re.search(r"GLOBAL (\S+)", str(error))
        return f"it would call {call[1]}" if call else "it is damaged, or something else"
    return f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]


def load_weights(model, path):
    """Fill the model from a file of weights: ours, or one of the homework's own code.

    Constants that the model does not need are skipped; a missing, unexpected or misshapen key is an InputError that
    names it, and leaves the model as it was.
    """
    model.load_state_dict(fitting(model, read(path), path))


def fitting(model, weights, path):
    """The weights, read from a file, as the model takes them. Raises InputError where they do not fit it."""
    own = model.state_dict()
    counters = {key for key, value in own.items() if value.dtype == torch.int64}  # such as that of BatchNorm
    if not isinstance(weights, dict) or not all(is_plain(value, key in counters) for key, value in weights.items()):
        raise InputError(f"{path} holds no state_dict: names and tensors were expected.")
    weights = {key: value for key, value in weights.items() if key in own or key not in SKIPPED}
    wrong = [f"{key} is missing" for key in own if key not in weights]
    wrong += [f"{key} is unexpected" for key in weights if key not in own]
    wrong += [
        f"{key} is {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    wrong += [f"{key} is not finite" for key in own if key in weights and not weights[key].isfinite().all()]
    if wrong:
        raise InputError(f"{path} does not fit a {type(model).__name__} with these flags: {'; '.join(wrong)}.")
    return weights


def is_plain(value, counter=False):
    """Is it a tensor of floating-point numbers, stored one by one? A counter may have whole numbers."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64) or (
        counter and value.dtype == torch.int64
    )


def newest_whole(folder, model):
    """The last step of which there are weights that the model takes; None where there are none."""
    for step in reversed(steps(folder)):
        path = weights_path(folder, step)
        with contextlib.suppress(InputError):
            fitting(model, read(path), path)
            return step
    return None


def differences(then, now):
    """How the flags of a run, a dict, differ from those of now: a list of words. What only one has is left out."""
    other = [name for name in then if name in now and then[name] != now[name]]
    return [f"--{name} was {then[name]} and is {now[name]}" for name in other]


def resume(folder, model, optimizer, flags):
    """Put model, optimizer and random numbers back to where the run's last save left them.

    Returns its step, and the seconds spent on training. Raises InputError where the training state is absent,
    unreadable, of another model, begun with other flags, or not that of the weights beside it; it says so where the
    state before it is whole.
    """
    paths = states(folder)
    if not paths:
        raise InputError(
            f"{folder} holds weights, but no training.pt to go on from: --train 0 evaluates them, "
            "--overwrite 1 deletes them and starts afresh."
        )
    try:
        step, seconds = restore(paths[0], model, optimizer, flags)
    except InputError as error:
        for path in paths[1:]:
            try:
                step, _ = restore(path, model, optimizer, flags)
            except InputError:
                continue
            hint = f"{path}, of step {step:,}, is whole: move {paths[0].name} away, and --resume 1 goes on from there."
            raise InputError(f"{error} {hint}") from error
        step = newest_whole(folder, model)
        hint = (
            "" if step is None else f" The weights of step {step:,} are whole: --train 0 --iter_max {step} takes them."
        )
        raise InputError(f"{error}{hint}") from error
    beside = weights_path(folder, step)
    if beside.exists():
        try:
            weights = fitting(model, read(beside), beside)
            same = all(value.cpu().equal(weights[key]) for key, value in model.state_dict().items())
            wrong = "" if same else f"{beside} does not hold the weights that {paths[0].name} beside it goes on from."
        except InputError as error:
            wrong = str(error)
        if wrong:
            raise InputError(f"{wrong} --resume 1 can do without it: move it away.")
    return step, seconds


def restore(path, model, optimizer, flags):
    """Put model, optimizer and random numbers back to where a training state has them. Returns (step, seconds)."""
    state = read(path)
    try:
        step, seconds = state["step"], state["seconds"]
        if type(step) is not int or step < 0 or not 0 <= seconds < math.inf:
            raise ValueError(f"step {step!r} after {seconds!r} s")
        other = differences(state["flags"], flags)
        if other:
            raise InputError(f"{path} is of a run that began with other flags: {', '.join(other)}.")
        weights = fitting(model, state["weights"], path)
        of_optimizer = fitting_optimizer(optimizer, state["optimizer"])
        restore_random_state(state["random"])
        model.load_state_dict(weights)
        optimizer.load_state_dict(of_optimizer)
    except InputError:
        raise
    except Exception as error:  # as in `read`: the file may hold anything
        raise InputError(f"{path} is not the training state of this run ({reason(error)}).") from error
    return step, seconds


def fitting_optimizer(optimizer, saved):
    """The optimizer's state, read from a file, as it takes it. Raises ValueError where it does not fit the parameters.

    Options of the optimizer are those of now, by the flags; of them the tensors alone, which change, are the file's.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own = optimizer.state_dict()
    if own["state"] and own["state"].keys() != saved["state"].keys():  # otherwise it is made in the first step
        raise ValueError("it has the optimizer's state of other parameters")
    for i, values in saved["state"].items():
        if i not in range(len(parameters)) or values.keys() != own["state"].get(i, values).keys():
            raise ValueError(f"the optimizer's state of parameter {i} does not fit")
        for key, value in values.items():
            known = own["state"].get(i)
            if known is None and not isinstance(value, torch.Tensor):
                continue  # a count, or None
            if not fits(value, known[key] if known else value):
                raise ValueError(f"the optimizer's {key} of parameter {i} does not fit")
    groups = []
    for group, values in zip(own["param_groups"], saved["param_groups"], strict=True):
        changing = {key: value for key, value in group.items() if isinstance(value, torch.Tensor)}
        if not all(fits(values[key], value) for key, value in changing.items()):
            raise ValueError("the optimizer's options do not fit")
        groups.append(group | {key: values[key].to(value) for key, value in changing.items()})
    return {"state": saved["state"], "param_groups": groups}


def fits(value, like):
    """Is it a tensor of finite floating-point numbers, of the same shape as another?"""
    return is_plain(value) and value.shape == like.shape and bool(value.isfinite().all())
