"""What the run scripts share: flags, run names and folders, device, the course of a run, the report, results.json."""

import argparse
import contextlib
import datetime
import json
import math
import platform
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tensorboardX import SummaryWriter

from codebase import LABELS, InputError, checkpoints, content, evaluate, pictures
from codebase.data import Data
from codebase.train import NonFiniteError, adam, train

# Flags


def whole(low):
    """A flag's type: a whole number from `low` on (and below 2^63, as torch's seeds are)."""

    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value < 2**63:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} on, below 2^63")
        return value

    return parse


def positive(text):
    """A flag's type: a finite number above 0."""
    value = number(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def weight(text):
    """A flag's type: a finite number from 0 on; an int where it is whole."""
    value = number(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return int(value) if value.is_integer() else value


def number(text):
    """The finite number that a text stands for; nan where it stands for none."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def sample_counts(text):
    """A flag's type: whole numbers from 1 to 5000, comma-separated. Returns them ascending, each once."""
    counts = text.split(",")
    if not all(count.strip().isdecimal() and 1 <= int(count) <= 5000 for count in counts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers from 1 to 5000, such as 1,10,100")
    return sorted({int(count) for count in counts})


def choice(*names):
    """A flag's type: one of these words."""

    def parse(text):
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is not {', '.join(names[:-1])} or {names[-1]}")
        return text

    return parse


def one_of(*numbers):
    """A flag's type: one of these whole numbers."""
    word = choice(*map(str, numbers))
    return lambda text: int(word(text))


switch = one_of(0, 1)


SHARED_FLAGS = [  # name, default, type, what it is
    ("dataset", "auto", str, "auto, mnist, glyphs, or FILE.npz with x_train, y_train, x_test, y_test"),
    ("data_dir", "data", str, "folder of the data sets, as torchvision lays them out"),
    ("iter_max", 20000, whole(1), "training steps in all; with --train 0: the step of the checkpoint to load"),
    ("iter_save", 10000, whole(1), "training steps between two checkpoints"),
    ("keep", 0, whole(0), "checkpoints to keep, the newest, beside that of the last step; 0: all"),
    ("run", 0, whole(0), "number of the run: another run of the same experiment, in a folder of its own"),
    ("seed", None, whole(0), "random seed (default: the number of the run)"),
    (
        "train",
        1,
        one_of(0, 1, 2),
        "1: train, then report the ELBO; 2: and the IWAE bounds; 0: load a checkpoint, report both",
    ),
    ("full", 0, switch, "1: the IWAE bounds also on the whole test set, which takes longer"),
    ("iw_eval", "1,10,100,1000", sample_counts, "the IWAE bounds to report: numbers of samples, comma-separated"),
    ("device", "auto", choice("auto", "cpu", "cuda", "mps"), "auto, cpu, cuda or mps"),
    ("batch_size", 100, whole(1), "images in a training step"),
    ("lr", 1e-3, positive, "learning rate of Adam"),
    ("resume", 0, switch, "1: go on from the last checkpoint of this run"),
    ("overwrite", 0, switch, "1: delete what this run has saved, and start afresh"),
    ("checkpoint", None, str, "with --train 0: a file of weights to load instead of the run's own"),
]
# Of the models that can be trained on their IWAE bound.
IW = ("iw", 1, whole(1), "train on the IWAE bound with that many importance samples; 1 is the ELBO")


def parse_flags(description, own_flags, argv=None):
    """The flags of a run script: the shared ones, and own_flags (as SHARED_FLAGS) added to them or in their place.

    Adds `step`, the --iter_max that was given, or None; and `off_default`, the names of the flags that are not as they
    are by default. What cannot be read ends the process with code 2.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    table = {flag[0]: flag for flag in [*own_flags, *SHARED_FLAGS]} | {flag[0]: flag for flag in own_flags}
    for name, default, kind, what in table.values():
        text = what if default is None else f"{what} (default: {default})"
        parser.add_argument(f"--{name}", type=kind, help=text, metavar=name.upper())
    flags = parser.parse_args(argv)
    flags.step = flags.iter_max
    flags.off_default = set()
    for name, default, kind, _ in table.values():
        default = kind(default) if isinstance(default, str) else default
        if getattr(flags, name) is None:
            setattr(flags, name, default)
        elif getattr(flags, name) != default:
            flags.off_default.add(name)
    if flags.seed is None:
        flags.seed = flags.run
    if flags.resume and flags.overwrite:
        parser.error("--resume 1 goes on with a run and --overwrite 1 deletes it: give one of them")
    if flags.train == 0 and (flags.resume or flags.overwrite):
        parser.error("--resume 1 and --overwrite 1 are for training; --train 0 only evaluates")
    if flags.checkpoint is not None and flags.train:
        parser.error("--checkpoint FILE is for evaluating: add --train 0")
    if flags.checkpoint is not None and flags.step is not None:
        parser.error("--checkpoint FILE and --iter_max both say which weights to load: give one of them")
    if flags.full and flags.train == 1:
        parser.error("--full 1 is about the IWAE bounds, which --train 1 does not report: add --train 0 or 2")
    return flags


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


# The run


class Run(NamedTuple):
    """A run: what was asked for, on which data and device, and its two folders."""

    name: str
    flags: argparse.Namespace
    data: Data
    device: torch.device
    checkpoints: Path
    logs: Path
    record: dict  # what results.json holds


def run_name(model, flags, data, usual_data):
    """The run's name: model, what is off its default and changes the experiment, number of the run.

    So no two experiments share a folder. model: e.g. 'vae_z=10'; usual_data: the data set that goes without saying.
    """
    parts = [f"model={model}"]
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


def open_run(model, flags, data, usual_data="mnist"):
    """The run of a model, e.g. 'vae_z=10', on its data. Prints what it is and where things go; writes nothing.

    Raises InputError where there is no such device, and where training would destroy a run that is there already.
    """
    device, device_in_words = choose_device(flags.device)
    name = run_name(model, flags, data, usual_data)
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
    print(f"curves       {logs} (tensorboard --logdir logs)", flush=True)
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


def circumstances(device_in_words):
    """Where, when and by which code something is computed, for results.json."""
    return {
        "device": device_in_words,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "commit": git_commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def git_commit():
    """The commit of this code, with -dirty where files differ from it; None where that cannot be told."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def recorded(run, step):
    """What results.json holds of this run's weights after `step` steps; an empty dict where that is nothing."""
    try:
        record = json.loads((run.logs / "results.json").read_text())
        kept = {key: record[key] for key in ("flags", "step", "trained", "results") if key in record}
        return kept if kept.get("step") == step and isinstance(kept.get("results"), dict) else {}
    except (OSError, ValueError, TypeError):
        return {}


def write_results(run):
    """Write run.record to results.json."""
    run.logs.mkdir(parents=True, exist_ok=True)
    text = json.dumps(run.record, indent=1, ensure_ascii=False)
    checkpoints.write_atomically(run.logs / "results.json", lambda file: file.write(text.encode()))


def draw_samples(run, model, x, writer, step):
    """The pictures of a model of grey images: 200 samples from p(x), and images x (n, X) beside their reconstructions.

    To logs/<name>/samples.png and reconstructions.png, and to TensorBoard where there is a writer.
    """
    pairs = torch.stack([x, model.reconstruct(x)], dim=1).flatten(0, 1)
    for name, images in (("samples", model.mean_x(model.sample_z(200))), ("reconstructions", pairs)):
        pictures.show(name, pictures.grid(images, run.data.shape), run.logs, writer, step)


def draw_styles(run, model, y, writer, step):
    """Twenty styles in every digit: row = digit, column = style z_j, the same z each time. y: (C, C), one-hot rows.

    To logs/<name>/samples.png, and to TensorBoard where there is a writer. To be called first in a picture's drawing.
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
                checkpoints.prune(run.checkpoints, run.flags.keep, run.flags.iter_save)
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
    if signals and step < run.flags.iter_max:
        print(f"stopped after step {step:,}, which is saved: --resume 1 goes on from it, --train 0 looks at it.")
        sys.exit(128 + signals[0])


@contextlib.contextmanager
def asked_to_stop():
    """Inside: SIGINT (Ctrl-C) and SIGTERM are put on a list, which is yielded. A second one is KeyboardInterrupt."""
    signals = []

    def ask(number, frame):
        if signals:
            raise KeyboardInterrupt
        signals.append(number)
        print("\nfinishing this step and saving it; once more stops at once", flush=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
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


def report(run, model, splits, bits=False):
    """Print the bounds on each split and write them to results.json. splits: {'subset' or 'test': (tensors)}.

    The ELBO always; the IWAE bounds with --train 0 or 2, on the whole test set only with --full 1. bits: in bits per
    dimension, too, which are for densities of 8-bit values.
    """

    def record(results, name, nats):
        """Keep one bound; returns how it is printed in bits."""
        results[name] = nats.record()
        if not bits:
            return ""
        per_dimension = evaluate.bits_per_dimension(nats, run.data.x_test.shape[1])
        results[f"{name}_bits"] = per_dimension.record()
        return f" ({per_dimension.mean:.4f} ± {per_dimension.se:.4f} bits per dimension)"

    whose = {
        "subset": "the homework's test subset" if run.data.name == "mnist" else "a fixed subset of the test set",
        "test": "the whole test set",
    }
    if splits:
        binary = "" if bits else ", which are binarised once with a fixed seed"
        print(f"\nIn nats, each ± its standard error over the images{binary}.")
    for name, split in splits.items():
        print(f"\n{run.data.name}, {whose[name]} ({len(split[0]):,} images)")
        results = run.record["results"].setdefault(name, {})
        terms = evaluate.elbo(model, split)
        results |= {term: value.record() for term, value in terms.items()}
        in_bits = record(results, "nelbo", terms["nelbo"])
        print("  ".join(f"{LABELS[term]}: {value}" for term, value in terms.items()) + in_bits, flush=True)
        units = evaluate.latent_units(model, split)
        few = units["kl"] is not None and units["units"] <= 20  # results.json has them all
        each = f"; KL of each: {' '.join(f'{kl:.2f}' for kl in units['kl'])}" if few else ""
        print(f"Active latent units: {units['active']} of {units['units']}{each}", flush=True)
        results["latent_units"] = units
        if run.flags.train != 1 and (name == "subset" or run.flags.full):
            bounds, ess = evaluate.iwae(model, split, run.flags.iw_eval)
            for m, value in bounds.items():
                print(f"Negative IWAE-{m}: {value}{record(results, f'iwae_{m}', value)}")
            print(
                f"Relative effective sample size of {m} importance weights: {ess.mean:.2%} ± {ess.se:.2%}", flush=True
            )
            results["ess"] = ess.record() | {"samples": m}
        write_results(run)


def report_accuracy(run, model, x, y):
    """Print how well the classifier q(y|x) does on the test images, x (N, X) grey, and write it to results.json."""
    percent, confusion = evaluate.accuracy(evaluate.classify(model, x), y)
    print(f"\nTest images by true class (row) and predicted class (column)\n{confusion_table(confusion)}")
    print(f"Test set classification accuracy: {percent} %", flush=True)
    results = run.record["results"].setdefault("test", {})
    results |= {"accuracy_percent": percent.record(), "confusion": confusion.tolist()}
    write_results(run)


def report_content(run, model, judged):
    """Print how often a classifier of real images finds the label in generated ones, and write it to results.json.

    judged: the classifier and its own accuracy on the test images, as content.judge returns them.
    """
    classifier, own = judged
    percent, confusion = content.generated_accuracy(model, classifier)
    print(f"\nGenerated images by label (row) and what a classifier sees (column)\n{confusion_table(confusion)}")
    print(f"Generated digits that show their label: {percent} % of {percent.n:,}, to that classifier,")
    print(f"whose accuracy on the {own.n:,} real test images is {own} %", flush=True)
    run.record["results"]["generated"] = {
        "accuracy_percent": percent.record(),
        "classifier_percent": own.record(),
        "confusion": confusion.tolist(),
    }
    write_results(run)


def confusion_table(counts):
    """A confusion matrix (C, C) as a Markdown table."""
    lines = [["", *range(len(counts))], ["---:"] * (len(counts) + 1)]
    lines += [[f"**{true}**", *row] for true, row in enumerate(counts.tolist())]
    return "\n".join(f"| {' | '.join(f'{cell:>5}' for cell in map(str, line))} |" for line in lines)


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
