"""The runs under logs/ by configuration: means over the runs ± standard errors, as data and as tables in Markdown.

A configuration is all that decides what the numbers of a run estimate: the model and its flags, the step, the data. The
runs of one differ in their number and seed alone.
"""

import json
import math
import statistics
from pathlib import Path

from codebase import called
from codebase.flags import FREE


def read(folders):
    """The configurations of the runs in these folders of logs/, and what is left out and why.

    Returns a list, and a list of sentences. Each configuration is a dict that json.dumps takes:
        model, configuration    such as 'vae' and 'vae_z=10_iw=05'
        step, data, precision   the step of the weights; the data set's name, and its numbers of images; --precision
        runs, seeds             of the runs, in order
        made                    which devices, versions of torch, commits, and days the runs were made on
        seconds                 of training, of each run
        results                 {'test nelbo': {'mean', 'se', 'values'}}: mean and standard error over the runs, None
                                for the error of a single one; in values None where a run has no such number
    """
    found, left_out = {}, []
    for folder in sorted(map(Path, folders)):
        path = folder / "results.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record.get("complete") is not True:
                left_out.append(f"{path}: not finished")
                continue
            run = described(record)
        except FileNotFoundError:
            left_out.append(f"{path}: not finished, there is none yet")
            continue
        except (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            left_out.append(f"{path}: cannot be read ({error!r})")
            continue
        runs = found.setdefault(run["key"], [])
        twin = next((other for other in runs if other["seed"] == run["seed"]), None)
        if twin:
            left_out.append(f"{path}: has the seed of run {twin['run']}, and would count it twice")
        else:
            runs.append(run)
    return [pooled(runs) for runs in found.values()], left_out


def described(record):
    """What counts of a run's results.json, flat. Raises KeyError, TypeError, ... where it is not as it should be."""
    flags, data = record["flags"], record["data"]
    parts = record["name"].removeprefix("model=").split("_")
    label = "_".join(part for part in parts if not part.startswith(("run=", "seed=")))
    own = {name: value for name, value in flags.items() if name not in FREE | {"seed", "dataset"}}
    about = {
        "model": parts[0],
        "configuration": label,
        "step": int(record["step"]),
        "data": f"{data['name']} ({data['train']:,} + {data['test']:,} images)",
        "precision": flags.get("precision"),
    }
    numbers = {
        f"{split} {name}": float(value["mean"])
        for split, results in record["results"].items()
        for name, value in results.items()
        if name != "ess" and not name.endswith("_bits") and isinstance(value, dict) and "mean" in value
    }
    if not all(abs(value) < 1e100 for value in numbers.values()):  # of which the square is finite
        raise ValueError("a number in it is not finite")
    trained, evaluated = record.get("trained", {}), record.get("evaluated", {})
    return {
        "key": json.dumps([about, own], sort_keys=True),
        "about": about,
        "run": int(flags["run"]),
        "seed": int(flags["seed"]),
        "numbers": numbers,
        "seconds": trained.get("seconds"),
        "made": {
            "device": trained.get("device", evaluated.get("device")),
            "torch": trained.get("torch", evaluated.get("torch")),
            "commit": trained.get("commit", evaluated.get("commit")),
            "day": str(trained.get("date", evaluated.get("date")))[:10],
        },
    }


def pooled(runs):
    """The configuration of these runs, which all have the same key; see read."""
    runs = sorted(runs, key=lambda run: run["run"])
    results = {}
    for name in dict.fromkeys(name for run in runs for name in run["numbers"]):
        values = [run["numbers"].get(name) for run in runs]
        there = [value for value in values if value is not None]
        results[name] = estimate(there) | {"values": values}
    return runs[0]["about"] | {
        "runs": [run["run"] for run in runs],
        "seeds": [run["seed"] for run in runs],
        "made": {what: sorted({str(run["made"][what]) for run in runs}) for what in runs[0]["made"]},
        "seconds": [run["seconds"] for run in runs],
        "results": results,
    }


def estimate(values):
    """Mean of independent values and its standard error, s / sqrt(n); None for that of a single one."""
    se = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "se": se}


def difference(a, b, name, name_b=None):
    """name of configuration a less name_b (or name) of b, paired by seed: {'mean', 'se', 'n'}.

    Runs of the same seed begin alike and see the same images, and two numbers of one run have its weights in common, so
    that their difference is known better than either. Raises ValueError where no seed is in both.
    """
    first, second = (
        dict(zip(configuration["seeds"], configuration["results"][which]["values"], strict=True))
        for configuration, which in ((a, name), (b, name_b or name))
    )
    both = [seed for seed in first if first[seed] is not None and second.get(seed) is not None]
    if not both:
        raise ValueError(f"{a['configuration']} and {b['configuration']} have no seed in common")
    return estimate([first[seed] - second[seed] for seed in both]) | {"n": len(both)}


def in_words(number, digits=2):
    """'mean ± standard error', without the error where there is none."""
    mean = f"{number['mean']:.{digits}f}"
    return mean if number["se"] is None else f"{mean} ± {number['se']:.{digits}f}"


def ranges(numbers):
    """[0, 1, 2, 7] -> '0 to 2, 7'."""
    parts, numbers = [], sorted(numbers)
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in parts)


def rows(cells):
    """A Markdown table of rows of cells, the first of which is its head."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


def table(configurations):
    """The configurations of one model as a Markdown table: a column for each, a row for each number, in nats or as
    the row says. Where not all runs of a configuration have a number, it says how many do."""

    def cell(configuration, name):
        number = configuration["results"].get(name)
        if number is None:
            return ""
        n = sum(value is not None for value in number["values"])
        return in_words(number) + (f" ({n} of {len(number['values'])} runs)" if n < len(number["values"]) else "")

    names = dict.fromkeys(name for configuration in configurations for name in configuration["results"])
    about = {
        "runs": lambda c: len(c["runs"]),
        "seeds": lambda c: ranges(c["seeds"]),
        "steps": lambda c: f"{c['step']:,}",
        "data": lambda c: c["data"],
        "precision": lambda c: c["precision"] or "",
    }
    return rows(
        [
            ["mean ± standard error over the runs", *(c["configuration"] for c in configurations)],
            *([what, *map(of, configurations)] for what, of in about.items()),
            *([called(name), *(cell(c, name) for c in configurations)] for name in names),
        ]
    )


def report(configurations, left_out):
    """All of it in Markdown: a table for each model, then what is left out."""
    models = {}
    for configuration in configurations:
        models.setdefault(configuration["model"], []).append(configuration)
    parts = [f"### {model}\n\n{table(of)}" for model, of in models.items()]
    if left_out:
        parts.append("### Left out\n\n" + "\n".join(f"* {sentence}" for sentence in left_out))
    return "\n\n".join(parts)
