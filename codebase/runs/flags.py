"""The flags of the run scripts, all defined in one table."""

import argparse
import contextlib
import copy
import difflib
import math
import os
import re
from typing import NamedTuple

from codebase.errors import InputError


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
        with contextlib.suppress(ValueError):
            value = parse(text)
            if is_valid(value):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")

    return convert


def number(text):
    """The number as an int if it is whole: 100 and 100.0 are the same experiment."""
    value = float(text)
    return int(value) if value.is_integer() else value


def whole_numbers(text):
    """'100,1,10' -> [1, 10, 100]"""
    return sorted({int(part) for part in text.split(",")})


def schedule(text):
    return text if text in ("constant", "cosine", "burda") else ",".join(map(str, whole_numbers(text)))


count = checked(int, lambda n: n >= 0, "a whole number, 0 or more")
size = checked(int, lambda n: n >= 1, "a whole number, 1 or more")
weight = checked(number, lambda x: 0 <= x < math.inf, "a number, 0 or more")
positive = checked(float, lambda x: 0 < x < math.inf, "a number above 0")
sample_counts = checked(whole_numbers, lambda ns: ns[0] >= 1, "a list of whole numbers, 1 or more, such as 1,10,100")
file = checked(str, os.path.isfile, "a file")
lr_schedule = checked(schedule, lambda text: text[0] not in "-0", "constant, cosine, burda, or steps: 8000,16000")
SWITCH = (0, 1)

# For the models that can be trained on the IWAE bound.
IW = Flag("iw", 1, size, "train on the IWAE bound with this many importance samples; 1: the ELBO", in_name="iw={:02d}")
HIDDEN = Flag("hidden", 300, size, "units in each of the two hidden layers of the networks")
DATASET = Flag("dataset", "auto", str, "mnist, svhn, glyphs, FILE.npz, or auto: the homework's", in_name="data={}")
LR_SCHEDULE = "constant, cosine, burda (Burda et al. 2016), or steps at which it is divided by 10: 8000,16000"
SHARED_FLAGS = [
    DATASET,
    Flag("batch_size", 100, size, "images in a training step", in_name="batch={}"),
    Flag("lr", 1e-3, positive, "learning rate of Adam"),
    Flag("lr_schedule", "constant", lr_schedule, LR_SCHEDULE, in_name="schedule={}"),
    Flag("precision", "float32", ("float32", "bfloat16"), "of matrix products in training; bfloat16 can be faster"),
    Flag("validation", 0, count, "hold out this many training images, the last ones, for choosing flags"),
    Flag("seed", None, count, "random seed (default: the number of the run)"),
    # The flags below may change when a run is resumed.
    Flag("data_dir", None, str, "folder of the data sets (default: the environment's DATA_DIR, or else data)", False),
    Flag("iter_max", 20000, size, "training steps in all; with --train 0: the step of the checkpoint to load", False),
    Flag("iter_save", 10000, size, "training steps between two checkpoints", False),
    Flag("run", 0, count, "number of the run: the same experiment, in another folder and with another seed", False),
    Flag("replicates", 1, size, "train this many runs, numbered from --run on; skip finished ones", False),
    Flag("train", 1, (0, 1, 2), "1: train, report the ELBO; 2: also the IWAE bounds; 0: load, report both", False),
    Flag("full", 0, SWITCH, "1: the IWAE bounds of all test and validation images, which takes longer", False),
    Flag("iw_eval", [1, 10, 100, 1000], sample_counts, "the IWAE bounds to report: numbers of samples", False),
    Flag("device", "auto", ("auto", "cpu", "cuda", "mps"), "where to compute; auto: on a GPU if there is one", False),
    Flag("fast", "auto", ("auto", "0", "1"), "1: compile the training step; 0: do not; auto: if it saves time", False),
    Flag("resume", 0, SWITCH, "1: resume this run from its last checkpoint, or start it", False),
    Flag("overwrite", 0, SWITCH, "1: delete what this run has saved, and start again", False),
    Flag("deterministic", 0, SWITCH, "1: only algorithms that give the same numbers each time; may be slower", False),
    Flag("checkpoint", None, file, "a file of weights to evaluate, as --train 0 does, instead of the run's own", False),
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

    def of_run(self, i):
        """The Flags of the i-th of the --replicates: the numbers of the run and of the seed are larger by i."""
        each = copy.copy(self)
        each.run, each.seed = self.run + i, self.seed + i
        return each


def parse_flags(description, own_flags, argv=None, **defaults):
    """The Flags of a run script: its own, then the other shared ones; defaults: {name: another default}.

    InputError if they are invalid.
    """
    by_name = {flag.name: flag for flag in [*own_flags, *SHARED_FLAGS]}
    table = [flag._replace(default=defaults.get(name, flag.default)) for name, flag in by_name.items()]
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for flag in table:
        text = flag.help if flag.default is None else f"{flag.help} (default: {flag.default})"
        kind, choices = (type(flag.type[0]), flag.type) if isinstance(flag.type, tuple) else (flag.type, None)
        parser.add_argument(f"--{flag.name}", type=kind, choices=choices, help=text)

    def fail(message):
        raise InputError(message)

    parser.error = fail  # without the usage, which is longer than a screen
    flags, unknown = parser.parse_known_args(argv, Flags())
    if unknown:
        name = re.split("[= ]", unknown[0])[0].strip("-").replace("-", "_").lower()
        near = [f"did you mean --{each}?" for each in difflib.get_close_matches(name, by_name, 1)]
        fail(f"unrecognized arguments: {' '.join(unknown)}; {(near or ['--help lists the flags.'])[0]}")
    flags.table, flags.step = table, flags.iter_max
    for flag in table:
        if getattr(flags, flag.name) is None:
            setattr(flags, flag.name, flag.default)
    flags.data_dir = flags.data_dir or os.environ.get("DATA_DIR") or None
    if flags.seed is None:
        flags.seed = flags.run
    if flags.checkpoint is not None:
        flags.train = 0
    if flags.resume and flags.overwrite:
        fail("--resume 1 resumes a run and --overwrite 1 deletes it: give one of them.")
    return flags
