"""The course of a run: train or load the model; log, save and look along the way."""

import contextlib
import signal
import sys
import time

from tqdm import tqdm

from codebase import evaluate, fast, processes
from codebase.errors import InputError
from codebase.precision import training_precision
from codebase.random_state import kept_random_state
from codebase.runs import checkpoints, files
from codebase.runs.results import looked_at, read_results, show, write_results
from codebase.runs.signals import catch_signals, stopped_by
from codebase.runs.tensorboard import EventFile
from codebase.train import check_weights, learning_rate, set_rate, updates, values_of

LOG_EVERY = 100  # steps between two points of the training's curves; each needs a synchronisation with the device
HELD_OUT = ("test", "train", "validation")  # the splits whose negative ELBO is a curve
HELD_OUT_EVERY = 10  # the training images between two points of these curves, as a multiple of their images
COMPILED_FROM = 10_000  # compiling the step takes as long as it saves in about this many steps


def train_or_load(run, model, batches, splits, look):
    """Train the model, or with --train 0 load its weights. If there are several processes, all call this function.

    batches[t]: the training batch after t steps, a tuple of tensors. splits: as data.binary_splits returns them; the
    negative ELBO of those in HELD_OUT is a curve. look(model): {name: Picture or number}, called in evaluation mode at
    step 0, at each checkpoint after it is saved, and after loading. A picture becomes <name>.png, and is shown in
    TensorBoard. A number, a float or an Estimate, is a curve; the last one is printed, and kept in results.json. The
    names are others than those of the training's curves and of the report's numbers.
    """
    model.to(run.device)
    if run.start == "loaded":
        load(run, model)
        show(run, None, run.record.get("step", 0), looked_at(model, look))
    else:
        train_run(run, model, batches, splits, look)


