"""What a run found: printed, and kept in logs/<name>/results.json with the circumstances."""

import datetime
import json
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch

from codebase import called, checkpoints, content, evaluate

TABLE_CLASSES = 30  # a confusion matrix of more classes is not printed

# results.json


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
        kept = {key: record[key] for key in ("flags", "step", "trained", "complete", "results") if key in record}
        splits = kept["results"].values()
        return kept if kept.get("step") == step and all(isinstance(split, dict) for split in splits) else {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def finished(run):
    """Does results.json hold already all that a training by these flags would report?"""
    record, flags = recorded(run, run.flags.iter_max), run.flags
    bounds = {f"iwae_{m}" for m in flags.iw_eval} if flags.train == 2 else set()
    splits = [  # those that have bounds at all
        results
        for name, results in record.get("results", {}).items()
        if "nelbo" in results and (name == "subset" or flags.full)
    ]
    return record.get("complete") is True and all(bounds <= results.keys() for results in splits)


def write_results(run):
    """Write run.record to results.json."""
    run.logs.mkdir(parents=True, exist_ok=True)
    text = json.dumps(run.record, indent=1, ensure_ascii=False).encode(errors="backslashreplace")
    checkpoints.write_atomically(run.logs / "results.json", lambda file: file.write(text))


# The report


def report(run, model, splits, bits=False):
    """Print the bounds on the test images and write them to results.json. splits: as data.binary_splits gives them.

    The ELBO always; the IWAE bounds with --train 0 or 2, on the whole test set only with --full 1. bits: in bits per
    dimension, too, which are for densities of 8-bit values.
    """

    def keep(results, name, nats):
        """Keep a number in results, in bits per dimension too if they are wanted. Returns those as text."""
        results[name] = nats.record()
        if not bits:
            return ""
        estimate = evaluate.bits_per_dimension(nats, run.data.x_dim, density=name != "kl")
        results[f"{name}_bits"] = estimate.record()
        return f"{estimate.mean:.4f} ± {estimate.se:.4f}"

    whose = {
        "subset": "the homework's test subset" if run.data.name == "mnist" else "a fixed subset of the test set",
        "test": "the whole test set",
    }
    if splits:
        binary = "" if bits else ", which are binarised once with a fixed seed"
        print(f"\nIn nats, each ± its standard error over the images{binary}.")
    for name, split in splits.items():
        if name not in whose:
            continue
        print(f"\n{run.data.name}, {whose[name]} ({len(split[0]):,} images)")
        results = run.record["results"].setdefault(name, {})
        terms = evaluate.elbo(model, split)
        in_bits = {term: keep(results, term, value) for term, value in terms.items()}
        print("  ".join(f"{called(term)}: {value}" for term, value in terms.items()), flush=True)
        if bits:
            print(f"Bits per dimension: {'  '.join(f'{called(term)}: {text}' for term, text in in_bits.items())}")
        units = evaluate.latent_units(model, split)
        few = units["kl"] is not None and units["units"] <= 20  # results.json has them all
        each = f"; KL of each: {' '.join(f'{kl:.2f}' for kl in units['kl'])}" if few else ""
        print(f"Active latent units: {units['active']} of {units['units']}{each}", flush=True)
        results["latent_units"] = units
        if run.flags.train != 1 and (name == "subset" or run.flags.full):
            bounds, ess = evaluate.iwae(model, split, run.flags.iw_eval)
            for m, value in bounds.items():
                text = keep(results, f"iwae_{m}", value)
                print(f"Negative IWAE-{m}: {value}" + (f" ({text} bits per dimension)" if bits else ""))
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
    """A confusion matrix (C, C) as a Markdown table; in one sentence if it has more than TABLE_CLASSES classes."""
    if len(counts) > TABLE_CLASSES:
        return f"({len(counts):,} classes: the table is in results.json)"
    lines = [["", *range(len(counts))], ["---:"] * (len(counts) + 1)]
    lines += [[f"**{true}**", *row] for true, row in enumerate(counts.tolist())]
    return "\n".join(f"| {' | '.join(f'{cell:>5}' for cell in map(str, line))} |" for line in lines)
