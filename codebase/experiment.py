"""What the run scripts share: device, run names and folders, and the course of a run."""

import argparse
import contextlib
import shutil
import signal
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from tensorboardX import SummaryWriter

from codebase import InputError, checkpoints, evaluate, pictures
from codebase.data import Data
from codebase.results import circumstances, recorded, write_results
from codebase.train import NonFiniteError, adam, train


def choose_device(wanted):
    """The device, and in words why. wanted: auto, cpu, cuda or mps. Raises InputError where there is no such device."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if (wanted == "cuda" and not cuda) or (wanted == "mps" and not mps):
        raise InputError(
            f"--device {wanted}: PyTorch {torch.__version__} finds no such device here; try --device auto."
        )
    kind = wanted if wanted != "auto" else "cuda" if cuda else "mps" if mps else "cpu"
    what = {
        "cuda": torch.cuda.get_device_name() if cuda else "",
        "mps": "Apple GPU",
        "cpu": f"{torch.get_num_threads()} threads",
    }[kind]
    why = "as asked" if wanted != "auto" else "no GPU that PyTorch can use" if kind == "cpu" else "the fastest here"
    return torch.device(kind), f"{kind} ({what}; {why})"


class Run(NamedTuple):
    """A run: what was asked for, on which data and device, and its two folders."""

    name: str
    flags: argparse.Namespace
    data: Data
    device: torch.device
    checkpoints: Path
    logs: Path
    record: dict  # what results.json holds


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
    if flags.seed != flags.run:
        parts.append(f"seed={flags.seed}")
    return "_".join([*parts, f"run={flags.run:04d}"])


def open_run(model, flags, data, own=(), usual_data="mnist"):
    """The run of a model, e.g. 'vae_z=10', on its data. Prints what it is and where things go; writes nothing.

    own, usual_data: see run_name. Raises InputError where there is no such device, and where training would destroy a
    run that is there already.
    """
    device, device_in_words = choose_device(flags.device)
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
    print(f"device       {device_in_words}")
    print(f"data         {data.origin}: {len(data.x_train):,} training and {len(data.x_test):,} test images")
    print(f"run          {name}, seed {flags.seed}")
    print(f"checkpoints  {flags.checkpoint or folder}")
    print(f"curves       {logs} (tensorboard --logdir logs --samples_per_plugin images=100)", flush=True)
    if flags.train and done and not flags.resume and not flags.overwrite:
        raise InputError(
            f"{folder} holds a run already, at step {done[-1]:,}: --resume 1 goes on with it, --train 0 evaluates it, "
            f"--run {flags.run + 1} trains another, --overwrite 1 deletes it and starts afresh."
        )
    record = {
        "name": name,
        "flags": {k: v for k, v in vars(flags).items() if k not in ("step", "off_default")},
        "data": {"name": data.name, "origin": data.origin, "train": len(data.x_train), "test": len(data.x_test)},
        "evaluated": circumstances(device_in_words),
        "results": {},
    }
    return Run(name, flags, data, device, folder, logs, record)


def draw_samples(run, model, x, writer, step):
    """The pictures of a model of grey images: 200 samples from p(x), and images x (n, X) beside their reconstructions.

    To logs/<name>/samples.png and reconstructions.png, and to TensorBoard where there is a writer.
    """
    pairs = torch.stack([x, model.reconstruct(x)], dim=1).flatten(0, 1)
    for name, images in (("samples", model.mean_x(model.sample_z(200))), ("reconstructions", pairs)):
        pictures.show(name, pictures.grid(images, run.data.shape), run.logs, writer, step)


def draw_styles(run, model, y, writer, step):
    """Twenty styles in every digit: row = digit, column = style z_j, the same z each time. y: (C, C), one-hot rows.

    To logs/<name>/samples.png, and to TensorBoard where there is a writer. Draw these first, for the z to be the same.
    """
    images = model.mean_x(model.sample_z(20), y.unsqueeze(1))  # (C, 20, X)
    pictures.show("samples", pictures.grid(images, run.data.shape), run.logs, writer, step)


def train_or_load(run, model, batches, draw):
    """Give the model its weights: train it as the flags say, or load them (--train 0). Saves, logs, draws on the way.

    batches: start -> the training batches from that step on, endless; draw: (writer, step) -> None, draws the pictures,
    called at every checkpoint and, with no writer, after loading.
    """
    if run.flags.train == 0:
        load(run, model)
        with evaluate.evaluating(model):
            draw(None, None)
        return

    optimizer = adam(model, run.flags.lr)
    start = 0
    if run.flags.resume and checkpoints.steps(run.checkpoints):
        start = checkpoints.resume(run.checkpoints, model, optimizer)
        print(f"resuming after step {start:,}")
    elif run.flags.resume:
        print(f"nothing to resume in {run.checkpoints}: starting afresh")
    stream = batches(start)
    if run.flags.overwrite:
        for folder in filter(Path.is_dir, (run.checkpoints, run.logs)):
            shutil.rmtree(folder)
    for folder in (run.checkpoints, run.logs):  # now, so that what forbids it does so before the training
        folder.mkdir(parents=True, exist_ok=True)
    before = recorded(run, start)

    # TensorBoard forgets what an earlier process logged after the step that this one starts from. The suffix keeps two
    # writers of one second apart, which would otherwise have one file.
    suffix = f".{start:09d}"
    with SummaryWriter(str(run.logs), purge_step=start + 1, flush_secs=10, filename_suffix=suffix) as writer:
        if start == 0:
            writer.add_text("flags", "\n".join(f"    {k} = {v}" for k, v in run.record["flags"].items()))

        def save(step):
            checkpoints.save(run.checkpoints, step, model, optimizer, run.record["flags"])
            if run.flags.keep:
                checkpoints.prune(run.checkpoints, step, run.flags.keep, run.flags.iter_save)
            with evaluate.evaluating(model):
                draw(writer, step)

        def log(step, values):
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)

        with asked_to_stop() as signals:
            step, seconds = train(
                model,
                stream,
                optimizer,
                start=start,
                iter_max=run.flags.iter_max,
                iter_save=run.flags.iter_save,
                save=save,
                log=log,
                stop=lambda: bool(signals),
            )
    trained = step - start
    if trained > 0:
        print(f"trained {trained:,} steps in {seconds:.0f} s, {trained / seconds:.0f} a second")
        earlier = before.get("trained") or {"steps": 0, "seconds": 0}
        run.record["step"] = step
        run.record["trained"] = run.record["evaluated"] | {
            "steps": earlier["steps"] + trained,
            "seconds": round(earlier["seconds"] + seconds, 2),
        }
    else:
        print(f"nothing to train: this run is at step {start:,} already; --iter_max asks for more")
        run.record["step"] = start
        run.record.update(before)
    write_results(run)
    if signals:
        print(f"stopped after step {step:,}, which is saved: --resume 1 goes on from it, --train 0 looks at it.")
        sys.exit(128 + signals[0])


@contextlib.contextmanager
def asked_to_stop():
    """Inside: SIGINT (Ctrl-C) and SIGTERM are put on a list, which is yielded. A second one is KeyboardInterrupt.

    A signal that is ignored, as a script's background jobs ignore SIGINT, stays so.
    """
    signals = []

    def ask(number, frame):
        if signals:
            raise KeyboardInterrupt
        signals.append(number)
        print("\nfinishing this step and saving it; once more stops at once", flush=True)

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def load(run, model):
    """Fill the model from --checkpoint, the checkpoint of --iter_max, or the newest one. Raises InputError."""
    path = run.flags.checkpoint
    if path is None:
        done = checkpoints.steps(run.checkpoints)
        step = done[-1] if run.flags.step is None and done else run.flags.step
        if step not in done:
            missing = f"no checkpoint of step {step:,}" if step else "no checkpoint"
            there = f"there are steps {', '.join(map(str, done))}" if done else "train first, or give --checkpoint FILE"
            raise InputError(f"there is {missing} in {run.checkpoints} to evaluate: {there}.")
        path = checkpoints.weights_path(run.checkpoints, step)
        run.record["step"] = step
    checkpoints.load_weights(model, path)
    print(f"loaded       {path}")
    run.record.update(recorded(run, run.record.get("step")))


def run_main(main):
    """Call main() as a script: what the user can mend ends it with a sentence and code 2, Ctrl-C with 130."""
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(fail(error, 2))
    except NonFiniteError as error:
        sys.exit(fail(error, 1))
    except KeyboardInterrupt:
        sys.exit(130)


def fail(error, code):
    print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
    return code
