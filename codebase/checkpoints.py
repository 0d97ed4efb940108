"""Checkpoints: model-{step:05d}.pt, a bare state_dict as in the homework, and training.pt beside it, to go on from.

A file is written under another name, flushed to the disk and renamed, so that it is whole or absent. Files are read
with weights_only=True: nothing in them is executed.
"""

import os
import re
import warnings
from pathlib import Path

import torch

from codebase import InputError

# Constants that some editions of the homework saved, which no model here needs.
SKIPPED = {"y_prior", "x_v"}


def write_atomically(path, write):
    """Call write(file) on a binary file beside `path`, flush it to the disk, and give it the name `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def steps(folder):
    """The steps of a run's checkpoints, ascending."""
    names = [re.fullmatch(r"model-(\d{5,})\.pt", path.name) for path in Path(folder).glob("model-*.pt")]
    return sorted(int(name[1]) for name in names if name)


def weights_path(folder, step):
    return Path(folder) / f"model-{step:05d}.pt"


def save(folder, step, model, optimizer, flags):
    """Save the weights after `step` steps, then the training state that belongs to them. flags: a plain dict."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(weights_path(folder, step), lambda file: torch.save(model.state_dict(), file))
    state = {
        "step": step,
        "optimizer": optimizer.state_dict(),
        "random": random_state(),
        "flags": flags,
    }
    write_atomically(folder / "training.pt", lambda file: torch.save(state, file))


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
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state):
    """Undo what has been drawn since random_state(). States of devices that this machine lacks are left out."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def read(path):
    """What torch.save put into a file, on the CPU. Raises InputError for a file that is absent or anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles, which are refused or harmless
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.") from error
    except Exception as error:  # a damaged file makes torch and zipfile raise a dozen kinds of them
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{path} is not a checkpoint that can be read safely ({reason}).") from error


def load_weights(model, path):
    """Fill the model from a file of weights: ours, or one of the homework's own code.

    Constants that the model does not need are skipped; a missing, unexpected or misshapen key is an InputError that
    names it, and leaves the model as it was.
    """
    weights = read(path)
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise InputError(f"{path} holds no state_dict: names and tensors were expected.")
    own = model.state_dict()
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
    model.load_state_dict(weights)


def resume(folder, model, optimizer):
    """Put model, optimizer and random numbers back to where the run's last save left them. Returns its step.

    Raises InputError where a file is absent, unreadable or of another model.
    """
    path = Path(folder) / "training.pt"
    state = read(path)
    try:
        load_weights(model, weights_path(folder, state["step"]))
        optimizer.load_state_dict(state["optimizer"])
        restore_random_state(state["random"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path} is not the training state of this run ({error}).") from error
    return state["step"]
