"""The flags of the run scripts, all defined in one table."""

import argparse
import contextlib
import copy
import math
import re
from typing import NamedTuple

from codebase.precision import PRECISIONS


class Flag(NamedTuple):
    """A flag of a run script, --name.

    Unless `experiment` is False, the flag is part of the experiment: a value that is not the default is added to the
    run's name, and a run cannot be resumed with another value. So no two experiments share a folder.
    """

    name: str
    default: object
    type: object  # a function from text to the value, or a tuple of the values to choose from
    help: str
    experiment: bool = True
    in_name: str = ""  # its format in the run's name; "" stands for "name={}"
    always: bool = False  # is it in the run's name even if it has the default?


def checked(parse, is_valid, what):
    """The type of a flag: returns parse(text) if that is valid. Otherwise argparse says that the text is not `what`."""

    def convert(text):
        with contextlib.suppress(ValueError, OverflowError):
            value = parse(text)
            if is_valid(value):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")

    return convert


def whole(low, high=10**15):
    return checked(int, lambda n: low <= n <= high, f"a whole number from {low:,} to {high:,}")


def number(text):
    """The number as an int if it is whole: 100 and 100.0 are the same experiment."""
    value = float(text)
    return int(value) if value.is_integer() else value


def whole_numbers(text):
    """'100,1,10' -> [1, 10, 100]"""
    return sorted({int(part) for part in text.split(",")})


def schedule(text):
    return text if text in ("constant", "cosine", "burda") else ",".join(map(str, whole_numbers(text)))


size = whole(1, 1_000_000)
weight = checked(number, lambda x: 0 <= x <= 1e9, "a number from 0 to 1,000,000,000")
positive = checked(float, lambda x: 0 < x < math.inf, "a number above 0")
sample_counts = checked(
    whole_numbers, lambda ns: ns[0] >= 1 and ns[-1] <= 5000, "a list of whole numbers from 1 to 5000, such as 1,10,100"
)
lr_schedule = checked(
    schedule, lambda text: text[0] not in "-0", "one of constant, cosine, burda, and a list of steps such as 8000,16000"
)
SWITCH = (0, 1)


def hidden_flag(default):
    """--hidden, for a script with this default."""
    return Flag("hidden", default, size, "units in each of the two hidden layers of the networks")


# For the models that can be trained on the IWAE bound.
IW = Flag("iw", 1, size, "train on the IWAE bound with this many importance samples; 1: the ELBO", in_name="iw={:02d}")

DATASET = "auto ({}, or else glyphs), mnist, svhn, glyphs, or FILE.npz with x_train, y_train, x_test, y_test"
ITER_MAX = "training steps in all; with --train 0: the step of the checkpoint to load"
LR_SCHEDULE = "constant, cosine (0 at --iter_max), burda (Burda et al. 2016), or steps that divide it by 10: 8000,16000"
PRECISION = (
    "of matrix products in training; bfloat16: rounds their factors, which is faster where there is hardware for it"
)
FAST = "1: compile the training step; 0: do not; auto: if it saves time"
SHARED_FLAGS = [
    Flag("dataset", "auto", str, DATASET.format("mnist"), in_name="data={}"),
    Flag("batch_size", 100, size, "images in a training step", in_name="batch={}"),
    Flag("lr", 1e-3, positive, "learning rate of Adam"),
    Flag("lr_schedule", "constant", lr_schedule, LR_SCHEDULE, in_name="schedule={}"),
    Flag("precision", "float32", PRECISIONS, PRECISION),
    Flag("validation", 0, whole(0), "hold out this many training images, the last ones, for choosing flags"),
    Flag("seed", None, whole(0), "random seed (default: the number of the run)"),
    # The flags below may change when a run is resumed.
    Flag("data_dir", "data", str, "folder of the data sets, as torchvision arranges them", False),
    Flag("iter_max", 20000, whole(1), ITER_MAX, False),
    Flag("iter_save", 10000, whole(1), "training steps between two checkpoints", False),
    Flag("keep", 0, whole(0), "keep only this many newest checkpoints, and that of the last step; 0: keep all", False),
    Flag("run", 0, whole(0), "number of the run: the same experiment, in another folder and with another seed", False),
    Flag("replicates", 1, whole(1, 10_000), "train this many runs, numbered from --run on; skip finished ones", False),
    Flag("train", 1, (0, 1, 2), "1: train, report the ELBO; 2: also the IWAE bounds; 0: load, report both", False),
    Flag("full", 0, SWITCH, "1: the IWAE bounds of all test and validation images, which takes longer", False),
    Flag("iw_eval", [1, 10, 100, 1000], sample_counts, "the IWAE bounds to report: numbers of samples", False),
    Flag("device", "auto", ("auto", "cpu", "cuda", "mps"), "where to compute; auto: on a GPU if there is one", False),
    Flag("fast", "auto", ("auto", "0", "1"), FAST, False),
    Flag("resume", 0, SWITCH, "1: resume this run from its last checkpoint", False),
    Flag("overwrite", 0, SWITCH, "1: delete what this run has saved, and start again", False),
    Flag("deterministic", 0, SWITCH, "1: only algorithms that give the same numbers each time; may be slower", False),
    Flag("checkpoint", None, str, "with --train 0: a file of weights to load instead of the run's own", False),
]


