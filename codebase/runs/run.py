"""A run from start to end: open it, train or load its model. The report is in results.py."""

import argparse
import contextlib
import os
import sys
import time
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from codebase import evaluate, fast, matmul_precision, processes
from codebase.data import Data
from codebase.data.npz import name_in_run
from codebase.errors import InputError
from codebase.random_state import kept_random_state
from codebase.runs import checkpoints, files
from codebase.runs.environment import choose_device, environment
from codebase.runs.results import finished, log_hparams, read_results, write_results
from codebase.runs.signals import catch_signals, should_stop
from codebase.runs.start import is_resumed, load, start_or_resume
from codebase.runs.tensorboard import ELBO_CURVES, EventFile
from codebase.runs.try_out import try_out
from codebase.train import Adam, learning_rate, train, training_step


@dataclass
class Run:
    """A run: its flags, its data and device, its two folders, and what results.json holds."""

    model: str
    name: str
    flags: argparse.Namespace
    data: Data
    device: torch.device
    checkpoints: Path
    logs: Path
    record: dict
    finished: bool = False  # is it one of --replicates that has been trained and reported already?


@contextlib.contextmanager
def open_run(model, flags, images, usual_data="mnist"):
    """The run of a model, such as 'vae', on its data: `with open_run(...) as run:` trains or loads it, then reports.

    Inside, no other process can train this run. When the block ends, results.json is marked complete. usual_data: the
    data set that the run's name does not mention. InputError if the flags do not fit the data or the machine.
    """
    if flags.train and flags.batch_size > len(images.x_train):
        raise InputError(f"--batch_size {flags.batch_size} is more than the {len(images.x_train):,} training images.")
    if flags.validation != images.n_validation:
        raise InputError(
            "this script does not use --validation: it should call data.load(...).hold_out(flags.validation)."
        )
    device, device_in_words = choose_device(flags.device)
    if flags.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
    torch.use_deterministic_algorithms(bool(flags.deterministic))
    name = flags.run_name(model, images, usual_data)
    if flags.checkpoint is not None:
        path = Path(flags.checkpoint)
        if not path.is_file():
            raise InputError(f"--checkpoint {path}: there is no such file.")
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
        "data": images.about(),
        "evaluated": environment(device_in_words),
        "results": {},
    }
    run = Run(model, name, flags, images, device, folder, logs, record)
    run.finished = flags.replicates > 1 and flags.train > 0 and not flags.overwrite and finished(run)
    flags.logs = logs  # where the table of a series finds the results
    if run.finished:
        print(f"already finished: {logs} has its results", flush=True)
        yield run
        return
    if flags.train:
        is_resumed(run)  # raises its errors before anything is done
    print(f"device       {device_in_words}")
    print(f"data         {images.origin}: {images.sizes()}")
    print(f"run          {name}, seed {flags.seed}")
    print(f"checkpoints  {flags.checkpoint or folder}")
    print(f"curves       {logs} (tensorboard --logdir logs --samples_per_plugin images=100)", flush=True)
    locked = flags.train and processes.rank() == 0
    with files.locked(folder) if locked else contextlib.nullcontext():
        yield run
        log_hparams(run, ended=True)
        record["complete"] = True
        write_results(run)


def train_or_load(run, model, batches, draw, splits=None, optimizer=Adam, step=training_step):
    """Train the model, or with --train 0 load its weights. Draws its pictures.

    batches[t]: the training batch after t steps, a tuple of tensors. draw(writer, step): draws the pictures; writer is
    None if nothing is logged. splits: as data.binary_splits returns them; the negative ELBO of those in ELBO_CURVES is
    logged at every checkpoint. optimizer(parameters, lr): makes the optimizer. step: as train.training_step, instead of
    it. If there are several processes, all call this function.
    """
    if run.flags.train:
        train_run(run, model, batches, draw, splits or {}, optimizer(model.parameters(), run.flags.lr), step)
    else:
        load(run, model)
        with evaluate.evaluating(model):
            draw(None, None)


