"""What the run scripts share: device, run names and folders, and the course of a run."""

import argparse
import contextlib
import itertools
import os
import signal
import sys
import time
import zlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from codebase import checkpoints, evaluate, fast, pictures, precision, processes, summary
from codebase.curves import Curves
from codebase.data import Data
from codebase.errors import InputError, NonFiniteError
from codebase.flags import FREE, parse_flags, replicates
from codebase.results import circumstances, finished, recorded, write_results
from codebase.train import Adam, learning_rate, train, training_step


def choose_device(wanted):
    """The device, and in words why. wanted: auto, cpu, cuda or mps. Raises InputError where there is no such device."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if (wanted == "cuda" and not cuda) or (wanted == "mps" and not mps):
        raise InputError(
            f"--device {wanted}: PyTorch {torch.__version__} finds no such device here; try --device auto."
        )
    kind = wanted if wanted != "auto" else "cuda" if cuda else "mps" if mps else "cpu"
    if kind == "mps" and processes.size() > 1:
        raise InputError("several processes cannot work on one run on an Apple GPU: add --device cpu.")
    if kind == "cuda":
        processes.take_gpu()
    what = {
        "cuda": torch.cuda.get_device_name() if cuda else "",
        "mps": "Apple GPU",
        "cpu": f"{torch.get_num_threads()} threads",
    }[kind]
    why = "as asked" if wanted != "auto" else "no GPU that PyTorch can use" if kind == "cpu" else "the fastest here"
    together = f"; {processes.size()} such processes" if processes.size() > 1 else ""
    return torch.device(kind), f"{kind} ({what}; {why}{together})"


class Run(NamedTuple):
    """A run: what was asked for, on which data and device, and its two folders."""

    name: str
    flags: argparse.Namespace
    data: Data
    device: torch.device
    checkpoints: Path
    logs: Path
    record: dict  # what results.json holds


class Finished(Exception):
    """There is nothing left to do for this run, whose folder of logs/ is the argument."""


def run_name(model, flags, data, own, usual_data):
    """The run's name: model, what is off its default and changes the experiment, number of the run.

    So no two experiments share a folder. model: e.g. 'vae_z=10'; own: names of flags of the script that join it where
    they are off their defaults; usual_data: the data set that goes without saying.
    """
    parts = [f"model={model}", *(f"{name}={getattr(flags, name)}" for name in own if name in flags.off_default)]
    if data.name != usual_data:
        parts.append(f"data={data.name}")
    if "iw" in flags.off_default:
        parts.append(f"iw={flags.iw:02d}")
    if "batch_size" in flags.off_default:
        parts.append(f"batch={flags.batch_size}")
    if "lr" in flags.off_default:
        parts.append(f"lr={flags.lr!r}")
    if "lr_schedule" in flags.off_default:
        parts.append(f"schedule={flags.lr_schedule}")
    if "precision" in flags.off_default:
        parts.append(f"precision={flags.precision}")
    if flags.seed != flags.run:
        parts.append(f"seed={flags.seed}")
    return "_".join([*parts, f"run={flags.run:04d}"])


def open_run(model, flags, data, own=(), usual_data="mnist"):
    """The run of a model, e.g. 'vae_z=10', on its data. Prints what it is and where things go; writes nothing.

    own, usual_data: see run_name. Raises InputError where there is no such device, and for a --checkpoint that is none;
    Finished where the run is one of --replicates and has been trained and evaluated already.
    """
    device, device_in_words = choose_device(flags.device)
    if flags.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without which cuBLAS would refuse
    torch.use_deterministic_algorithms(bool(flags.deterministic))
    name = run_name(model, flags, data, own, usual_data)
    if flags.checkpoint is not None:
        path = Path(flags.checkpoint)
        if not path.is_file():
            raise InputError(f"--checkpoint {path}: there is no such file.")
        name = f"{name.rpartition('_run=')[0]}_checkpoint={path.stem}-{zlib.crc32(path.read_bytes()):08x}"
    folder, logs = Path("checkpoints", name), Path("logs", name)
    done = checkpoints.steps(folder)
    if flags.train == 0 and done and flags.step not in (None, done[-1]):
        logs = logs / f"step={flags.step:05d}"  # the run's own results and pictures are those of its last step
    if len(set(processes.gathered([name]))) > 1:
        raise InputError("the processes of this run have different data, as one of them could not download it.")
    run = Run(name, flags, data, device, folder, logs, {})
    if flags.replicates > 1 and flags.train and not flags.overwrite and finished(run):
        raise Finished(logs)
    print(f"device       {device_in_words}")
    print(f"data         {data.origin}: {len(data.x_train):,} training and {len(data.x_test):,} test images")
    print(f"run          {name}, seed {flags.seed}")
    print(f"checkpoints  {flags.checkpoint or folder}")
    print(f"curves       {logs} (tensorboard --logdir logs --samples_per_plugin images=100)", flush=True)
    run.record.update(
        {
            "name": name,
            "flags": {k: v for k, v in vars(flags).items() if k not in ("step", "off_default")},
            "data": {
                "name": data.name,
                "origin": data.origin,
                "shape": data.shape,
                "classes": data.classes,
                "train": len(data.x_train),
                "test": len(data.x_test),
            },
            "evaluated": circumstances(device_in_words),
            "results": {},
        }
    )
    return run


def draw_samples(run, model, x, writer, step):
    """The pictures of a model without labels: 200 means of p(x|z), z ~ p(z), and images x (n, X) with reconstructions.

    To logs/<name>/samples.png and reconstructions.png, and to TensorBoard where there is a writer.
    """
    pairs = torch.stack([x, model.reconstruct(x)], dim=1).flatten(0, 1)
    for name, images in (("samples", model.mean_x(model.sample_z(200))), ("reconstructions", pairs)):
        pictures.show(name, pictures.grid(images, run.data.shape), run.logs, writer, step)


def draw_styles(run, model, writer, step):
    """Twenty styles in every digit: row = digit, column = style z_j, the same z each time; of many classes the first.

    To logs/<name>/samples.png, and to TensorBoard where there is a writer. Draw these first, for the z to be the same.
    Returns the labels of the rows, one-hot, (pictures.CLASSES at most, C).
    """
    y = torch.eye(model.classes, device=run.device)[: pictures.CLASSES]  # (rows, C)
    images = model.mean_x(model.sample_z(20), y.unsqueeze(1))  # (rows, 20, X)
    pictures.show("samples", pictures.grid(images, run.data.shape), run.logs, writer, step)
    return y


WATCHED = {"eval/nelbo_test": "subset", "eval/nelbo_train": "train"}  # curves of over-fitting, and their splits

KEPT = contextlib.ExitStack()  # what a run holds until its report is written, too: its lock


def train_or_load(run, model, batches, draw, splits=None):
    """Give the model its weights: train it as the flags say, or load them (--train 0). Saves, logs, draws on the way.

    batches: start -> the training batches from that step on, endless; draw: (writer, step) -> None, draws the pictures,
    called at every checkpoint and, with no writer, after loading. Of several processes all call it, and the first one
    alone has a writer. splits: as data.binary_splits gives them; at every
    checkpoint the negative ELBO of the test subset and of the training images among them is logged.
    """
    if run.flags.train == 0:
        load(run, model)
        with evaluate.evaluating(model):
            draw(None, None)
        return
    with evaluate.evaluating(model):  # a first batch, before anything is written: --batch_size may be impossible
        next(processes.own_rows(batches(0), run.flags.seed, 0))
    if run.flags.replicates > 1 and not run.flags.overwrite:
        run.flags.resume = int(run.checkpoints.exists())  # an interrupted series goes on
    if processes.rank() == 0:
        akin = None if not run.flags.resume or run.checkpoints.exists() else of_other_flags(run)
        if akin:
            raise InputError(f"there is no {run.checkpoints} to resume; {akin}. Without --resume 1 a new run begins.")
        KEPT.enter_context(checkpoints.locked(run.checkpoints))
    train_run(run, model, batches, draw, splits or {})


def train_run(run, model, batches, draw, splits):
    """Train the model as the flags say. Of several processes the first one writes; its lock keeps other runs away."""
    optimizer = Adam(model.parameters(), run.flags.lr)
    first = processes.rank() == 0
    if first:
        start, earlier = begin(run, model, optimizer)
    processes.wait()
    if not first:  # from what the first one has begun or resumed
        start, earlier = checkpoints.resume(run.checkpoints, model, optimizer, experiment(run.flags, run.data))
    before = recorded(run, start)
    began = time.monotonic()

    with Curves(run.logs, start) if first else contextlib.nullcontext() as writer:
        if start == 0 and first:
            writer.add_text("flags", "\n".join(f"    {k} = {v}" for k, v in run.record["flags"].items()), 0)

        def save(step):
            processes.copy_from_first(model.buffers())  # such as the statistics of BatchNorm, for all to evaluate alike
            check(step)
            with evaluate.evaluating(model):
                draw(writer, step)
            for tag, name in WATCHED.items():
                if name in splits:
                    log(step, {tag: evaluate.elbo(model, splits[name])["nelbo"].mean})
            if first:
                writer.flush()  # before the checkpoint: what is logged up to it will not be logged again
                seconds = earlier + time.monotonic() - began
                checkpoints.save(run.checkpoints, step, model, optimizer, experiment(run.flags, run.data), seconds)
                if run.flags.keep:
                    checkpoints.prune(run.checkpoints, step, run.flags.keep, run.flags.iter_save)

        def log(step, values):
            for tag, value in values.items() if first else ():
                writer.add_scalar(tag, value, step)

        setting = precision.training_setting(run.flags.precision, run.device)
        in_bfloat16 = precision.in_bfloat16(run.flags.precision, run.device)
        casting = precision.cast_back(model) if in_bfloat16 else contextlib.nullcontext()
        try:
            with asked_to_stop() as signals, precision.products(setting), casting:
                shared = processes.own_rows(batches(start), run.flags.seed, start)
                update, stream, check = choose_update(run, model, optimizer, shared, start, in_bfloat16)
                step, seconds = train(
                    model,
                    stream,
                    optimizer,
                    update=update,
                    rate=learning_rate(run.flags.lr, run.flags.lr_schedule, run.flags.iter_max),
                    start=start,
                    iter_max=run.flags.iter_max,
                    iter_save=run.flags.iter_save,
                    save=save,
                    log=log,
                    stop=partial(stop, signals),
                )
        except OSError as error:
            raise InputError(f"{error}. With that mended, --resume 1 goes on from the last checkpoint.") from error
    trained = step - start
    run.record["step"] = step
    run.record["trained"] = run.record["evaluated"] | {"steps": step, "seconds": round(earlier + seconds, 2)}
    if trained > 0:
        say(f"trained {trained:,} steps in {seconds:.0f} s, {trained / seconds:.0f} a second")
    else:
        say(f"nothing to train: this run is at step {start:,} already; --iter_max asks for more")
        run.record.update(before)
    write_results(run)
    if signals:
        again = "--resume 1" if run.flags.replicates == 1 else "the same command"
        say(f"stopped after step {step:,}, which is saved: {again} goes on from it, --train 0 looks at it.")
        sys.exit(128 + signals[0])


def choose_update(run, model, optimizer, batches, start, in_bfloat16):
    """The update to train by, as the flags say; the batches as they were; and check(step), to be called before saving.

    Says if it is not the plain update. It goes by --iter_max, not by the steps that are left, for a resumed run to do
    what it would have done. check(step) raises InputError if the update no longer does what training_step does.
    """
    plain = partial(training_step, model, optimizer, bfloat16=in_bfloat16)
    wanted = run.flags.fast == "1" or (run.flags.fast == "auto" and fast.pays(run.device, run.flags.iter_max))
    if not wanted or start >= run.flags.iter_max:
        return plain, batches, lambda step: None
    say("update       being compiled, or recorded as a CUDA graph; --fast 0 does without")
    first = next(batches)
    update, how = fast.faster(plain, first)
    say(f"update       {how}")
    return update, itertools.chain([first], batches), partial(fast.check, update, plain, first)


def begin(run, model, optimizer):
    """Start the run, or go on with it: its folders are there then, with a training state. Returns its step and seconds.

    Raises InputError where there is a run already and the flags do not say what to do with it.
    """
    folder, flags = run.checkpoints, run.flags
    there, done = checkpoints.states(folder), checkpoints.steps(folder)
    saved = done or len(there) > 1 or there[:1] == [folder / "training-previous.pt"]  # more than the state of step 0
    if saved and not (flags.resume or flags.overwrite):
        at = f", at step {done[-1]:,}" if done else ""
        raise InputError(
            f"{folder} holds a run already{at}: --resume 1 goes on with it, --train 0 evaluates it, "
            f"--run {flags.run + 1} trains another, --overwrite 1 deletes it and starts afresh."
        )
    resuming = flags.resume and (there or done)
    if resuming:
        start, seconds = checkpoints.resume(folder, model, optimizer, experiment(flags, run.data))
        print(f"resuming after step {start:,}")
    elif flags.resume:
        print(f"nothing to resume in {folder}: starting afresh")
    run.logs.mkdir(parents=True, exist_ok=True)  # now, so that what forbids it does so before the training
    for each in (folder, run.logs):
        checkpoints.sweep(each)
    if not resuming:
        for path in reversed(there):  # first of all, so that what is deleted by halves is not gone on with
            path.unlink()
    if flags.overwrite:
        checkpoints.clear(run.logs)
        checkpoints.clear(folder)
    if not resuming:
        start, seconds = 0, 0.0
        checkpoints.save(folder, 0, model, optimizer, experiment(flags, run.data), 0.0)
    return start, seconds


def experiment(flags, data):
    """What decides which weights a run has: its flags except the FREE ones, and the name of its data set."""
    free = FREE - {"iter_max"} if flags.lr_schedule == "cosine" else FREE
    return {name: value for name, value in vars(flags).items() if name not in free} | {"dataset": data.name}


def of_other_flags(run):
    """In words, the run of the same model and number whose flags differ least from these, and how; '' if there is none.

    As a name holds the flags, it is in another folder, and easily meant.
    """
    model, now = run.name.partition("_")[0], experiment(run.flags, run.data)
    found = []
    for path in sorted(run.checkpoints.parent.glob(f"{model}_*run={run.flags.run:04d}/training.pt")):
        with contextlib.suppress(Exception):  # the file may be damaged, and hold anything
            other = checkpoints.differences(checkpoints.read(path)["flags"], now)
            found.append((len(other), f"of the run in {path.parent}, {', '.join(other) or 'no flag differs'}"))
    return min(found, default=(0, ""))[1]


def say(text, file=None):
    """Print it where there is still something to print to: a terminal may be gone before the run is."""
    with contextlib.suppress(OSError):
        print(text, file=file, flush=True)


@contextlib.contextmanager
def asked_to_stop():
    """Inside: SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal is gone) are put on a list, which is yielded.

    Ctrl-C is KeyboardInterrupt if it is not the first of them. A signal that is ignored, as a script's background jobs
    ignore SIGINT, stays so.
    """
    signals, own = [], []  # `stop` adds those of other processes to the first list

    def ask(number, frame):
        if own and number == signal.SIGINT:
            raise KeyboardInterrupt
        own.append(number)
        signals.append(number)
        say("\nfinishing this step and saving it; Ctrl-C once more stops at once")

    stopping = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [n for n in stopping if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(signals, step):
    """Is training to stop after this step? signals: those that this process has got; one from another is added.

    Several processes stop after the same step. They ask one another at every tenth, as that takes time.
    """
    if step % 10 and processes.size() > 1:
        return False
    number = processes.largest(signals[0] if signals else 0)
    if number and not signals:
        signals.append(number)
    return number > 0


def load(run, model):
    """Fill the model from --checkpoint, the checkpoint of --iter_max, or the newest one. Raises InputError."""
    path, step = run.flags.checkpoint, None
    if path is None:
        done = checkpoints.steps(run.checkpoints)
        newest = processes.largest(done[-1] if done else 0)  # a training may be writing
        step = run.flags.step or newest or None
        if step not in done:
            wanted = "model-*.pt" if step is None else checkpoints.weights_path("", step)
            akin = "" if done else of_other_flags(run)
            there = f"there are steps {', '.join(map(str, done))}" if done else "train first, or give --checkpoint FILE"
            raise InputError(f"there is no {wanted} in {run.checkpoints} to evaluate: {there}{akin and f' ({akin})'}.")
        path = checkpoints.weights_path(run.checkpoints, step)
        run.record["step"] = step
    try:
        checkpoints.load_weights(model, path)
    except InputError as error:
        other = run.flags.checkpoint is None and checkpoints.newest_whole(run.checkpoints, model)
        raise InputError(
            f"{error} That of step {other:,} is whole: --iter_max {other} takes it." if other else error
        ) from error
    print(f"loaded       {path}")
    run.record.update(recorded(run, run.record.get("step")))


def run_all(main, flags):
    """main(flags) for each of the --replicates; then, where there are several, their table.

    If torchrun has started several processes, they share the replicates, or work together on a single run.
    """
    if flags.replicates == 1:
        with processes.together(flags.device):
            run_one(main, flags)
        return
    series, flags_of = processes.Series(flags.replicates), list(replicates(flags))
    this, several = processes.started()
    for i in series:
        by = f", by process {this}" if several > 1 else ""
        say(f"\nreplicate {i + 1} of {flags.replicates}{by}", sys.stderr if this else sys.stdout)
        series.done(i, str(run_one(main, flags_of[i])))
    if this == 0:
        print(f"\n{summary.report(*summary.read(series.results()))}")


def run_one(main, flags):
    """main(flags), whose run is then complete. Returns its folder of logs/."""
    try:
        with KEPT:
            run = main(flags)
            run.record["complete"] = True
            write_results(run)
            return run.logs
    except Finished as done:
        (logs,) = done.args
        say(f"finished before: {logs} has its results")
        return logs


def run_main(main, description, own_flags):
    """Call main(flags) as a script, which returns its run, once for each of the --replicates.

    What the user can mend ends it with a sentence and code 2, Ctrl-C with 130.
    """
    if sys.stdout is None or sys.stderr is None:  # closed, as by >&-
        nowhere = open(os.devnull, "w")  # noqa: SIM115
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    if processes.started()[0] > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (the first process prints)
    sys.stdout.reconfigure(errors="backslashreplace")  # a character that the terminal lacks is no reason to fail
    try:
        run_all(main, parse_flags(description, own_flags))
    except BrokenPipeError:  # whoever read what is printed has gone, as `| head` does
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(128 + 13)  # as if by SIGPIPE
    except (InputError, OSError) as error:
        sys.exit(fail(error, 2))
    except NonFiniteError as error:
        sys.exit(fail(error, 1))
    except (MemoryError, RuntimeError) as error:
        if processes.is_end_of_another(error):
            reason = str(error).split("\n")[0]
            sys.exit(fail(f"the other processes of this run cannot be reached any more ({reason})", 1))
        if not checkpoints.of_memory(error):
            raise
        sys.exit(fail("there is not enough memory for this: smaller numbers in the flags need less.", 2))
    except KeyboardInterrupt:
        sys.exit(130)


def fail(error, code):
    process = f" (process {processes.started()[0]})" if processes.started()[1] > 1 else ""
    say(f"{Path(sys.argv[0]).name}{process}: error: {error}", sys.stderr)
    return code
