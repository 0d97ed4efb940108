"""The results of a run: printed, and saved in logs/<name>/results.json."""

import io
import json
import math
import re

from PIL import Image

from codebase import evaluate, processes
from codebase.errors import InputError, NonFiniteError
from codebase.pictures import Picture
from codebase.runs.files import write_atomically
from codebase.runs.tables import markdown, means, printed_name
from codebase.runs.tensorboard import write_hparams

TABLE_CLASSES = 30  # a confusion matrix with more classes is not printed
TAKEN = (
    r"^(train|gen|class|eval)/|(^|/)(nelbo|kl\w*|rec|iwae_\d+|ess|latent_units|confusion)$"  # names of other numbers
)
LESS_IMPORTANT = r" (kl|kl_z|kl_y|rec|classifier_percent|iwae_\d{1,3})$"  # numbers that HPARAMS shows last


def read_results(run, step):
    """This run's results after `step` steps, from results.json; an empty dict if there are none."""
    try:
        record = json.loads((run.logs / "results.json").read_text())
        keys = ("flags", "experiment", "step", "shown", "trained", "complete", "results")
        kept = {key: record[key] for key in keys if key in record}
        means(kept["results"]), dict(kept.get("experiment", {}))  # raise an error if they hold something else
        list(kept.get("trained", {}).get("code", []))
        return kept if kept.get("step") == step else {}
    except Exception:  # it may be absent, or damaged; then the numbers are computed again
        return {}


def finished(run):
    """Does results.json hold everything that a training with these flags would report?"""
    record, flags = read_results(run, run.flags.iter_max), run.flags
    bounds = {f"iwae_{m}" for m in flags.iw_eval} if flags.train == 2 else set()
    splits = record.get("results", {}).items()
    wanted = [numbers for name, numbers in splits if "nelbo" in numbers and (name == "subset" or flags.full)]
    return record.get("complete") is True and all(bounds <= numbers.keys() for numbers in wanted)


def write_results(run):
    """Write run.record to results.json."""
    run.logs.mkdir(parents=True, exist_ok=True)
    text = json.dumps(run.record, indent=1).encode()
    write_atomically(run.logs / "results.json", lambda file: file.write(text))


def add_results(run, split, **numbers):
    """Add numbers to the results of a split, and write results.json."""
    run.record["results"].setdefault(split, {}).update(numbers)
    write_results(run)


def looked_at(model, look):
    """What look(model) returns, {name: Picture or Estimate}. InputError for other values, NonFiniteError for nan."""
    with evaluate.evaluating(model):
        shown = look(model)
    if not isinstance(shown, dict):
        raise InputError(f"`look` must return a dict, {{name: Picture or number}}; it returned {type(shown).__name__}.")
    for name, value in shown.items():
        if not isinstance(name, str) or re.search(TAKEN, name) or (isinstance(value, Picture) and "/" in name):
            raise InputError(f"`look` needs another name than {name!r}, which the report or the training uses itself.")
        if isinstance(value, Picture):
            continue
        if not isinstance(value, evaluate.Estimate):
            try:
                shown[name] = value = evaluate.Estimate(float(value), math.nan, 1)
            except (TypeError, ValueError) as error:
                what = type(value).__name__
                raise InputError(
                    f"{name} of `look` is {what}; it must be a Picture, a number or an Estimate."
                ) from error
        if not math.isfinite(value.mean):
            raise NonFiniteError(f"{name} of `look` is {value.mean}.")
    return shown


def show(run, writer, step, curves, shown):
    """Write the points {tag: value} of the curves, and what looked_at has returned; None if it was not called.

    writer: an EventFile, or None. Only the first process writes.
    """
    if shown is not None:
        run.numbers = {name: value for name, value in shown.items() if not isinstance(value, Picture)}
    if processes.rank() > 0:
        return
    for name, picture in (shown or {}).items():
        if name not in run.numbers:
            png = io.BytesIO()
            Image.fromarray(picture.pixels).save(png, format="png")
            run.logs.mkdir(parents=True, exist_ok=True)
            write_atomically(run.logs / f"{name}.png", lambda file, png=png: file.write(png.getvalue()))
            if writer is not None:
                writer.add_image(name, png.getvalue(), picture.pixels.shape, step, picture.legend)
    if writer is not None:
        for tag, value in (curves | {name: number.mean for name, number in run.numbers.items() if shown}).items():
            writer.add_scalar(tag, value, step)
    if writer is not None and shown is not None:
        writer.flush()
        run.record["step"] = run.record["shown"] = step
        write_results(run)


def complete(run):
    """Write results.json with the numbers of the last look: the run is complete."""
    for name, number in run.numbers.items():
        *split, name = name.split("/", 1)
        run.record["results"].setdefault("".join(split), {})[name] = number.record()
    log_hparams(run, ended=True)
    run.record["complete"] = True
    write_results(run)


