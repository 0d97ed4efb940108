"""Checkpoints: model-{step:05d}.pt, a bare state_dict as in the homework, and training.pt, to resume from.

training.pt holds everything that a resumed run needs, the weights too. Files are written atomically. They are read with
weights_only=True: nothing in them is executed.
"""

import contextlib
import pickle
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch

from codebase.errors import InputError
from codebase.random_state import random_state, set_random_state
from codebase.runs.files import write_atomically

SKIPPED = {"y_prior", "x_v"}  # constants in some versions of the homework's files; no model here needs them


class Progress(NamedTuple):
    """How far a run is: its step, the seconds spent on training, and its curves so far, {tag: {step: value}}."""

    step: int
    seconds: float
    curves: dict


def steps(folder):
    """The steps of a run's checkpoints, ascending."""
    names = [re.fullmatch(r"model-(\d{5,})\.pt", path.name) for path in Path(folder).glob("model-*.pt")]
    return sorted(int(name[1]) for name in names if name)


def weights_path(folder, step):
    return Path(folder) / f"model-{step:05d}.pt"


def state_path(folder):
    return Path(folder) / "training.pt"


def save(folder, progress, model, optimizer, experiment):
    """Save the weights, then the training state.

    experiment: a dict of all that determines the run's weights; the run can only be resumed with the same one.
    """
    weights = model.state_dict()
    write_atomically(weights_path(folder, progress.step), lambda file: torch.save(weights, file))
    state = {"weights": weights, "optimizer": optimizer.state_dict(), "random": random_state(), "flags": experiment}
    write_atomically(state_path(folder), lambda file: torch.save(state | progress._asdict(), file))


def read(path):
    """The contents of a torch.save file, on the CPU. InputError if it cannot be read without executing code in it."""
    try:
        if zipfile.is_zipfile(path):  # PyTorch's format; it does not check the checksums
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
                folders = [each.filename for each in archive.infolist() if each.external_attr & 0x10]
            if damaged or folders:  # of what is marked as a folder, PyTorch would leave the tensor unread
                raise ValueError(f"{damaged or folders[0]} is damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # PyTorch's own message says how to read the file unsafely
        call = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it would call {call[1]}" if call else "it is damaged, or not a checkpoint"
        raise InputError(f"{path} cannot be read: {reason}.") from error
    except Exception as error:  # a damaged file can make torch raise any error
        raise InputError(f"{path} cannot be read: {in_one_line(error)}.") from error


def in_one_line(error):
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(":. ")


def load_weights(model, path):
    """Fill the model with the weights in a file, ours or of the homework's own code. InputError if they do not fit."""
    fill(model, read(path), path)


def sizes(weights):
    """The model of the homework that has these weights, and its sizes: ('VAE', {'z_dim': 10, ...}). Raises errors."""
    n_hidden, n_in = weights["dec.net.0.weight"].shape  # first layer of the decoder; its input is (z, y)
    x_dim, z_dim = len(weights["dec.net.4.weight"]), len(weights["enc.net.4.weight"]) // 2
    found = {"z_dim": z_dim, "n_hidden": n_hidden, "x_dim": x_dim}
    if weights["enc.net.0.weight"].shape[1] != x_dim + n_in - z_dim:
        raise KeyError("enc.net.0.weight")
    if "z_pre" in weights:
        return "GMVAE", found | {"k": weights["z_pre"].shape[1] // 2}
    if n_in == z_dim:
        return "VAE", found
    return "SSVAE" if "cls.net.4.weight" in weights else "FSVAE", found | {"classes": n_in - z_dim}


def why_not(own, weights):
    """Why weights do not fit a model with its own weights, in words."""
    (model, ours), (name, theirs) = sizes(own), sizes(weights)
    if name != model:
        return f"it is a {name}'s (run_{name.lower()}.py)"
    flags = {"z_dim": "--z", "n_hidden": "--hidden", "k": "--k"}
    return ", ".join(f"its {flags.get(k, k)} is {v}, not {ours[k]}" for k, v in theirs.items() if v != ours[k])


def fill(model, weights, path):
    """Fill the model with weights that were read from `path`. InputError also if one is not finite."""
    own = model.state_dict()
    try:
        weights = {key: value for key, value in weights.items() if key in own or key not in SKIPPED}
        bad = [key for key, value in weights.items() if not value.float().isfinite().all()]
        if bad:
            raise ValueError(f"{', '.join(bad)} is not finite")
        model.load_state_dict(weights)
    except Exception as error:  # the file can hold anything
        why = ""
        with contextlib.suppress(Exception):  # they are not a model's of the homework
            why = why_not(own, weights)
        raise InputError(f"{path} does not fit this {type(model).__name__}: {why or in_one_line(error)}.") from error


def resume(folder, model, optimizer, experiment):
    """Restore model, optimizer and random numbers from the run's last save.

    Returns its Progress. InputError if the training state cannot be read, or is that of another model or experiment.
    """
    path = state_path(folder)
    state = read(path)
    try:
        then = state["flags"]
        known = {k: v for k, v in experiment.items() if k in then and v is not None}  # None: the data determine it
        other = [f"--{name} was {then[name]} and is {value}" for name, value in known.items() if then[name] != value]
        if other:
            which = f"{path} belongs to a run that began with other flags: {', '.join(other)}."
            raise InputError(f"{which} Resume it with those, or begin another run with --run N.")
        fill(model, state["weights"], path)
        optimizer.load_state_dict(state["optimizer"])
        set_random_state(state["random"])
        return Progress(int(state["step"]), float(state["seconds"]), dict(state["curves"]))
    except InputError:
        raise
    except Exception as error:  # the file can hold anything
        raise InputError(f"{path} is not a training state of this run: {in_one_line(error)}.") from error
