"""A run: its data, device and folders, and how it starts."""

import argparse
import contextlib
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch

from codebase import data, processes
from codebase.data.npz import name_in_run
from codebase.errors import InputError
from codebase.runs import checkpoints, files
from codebase.runs.environment import choose_device, environment
from codebase.runs.results import complete, finished
from codebase.train import Adam, training_step


@dataclass
class Run:
    """A run of a script, on its data and device. Its optimizer and step may be replaced before it is trained."""

    model: str
    name: str
    flags: argparse.Namespace
    data: data.Data
    device: torch.device
    checkpoints: Path
    logs: Path
    record: dict  # what results.json holds
    start: str = "new"  # or 'resumed', 'loaded', 'finished'; see how_it_starts
    curves: dict = field(default_factory=dict)  # {tag: {step: value}}
    numbers: dict = field(default_factory=dict)  # {name: Estimate}, what `look` has returned last
    optimizer: object = Adam  # optimizer(parameters, lr)
    step: object = training_step  # as train.training_step


def open_run(model, flags, usual_data="mnist"):
    """The Run of a model, such as 'vae', with these flags. usual_data: the data set that its name does not mention.

    InputError if the flags do not fit the data or the machine.
    """
    torch.set_flush_denormal(True)  # see train.train
    device, device_in_words = choose_device(flags.device)
    # The glyphs are used instead only in a new run without --data_dir: no run goes on with other data.
    wanted = flags.dataset
    if wanted == "auto" and (flags.data_dir or flags.resume or flags.train == 0):
        wanted = usual_data
    images = data.load(wanted, flags.data_dir, usual_data, getattr(flags, "split", "extra"))
    images = images.hold_out(flags.validation).to(device)
    if images.name != "svhn" and hasattr(flags, "split"):
        flags.split = None
    if flags.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
    torch.use_deterministic_algorithms(bool(flags.deterministic))
    name = flags.run_name(model, images, usual_data)
    if flags.checkpoint is not None:
        path = Path(flags.checkpoint)
        name = f"{name.rpartition('_run=')[0]}_checkpoint={name_in_run(path, zlib.crc32(path.read_bytes()))}"
    if len(set(processes.gather([name]))) > 1:
        raise InputError("the processes of this run have different data: one of them could not download it.")
    folder, logs = Path("checkpoints", name), Path("logs", name)
    done = checkpoints.steps(folder)
    if flags.train == 0 and done and flags.step not in (None, done[-1]):
        logs = logs / f"step={flags.step:05d}"  # separate from the results of the last step
    record = {
        "name": name,
        "flags": flags.values(),
        "experiment": flags.experiment(images),
        "data": {key: getattr(images, key) for key in ("name", "origin", "shape", "classes")} | images.sizes(),
        "evaluated": environment(device_in_words),
        "results": {},
    }
    print(f"device       {device_in_words}")
    print(f"data         {images.origin}: {', '.join(f'{n:,} {of}' for of, n in images.sizes().items() if n)} images")
    print(f"run          {name}, seed {flags.seed}")
    print(f"checkpoints  {flags.checkpoint or folder}")
    print(f"curves       {logs} (tensorboard --logdir logs --samples_per_plugin images=100)", flush=True)
    return Run(model, name, flags, images, device, folder, logs, record)


def execute(run, main):
    """Call main(run), which trains or loads it and reports. Meanwhile no other process can train this run."""
    with files.locked(run.checkpoints) if run.flags.train else contextlib.nullcontext():
        run.start = processes.gather([how_it_starts(run)])[0]  # when all processes have looked into the folder
        if run.start == "finished":
            print(f"already finished: {run.logs} has its results", flush=True)
            return
        torch.manual_seed(run.flags.seed)
        main(run)
        complete(run)


def how_it_starts(run):
    """'loaded' with --train 0, 'finished' for one of --replicates that has been reported, otherwise 'new' or 'resumed'.

    InputError if the flags do not fit what is in its folder.
    """
    flags, folder = run.flags, run.checkpoints
    state, done = checkpoints.state_path(folder).exists(), checkpoints.steps(folder)
    if flags.train == 0:
        return "loaded"
    if flags.overwrite or not (state or done):
        return "new"
    if flags.replicates > 1 and finished(run):
        return "finished"
    if state and (flags.resume or flags.replicates > 1):
        return "resumed"
    at = f" at step {done[-1]:,}" if done else ""
    what = f"{folder} already holds a run{at}" if state else f"{folder} holds weights, but no training.pt"
    raise InputError(
        f"{what}. --resume 1 resumes a run that has a training.pt, --train 0 evaluates it, "
        f"--run {flags.run + 1} trains another one, --overwrite 1 deletes it and starts again."
    )