def log_hparams(run, ended=False):
    """What TensorBoard's tab HPARAMS shows: the flags of the experiment, and when the run has ended its numbers.

    The tab has a column for every tag, in alphabetical order, and shows the first five until others are selected.
    """
    if processes.rank() > 0:
        return
    numbers = {
        f"{'final_more' if re.search(LESS_IMPORTANT, name) else 'final'}/{name}": mean
        for name, mean in means(run.record["results"]).items()
    }
    flags = {"model": run.model} | run.record["experiment"]
    write_hparams(run.logs / "final", run.record.get("step", 0), flags, numbers if ended else None)


def report(run, model, splits, bits=False):
    """Print the bounds on the test images, and save them in results.json; print the numbers of the last look.

    splits: as data.binary_splits returns them.
    The ELBO always; the IWAE bounds with --train 0 or 2, on the whole test set only with --full 1. bits: also in bits
    per dimension, for models of 8-bit images; of a density, those of the images with noise (evaluate.dequantised).
    """

    def in_bits(nats):
        return evaluate.bits_per_dimension(nats, run.data.x_dim, model.is_density)

    def keep(split, estimates, ending=""):
        add_results(run, split, **{f"{name}{ending}": value.record() for name, value in estimates.items()})

    whose = {
        "subset": "the homework's test subset" if run.data.name == "mnist" else "a fixed subset of the test set",
        "test": "the whole test set",
        "validation": "the validation images",
    }
    if splits:
        are_binary = all(((x == 0) | (x == 1)).all() for x, *_ in splits.values())
        binary = ", which are binarised once with a fixed seed" if are_binary else ""
        print(f"\nIn nats, each ± its standard error over the images{binary}.")
    for name, split in splits.items():
        if name == "train":
            continue
        print(f"\n{run.data.name}, {whose.get(name, name)} ({len(split[0]):,} images)")
        terms = evaluate.elbo(model, split)
        print("  ".join(f"{printed_name(term)}: {value}" for term, value in terms.items()), flush=True)
        keep(name, terms)
        if bits:
            noisy = evaluate.elbo(model, split, noise=True) if model.is_density else terms
            coded = {term: in_bits(noisy[term]) for term in ("nelbo", "rec") if term in noisy}
            print(
                f"Bits per dimension: {'  '.join(f'{printed_name(k)}: {b:.4f}' for k, b in coded.items())}", flush=True
            )
            keep(name, coded, "_bits")
        units = evaluate.latent_units(model, split)
        print(f"Active latent units: {units['active']} of {units['units']}", flush=True)
        add_results(run, name, latent_units=units)
        if run.flags.train != 1 and (name == "subset" or run.flags.full):
            ms = run.flags.iw_eval
            bounds, ess = evaluate.iwae(model, split, ms)
            coded = {}
            if bits:
                noisy = evaluate.iwae(model, split, ms, noise=True)[0] if model.is_density else bounds
                coded = {m: in_bits(value) for m, value in noisy.items()}
            for m, value in bounds.items():
                more = f" ({coded[m]:.4f} bits per dimension)" if bits else ""
                print(f"Negative {printed_name(f'iwae_{m}')}: {value}{more}")
            print(f"Relative effective sample size of {max(ms)} importance weights: {ess:.2%}", flush=True)
            keep(name, {f"iwae_{m}": value for m, value in bounds.items()})
            keep(name, {f"iwae_{m}": value for m, value in coded.items()}, "_bits")
            add_results(run, name, ess=ess.record() | {"samples": max(ms)})
    if run.numbers:
        lines = (f"{printed_name(name.replace('/', ' '))}: {number}" for name, number in run.numbers.items())
        print("\n" + "\n".join(lines), flush=True)


def report_confusion(run, model):
    """Print how the classifier q(y|x) classifies the test images, and save the counts in results.json."""
    log_q = evaluate.classify(model, run.data.x_test)
    counts = evaluate.accuracy(log_q, run.data.y_test)[1]
    print(f"\nTest images by true class (row) and predicted class (column)\n{confusion_table(counts)}", flush=True)
    add_results(run, "test", confusion=counts.tolist())


def confusion_table(counts):
    """A confusion matrix (C, C) as a Markdown table, without the rows of classes that have no images.

    If it has more than TABLE_CLASSES classes, a sentence instead.
    """
    if len(counts) > TABLE_CLASSES:
        return f"({len(counts):,} classes: the table is in results.json)"
    head = ["     ", *(f"{c:>5}" for c in range(len(counts)))]
    rows = [[f"**{c}**", *(f"{n:>5}" for n in row)] for c, row in enumerate(counts.tolist()) if any(row)]
    return markdown([head, *rows])
