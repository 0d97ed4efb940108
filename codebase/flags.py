"""The flags of the run scripts: their types, those that all scripts share, and the parser."""

import argparse
import copy
import math

from codebase.precision import CHOICES


def whole(low, high=2**63 - 1):
    """A flag's type: a whole number from `low` to `high` (torch's seeds are below 2^63)."""

    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            limits = f"from {low} on, below 2^63" if high == 2**63 - 1 else f"from {low} to {high:,}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {limits}")
        return value

    return parse


def positive(text):
    """A flag's type: a finite number above 0."""
    value = number(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def weight(text):
    """A flag's type: a number from 0 to a billion; an int where it is whole."""
    value = number(text)
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1,000,000,000")
    return int(value) if value.is_integer() else value


def number(text):
    """The finite number that a text stands for; nan where it stands for none."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def text(argument):
    """A flag's type: text that can be printed and kept in files, which bytes that are no UTF-8 cannot."""
    if "\0" in argument or argument != argument.encode(errors="ignore").decode():
        raise argparse.ArgumentTypeError(f"{argument!a} is not UTF-8 text")
    return argument


def sample_counts(text):
    """A flag's type: whole numbers from 1 to 5000, comma-separated. Returns them ascending, each once."""
    counts = text.split(",")
    if not all(count.strip().isdecimal() and 1 <= int(count) <= 5000 for count in counts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers from 1 to 5000, such as 1,10,100")
    return sorted({int(count) for count in counts})


def schedule(text):
    """A flag's type: constant, cosine, or whole numbers above 0, comma-separated. Returns the text, sorted."""
    if text in ("constant", "cosine"):
        return text
    steps = text.split(",")
    if not all(step.strip().isdecimal() and 1 <= int(step) <= 2**62 for step in steps):
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of constant, cosine, and a list of steps such as 8000,16000"
        )
    return ",".join(map(str, sorted({int(step) for step in steps})))


def precision(default):
    """The flag --precision, for a script whose default it is."""
    what = "of matrix products in training: highest, high or medium (codebase/precision.py); evaluation is in float32"
    return ("precision", default, CHOICES, what)


size = whole(1, 1_000_000)  # a flag's type, of what arrays are made of
SWITCH = (0, 1)

SHARED_FLAGS = [  # name, default, type or choices, what it is
    ("dataset", "auto", text, "auto, mnist, glyphs, or FILE.npz with x_train, y_train, x_test, y_test"),
    ("data_dir", "data", text, "folder of the data sets, as torchvision lays them out"),
    ("iter_max", 20000, whole(1), "training steps in all; with --train 0: the step of the checkpoint to load"),
    ("iter_save", 10000, whole(1), "training steps between two checkpoints"),
    ("keep", 0, whole(0), "checkpoints to keep, the newest, beside that of the last step; 0: all"),
    ("run", 0, whole(0), "number of the run: another run of the same experiment, in a folder of its own"),
    ("seed", None, whole(0), "random seed (default: the number of the run)"),
    ("replicates", 1, whole(1, 10_000), "runs to train, from --run on, each its own seed; finished ones are skipped"),
    (
        "train",
        1,
        (0, 1, 2),
        "1: train, then report the ELBO; 2: and the IWAE bounds; 0: load a checkpoint, report both",
    ),
    ("full", 0, SWITCH, "1: the IWAE bounds also on the whole test set, which takes longer"),
    ("iw_eval", "1,10,100,1000", sample_counts, "the IWAE bounds to report: numbers of samples, comma-separated"),
    ("device", "auto", ("auto", "cpu", "cuda", "mps"), "auto, cpu, cuda or mps"),
    ("batch_size", 100, size, "images in a training step"),
    ("lr", 1e-3, positive, "learning rate of Adam"),
    (
        "lr_schedule",
        "constant",
        schedule,
        "constant, cosine (to 0 at --iter_max), or steps at which it is divided by 10: 8000,16000",
    ),
    precision("medium"),
    (
        "fast",
        "auto",
        ("auto", "0", "1"),
        "1: train by a compiled update, or on CUDA by a graph of it; 0: by the plain one; auto: as it pays",
    ),
    ("resume", 0, SWITCH, "1: go on from the last checkpoint of this run"),
    ("overwrite", 0, SWITCH, "1: delete what this run has saved, and start afresh"),
    (
        "deterministic",
        0,
        SWITCH,
        "1: only algorithms that give the same numbers each time, also on a GPU; may be slower",
    ),
    ("checkpoint", None, text, "with --train 0: a file of weights to load instead of the run's own"),
]
# Flags that may change from one part of a run to the next. All others decide what its weights are.
FREE = {
    *("data_dir", "iter_max", "iter_save", "keep", "run", "replicates", "train", "full", "iw_eval", "device", "fast"),
    *("resume", "overwrite", "deterministic", "checkpoint", "step", "off_default"),  # the last two: see parse_flags
}

# Of the models that can be trained on their IWAE bound.
IW = ("iw", 1, size, "train on the IWAE bound with that many importance samples; 1 is the ELBO")


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
        kind, choices = (type(kind[0]), kind) if isinstance(kind, tuple) else (kind, None)
        parser.add_argument(f"--{name}", type=kind, choices=choices, help=text, metavar=name.upper())
    flags = parser.parse_args(argv)
    flags.step = flags.iter_max
    flags.off_default = set()
    for name, default, kind, _ in table.values():
        if getattr(flags, name) == []:  # what some versions of argparse make of "--flag=--"
            parser.error(f"argument --{name}: '--' is not a value")
        default = kind(default) if isinstance(default, str) and callable(kind) else default
        if getattr(flags, name) is None:
            setattr(flags, name, default)
        elif getattr(flags, name) != default:
            flags.off_default.add(name)
    if flags.seed is None:
        flags.seed = flags.run
    if max(flags.seed, flags.run) + flags.replicates > 2**63:
        parser.error("--replicates: the last run's number or seed would not be below 2^63")
    if flags.checkpoint is not None and flags.replicates > 1:
        parser.error("--checkpoint FILE is one file of weights: it has no --replicates")
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


def replicates(flags):
    """The flags of each of the --replicates: a run of the next number and seed, which is gone on with where it has
    begun (unless --overwrite 1 says otherwise)."""
    for i in range(flags.replicates):
        each = copy.deepcopy(flags)
        each.run, each.seed = flags.run + i, flags.seed + i
        yield each