class Flags(argparse.Namespace):
    """The values of the flags, and their `table`; `step` is the --iter_max that was given, or None."""

    def values(self):
        """{name: value}"""
        return {flag.name: getattr(self, flag.name) for flag in self.table}

    def experiment(self, data):
        """What decides the weights of a run: {name: value} of the flags of the experiment, and the data."""
        values = {flag.name: getattr(self, flag.name) for flag in self.table if flag.experiment}
        if self.lr_schedule == "cosine":
            values["iter_max"] = self.iter_max
        return values | {"dataset": data.name}

    def run_name(self, model, data, usual_data):
        """The run's name, such as 'model=vae_z=10_iw=05_run=0000'. usual_data: the data set that the name omits."""
        usual = {flag.name: flag.default for flag in self.table} | {"dataset": usual_data, "seed": self.run}
        parts = [f"model={model}"]
        for flag in self.table:
            value = data.name if flag.name == "dataset" else getattr(self, flag.name)
            if flag.experiment and (flag.always or value not in (None, usual[flag.name])):
                parts.append((flag.in_name or f"{flag.name}={{}}").format(value))
        return re.sub(r"[^\w=.,+-]", "-", "_".join([*parts, f"run={self.run:04d}"]))


def parse_flags(description, own_flags, argv=None):
    """The Flags of a run script: its own, then the shared ones; an own flag replaces a shared one of the same name.

    Invalid flags end the process with code 2.
    """
    own = {flag.name for flag in own_flags}
    table = [*own_flags, *(flag for flag in SHARED_FLAGS if flag.name not in own)]
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for flag in table:
        text = flag.help if flag.default is None else f"{flag.help} (default: {flag.default})"
        kind, choices = (type(flag.type[0]), flag.type) if isinstance(flag.type, tuple) else (flag.type, None)
        parser.add_argument(f"--{flag.name}", type=kind, choices=choices, help=text)
    flags = parser.parse_args(argv, Flags())
    flags.table, flags.step, iw_eval = table, flags.iter_max, flags.iw_eval
    for flag in table:
        if getattr(flags, flag.name) is None:
            setattr(flags, flag.name, flag.default)
    if flags.seed is None:
        flags.seed = flags.run
    file, evaluate = flags.checkpoint is not None, flags.train == 0
    for wrong, sentence in (
        (flags.resume and flags.overwrite, "--resume 1 resumes a run and --overwrite 1 deletes it: give one of them"),
        (evaluate and (flags.resume or flags.overwrite), "--resume 1 and --overwrite 1 exclude --train 0"),
        (flags.full and flags.train == 1, "--full 1 is about the IWAE bounds: add --train 0 or 2"),
        (iw_eval and flags.train == 1, "--iw_eval chooses the IWAE bounds: add --train 0 or 2"),
        (file and not evaluate, "--checkpoint FILE is for evaluating: add --train 0"),
        (file and flags.replicates > 1, "--checkpoint FILE is one file of weights: it excludes --replicates"),
        (file and flags.step, "--checkpoint FILE and --iter_max both say which weights to load: give one of them"),
    ):
        if wrong:
            parser.error(sentence)
    return flags


def replicates(flags):
    """Yields the Flags of each of the --replicates: number and seed of the run increase by 1."""
    for i in range(flags.replicates):
        each = copy.copy(flags)
        each.run, each.seed = flags.run + i, flags.seed + i
        yield each