def train_run(run, model, batches, splits, look):
    """The course of a training. All processes compute everything; only the first one writes."""
    flags = run.flags
    optimizer = run.optimizer(model.parameters(), flags.lr)
    batches = processes.OwnRows(batches, flags.seed)
    held_out = {name: split for name, split in splits.items() if name in HELD_OUT}
    held_out_every = max(1, HELD_OUT_EVERY * sum(len(x) for x, *_ in held_out.values()) // flags.batch_size)
    rate = learning_rate(flags.lr, flags.lr_schedule, flags.iter_max, len(run.data.x_train) // flags.batch_size)

    if run.start == "resumed":
        start = resume(run, model, optimizer)
    else:
        start = checkpoints.Progress(0, 0.0, {tag: {0: value} for tag, value in nelbos(model, held_out).items()})
    run.curves = start.curves
    shown = looked_at(model, look)  # before anything is deleted or written
    prepare_folders(run)
    step, seconds, stopping = start.step, 0.0, 0

    with (
        contextlib.closing(EventFile(run.logs, step)) as writer,
        training_precision(model, flags.precision),
        catch_signals() as signals,
    ):
        if step == 0:
            writer.add_flags({"model": run.model} | run.record["experiment"])
        show(run, writer, step, shown)  # again if the run was resumed: it may have ended before it was shown
        training_step = faster_step(run, model, optimizer, batches, step)
        points = []  # the loss and its terms at each step since the last check, on the device
        steps = updates(model, batches, range(step, flags.iter_max), optimizer, training_step)
        hidden = step >= flags.iter_max or processes.launched() > 0
        bar = tqdm(steps, total=flags.iter_max, initial=step, mininterval=0.5, unit="it", disable=hidden)
        began = time.monotonic()
        for step, point in bar:
            points.append(point)
            if rate is not None:
                set_rate(optimizer, rate(step))
            stopping, last = stopped_by(signals, step), step == flags.iter_max
            saving = step % flags.iter_save == 0 or last or stopping
            logging = step % LOG_EVERY == 0 or last
            evaluating = bool(held_out) and (step % held_out_every == 0 or last)
            if not (saving or logging or evaluating):
                continue

            values = {tag: of_steps[-1] for tag, of_steps in values_of(points, step).items()}
            points.clear()
            bar.set_postfix(loss=f"{values['train/loss'] + 0:.2f}", refresh=False)  # + 0: a cross-entropy of 0 is -0.0
            curves = values if logging else {}
            if saving or evaluating:
                processes.copy_from_first(model.buffers())  # e.g. BatchNorm's: all evaluate the same model
            if evaluating:
                curves = curves | nelbos(model, held_out)
            for tag, value in curves.items():
                run.curves.setdefault(tag, {})[step] = value
            seconds = time.monotonic() - began
            if saving:
                check_weights(model, optimizer, step)
                now = checkpoints.Progress(step, start.seconds + seconds, run.curves)
                checkpoints.save(run.checkpoints, now, model, optimizer, flags.experiment(run.data))
            show(run, writer, step, looked_at(model, look) if saving else None)
            if stopping:
                break

    finish(run, start, step, seconds, signals[0] if signals else stopping)


def nelbos(model, held_out):
    """The points of the held-out curves, {tag: the negative ELBO of a split}, from one draw of z for each image."""
    return {
        f"eval/nelbo_{name}": evaluate.elbo(model, split, samples=1)["nelbo"].mean for name, split in held_out.items()
    }


def resume(run, model, optimizer):
    """Restore the run's last save. Returns its Progress."""
    start = checkpoints.resume(run.checkpoints, model, optimizer, run.flags.experiment(run.data))
    print(f"resuming after step {start.step:,}", flush=True)
    if start.step >= run.flags.iter_max:
        run.record |= read_results(run, start.step)
    return start


def finish(run, start, step, seconds, stopping):
    """Say how the training has ended, here and in results.json. A signal that has ended it has its usual effect now."""
    run.record["step"] = step
    trained = run.record["evaluated"] | {"steps": step, "seconds": round(start.seconds + seconds, 2)}
    run.record.setdefault("trained", trained)  # a run with nothing to train keeps what it has read
    write_results(run)
    if step > start.step:
        done = step - start.step
        print(f"trained {done:,} steps in {seconds:.0f} s, {done / seconds:.0f} a second", flush=True)
    else:
        print(f"nothing to train: this run is already at step {step:,}; a larger --iter_max trains longer", flush=True)
    if stopping:
        print(f"stopped after step {step:,}, which is saved: --resume 1 resumes it, --train 0 evaluates it", flush=True)
        signal.raise_signal(stopping)
        sys.exit(128 + stopping)  # if the signal is handled in a way that does not end the process


def prepare_folders(run):
    """Make what is missing, and delete what must not stay; all of it with --overwrite 1."""
    run.logs.mkdir(parents=True, exist_ok=True)
    for folder in (run.checkpoints, run.logs):
        files.clear(folder, ".*.tmp")  # left by a process that was killed while it wrote
    if run.flags.overwrite:
        # First what is read again, so that after an interrupted --overwrite nothing old passes for new.
        files.clear(run.logs, "results.json")
        files.clear(run.checkpoints, "training.pt")
        files.clear(run.logs)
        files.clear(run.checkpoints)
    if run.start == "new":
        files.clear(run.logs, "step=*")  # bounds of an older run's checkpoints
        if run.flags.resume:
            print(f"nothing to resume in {run.checkpoints}: starting from step 0", flush=True)


def faster_step(run, model, optimizer, batches, start):
    """run.step, compiled if --fast says so.

    --fast auto depends on --iter_max, not on the remaining steps: a resumed run does the same as an uninterrupted one.
    """
    flags = run.flags
    saves_time = run.device.type in ("cpu", "cuda") and flags.iter_max >= COMPILED_FROM
    if flags.fast == "0" or (flags.fast == "auto" and not saves_time) or start >= flags.iter_max:
        return run.step
    print("update       compiling the training step, about 20 s (not with --fast 0)", flush=True)
    with kept_random_state():
        batch = batches[start]
    step, how = fast.faster(run.step, model, optimizer, batch)
    print(f"update       {how}", flush=True)
    return step


def load(run, model):
    """Fill the model from --checkpoint, from the checkpoint of step --iter_max, or from the newest one."""
    path = run.flags.checkpoint
    if path is None:
        done = checkpoints.steps(run.checkpoints)
        step = run.flags.step or max(processes.gather([done[-1] if done else 0]))  # others may be writing files
        if step not in done:
            others = sorted(each.name for each in run.checkpoints.parent.glob(f"model={run.model}_*"))
            first = f"train first (there is {', '.join(others) or 'no other run of this model'})"
            there = f"there are steps {', '.join(map(str, done))}" if done else first
            raise InputError(f"{run.checkpoints} has no model-{f'{step:05d}' if step else '*'}.pt: {there}.")
        path = checkpoints.weights_path(run.checkpoints, step)
        run.record["step"] = step
    checkpoints.load_weights(model, path)
    print(f"loaded       {path}", flush=True)
    run.record |= read_results(run, run.record.get("step"))