def train_run(run, model, batches, draw, splits, optimizer, training_step):
    """Train the model as the flags say, and save, log and draw at every checkpoint. Only the first process writes."""
    flags, first = run.flags, processes.rank() == 0
    experiment = flags.experiment(run.data)
    if not is_resumed(run):
        try_out(run, model, batches, draw, splits)
    start, seconds_before = start_or_resume(run, model, optimizer, experiment)
    results_before = read_results(run, start)
    log_hparams(run)
    began = time.monotonic()

    with (
        contextlib.closing(EventFile(run.logs, start)) if first else contextlib.nullcontext() as writer,
        matmul_precision.training(model, flags.precision, run.device) as bfloat16,
        catch_signals() as signals,
    ):

        def log(step, values):
            for tag, value in values.items() if first else ():
                writer.add_scalar(tag, value, step)

        def save(step):
            processes.copy_from_first(model.buffers())  # e.g. BatchNorm's statistics: all evaluate the same model
            check(step)
            with evaluate.evaluating(model):
                draw(writer, step)
            for tag, name in ELBO_CURVES.items():
                if name in splits:
                    log(step, {tag: evaluate.elbo(model, splits[name])["nelbo"].mean})
            if first:
                writer.flush()  # before the checkpoint, because a resumed run does not log these steps again
                seconds = seconds_before + time.monotonic() - began
                checkpoints.save(run.checkpoints, step, model, optimizer, experiment, seconds)
                if flags.keep:
                    checkpoints.prune(run.checkpoints, step, flags.keep, flags.iter_save)

        if start == 0 and first:
            writer.add_start(flags.values())
        own = processes.OwnRows(batches, flags.seed)
        plain = partial(training_step, model, optimizer, bfloat16=bfloat16)
        update, check = choose_update(run, plain, own, start)
        rate = learning_rate(flags.lr, flags.lr_schedule, flags.iter_max, len(run.data.x_train) // flags.batch_size)
        steps = {"start": start, "iter_max": flags.iter_max, "iter_save": flags.iter_save}
        how = {"update": update, "rate": rate, "stop": partial(should_stop, signals)}
        step, seconds = train(model, own, optimizer, save=save, log=log, **steps, **how)

    run.record["step"] = step
    now = run.record["evaluated"]
    codes = sorted({*map(str, results_before.get("trained", {}).get("code", [])), *now["code"]})
    run.record["trained"] = now | {"code": codes, "steps": step, "seconds": round(seconds_before + seconds, 2)}
    if step > start:
        print(f"trained {step - start:,} steps in {seconds:.0f} s, {(step - start) / seconds:.0f} a second", flush=True)
    else:
        print(f"nothing to train: this run is already at step {start:,}; a larger --iter_max trains longer", flush=True)
        run.record.update(results_before)
    write_results(run)
    if signals:
        again = "--resume 1" if flags.replicates == 1 else "the same command"
        again += " without --overwrite 1" if flags.overwrite else ""
        print(f"stopped after step {step:,}, which is saved: {again} resumes it, --train 0 evaluates it.", flush=True)
        sys.exit(128 + signals[0])


def choose_update(run, plain, batches, start):
    """The update to train with, and check(step), to be called before saving.

    plain: partial(training_step, model, optimizer, ...); the update does the same, maybe faster. --fast auto depends on
    --iter_max, not on the remaining steps, so that a resumed run does the same as an uninterrupted one. check(step)
    raises InputError if the update no longer does what `plain` does.
    """
    flags = run.flags
    wanted = flags.fast == "1" or (flags.fast == "auto" and fast.worth_compiling(run.device, flags.iter_max))
    if not wanted or start >= flags.iter_max:
        return plain, lambda step: None
    print("update       being compiled, or recorded as a CUDA graph (not with --fast 0)", flush=True)
    with kept_random_state():
        first = batches[start]
    update, how = fast.make_faster(plain, first)
    print(f"update       {how}", flush=True)
    return update, partial(fast.check, update, plain, first)
