"""The runs under logs/ by configuration: means over the runs ± standard errors, as data and as tables in Markdown.

A configuration is the model with its flags, the number of steps, and the data. Its runs differ in their number and seed
only.
"""

import json
import math
import re
import statistics
from pathlib import Path

from codebase.errors import InputError

NAMES = {
    "nelbo": "NELBO",
    "kl": "KL",
    "kl_z": "KL_z",
    "kl_y": "KL_y",
    "rec": "Rec",
    "accuracy_percent": "accuracy, %",
    "classifier_percent": "classifier's accuracy, %",
}


def printed_name(number):
    """The printed name of a number: 'kl_z' -> 'KL_z', 'test nelbo' -> 'test NELBO', 'iwae_10' -> 'IWAE-10'."""
    *split, name = number.split(" ", 1)
    return " ".join([*split, NAMES.get(name, name.replace("iwae_", "IWAE-"))])


def configuration_name(run):
    """The name of a run's configuration: 'model=vae_z=10_iw=05_run=0001' -> 'vae_z=10_iw=05'."""
    parts = run.removeprefix("model=").split("_")
    return "_".join(part for part in parts if not part.startswith(("run=", "seed=")))


def natural_order(name):
    """A key to sort names by: numbers in a name count by their values, so that z=2 is before z=10."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", name)
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


def read(folders):
    """The configurations of the runs in these folders of logs/, and sentences that say which runs are left out.

    Each configuration is a dict for JSON; they are in natural order of their names, those of one name by their steps:
        model, configuration    such as 'vae' and 'vae_z=10_iw=05'
        step, data, precision   the step of the weights; the data set's name and numbers of images; --precision
        runs, seeds             of the runs, in order
        made                    the devices, days, versions of torch, commits, and digests of the code, as far as they
                                are known
        seconds                 of training, of each run
        results                 {'test nelbo': {'mean', 'se', 'values'}}: mean and standard error over the runs; se is
                                None if there is one run; in values, None stands for a run without that number
    """
    found, left_out = [], []  # found: (about, experiment, {seed: run})
    for path in sorted(Path(folder) / "results.json" for folder in folders):
        try:
            record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            if record.get("complete") is not True:
                left_out.append(f"{path}: not finished")
                continue
            about, run = configuration_of(record)
            experiment = {k: v for k, v in record.get("experiment", {}).items() if k != "seed"}
        except Exception as error:  # a damaged file can hold anything
            left_out.append(f"{path}: cannot be read ({error!r})")
            continue
        same = (each for each in found if each[0] == about and same_experiment(experiment, each[1]))
        _, known, runs = next(same, (about, {}, {}))
        if not runs:
            found.append((about, known, runs))
        known.update(experiment)
        if run["seed"] in runs:
            left_out.append(f"{path}: has the same seed as run {runs[run['seed']]['run']}, and is not counted twice")
        else:
            runs[run["seed"]] = run
    configurations = [over_runs(about, runs.values()) for about, _, runs in found]
    return sorted(configurations, key=lambda config: (natural_order(config["configuration"]), config["step"])), left_out


def same_experiment(a, b):
    """Do two runs of one name have the same flags? A flag that an older run does not have is at its default."""
    return bool(a) == bool(b) and all(a[key] == b[key] for key in a.keys() & b.keys())


def configuration_of(record):
    """A run's results.json as two flat dicts: its configuration, and what belongs only to this run."""
    flags, data, trained = record["flags"], record["data"], record.get("trained") or record.get("evaluated", {})
    about = {
        "model": record["name"].removeprefix("model=").split("_")[0],
        "configuration": configuration_name(record["name"]),
        "step": int(record["step"]),
        "data": f"{data['name']} ({data['train']:,} + {data['test']:,} images)",
        "precision": flags.get("precision"),
    }
    numbers = means(record["results"])
    if not all(abs(value) < 1e100 for value in numbers.values()):  # so that its square is finite, too
        raise ValueError("a number in it is not finite")
    made = {key: trained.get(key) for key in ("device", "torch", "commit", "code")}
    made["day"] = str(trained.get("date"))[:10]
    made = {key: value if isinstance(value, list) else [value] for key, value in made.items()}
    own = {"run": int(flags["run"]), "seed": int(flags["seed"]), "seconds": trained.get("seconds")}
    return about, own | {"numbers": numbers, "made": made}


def means(results):
    """The means of a run's results: {'test nelbo': 99.7}, without those in bits."""
    return {
        f"{split} {name}".strip(): float(value["mean"])
        for split, numbers in results.items()
        for name, value in numbers.items()
        if name != "ess" and not name.endswith("_bits") and isinstance(value, dict) and "mean" in value
    }


def over_runs(about, runs):
    """The configuration of these runs; see read."""
    runs = sorted(runs, key=lambda run: run["run"])
    results = {}
    for name in dict.fromkeys(name for run in runs for name in run["numbers"]):
        values = [run["numbers"].get(name) for run in runs]
        results[name] = estimate([value for value in values if value is not None]) | {"values": values}
    return about | {
        "runs": [run["run"] for run in runs],
        "seeds": [run["seed"] for run in runs],
        "made": {w: sorted({str(each) for run in runs for each in run["made"][w]} - {"None"}) for w in runs[0]["made"]},
        "seconds": [run["seconds"] for run in runs],
        "results": results,
    }


def estimate(values):
    """Mean of independent values and its standard error, s / sqrt(n); None if there is one value."""
    se = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "se": se}


def difference(a, b, name, name_b=None):
    """Number `name` of configuration a minus name_b (or name) of b, paired by seed: {'mean', 'se', 'n'}.

    Runs of one seed often have the same initial weights and batches; then their difference is known more precisely than
    either number. ValueError if no seed is in both.
    """
    first = dict(zip(a["seeds"], a["results"][name]["values"], strict=True))
    second = dict(zip(b["seeds"], b["results"][name_b or name]["values"], strict=True))
    both = [seed for seed in first if first[seed] is not None and second.get(seed) is not None]
    if not both:
        raise ValueError(f"{a['configuration']} and {b['configuration']} have no seed in common")
    return estimate([first[seed] - second[seed] for seed in both]) | {"n": len(both)}


def mean_and_error(number, digits=2):
    """'mean ± standard error', without the error if there is none."""
    mean = f"{number['mean']:.{digits}f}"
    return mean if number["se"] is None else f"{mean} ± {number['se']:.{digits}f}"


def markdown(rows):
    """A Markdown table of rows of cells; the first row is its head."""
    head, *lines = (f"| {' | '.join(map(str, row))} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *lines])


FIRST_ROWS = {  # the first rows of a table, above its numbers
    "runs": lambda config: len(config["runs"]),
    "seeds": lambda config: ", ".join(map(str, config["seeds"])),
    "steps": lambda config: f"{config['step']:,}",
    "data": lambda config: config["data"],
    "precision": lambda config: config["precision"] or "",
    # Shown if the runs of a configuration differ in it.
    "torch": lambda config: ", ".join(config["made"].get("torch", [])),
    "code": lambda config: ", ".join(config["made"].get("code", [])),
}


def cell(config, name):
    """Number `name` of a configuration; if not all runs have it, also how many have it."""
    if name not in config["results"]:
        return ""
    values = config["results"][name]["values"]
    n = sum(value is not None for value in values)
    return mean_and_error(config["results"][name]) + (f" ({n} of {len(values)} runs)" if n < len(values) else "")


def numbers_of(configurations):
    """The names of all numbers that the configurations have."""
    return list(dict.fromkeys(name for config in configurations for name in config["results"]))


def table(configurations):
    """A Markdown table: a column for each configuration, a row for each number, in nats unless it says otherwise."""
    head = ["mean ± standard error over the runs", *(config["configuration"] for config in configurations)]
    rows = ["runs", "seeds", "steps", "data", "precision", *mixed(configurations)]
    about = [[what, *map(FIRST_ROWS[what], configurations)] for what in rows]
    names = numbers_of(configurations)
    numbers = [[printed_name(name), *(cell(config, name) for config in configurations)] for name in names]
    return markdown([head, *about, *numbers])


def find_number(configurations, wanted):
    """The number with this name or printed name: 'test nelbo' or 'test NELBO'. InputError if there is none."""
    for number in numbers_of(configurations):
        if wanted.lower() in (number.lower(), printed_name(number).lower()):
            return number
    raise InputError(f"there is no number {wanted!r}; there are {', '.join(numbers_of(configurations))}.")


def best_first(configurations, number):
    """The configurations: the largest accuracy, or the smallest other number, first; those without it last."""
    sign = -1 if number.endswith("percent") else 1
    missing = {"mean": sign * math.inf}
    return sorted(configurations, key=lambda config: sign * config["results"].get(number, missing)["mean"])


def differing(configurations):
    """In which of steps, data and precision do the configurations differ? A list of these words."""
    return [what for what in ("steps", "data", "precision") if len(set(map(FIRST_ROWS[what], configurations))) > 1]


def mixed(configurations):
    """In which of torch and code do the runs of one of the configurations differ? A list of these words."""
    made = [config["made"] for config in configurations]
    return [what for what in ("torch", "code") if any(len(each.get(what, [])) > 1 for each in made)]


def table_by(configurations, number):
    """A Markdown table: a row for each configuration, a column for each number, this one first."""
    about = ["runs", *differing(configurations), *mixed(configurations)]
    numbers = [number, *(name for name in numbers_of(configurations) if name != number)]
    rows = [["configuration", *about, *map(printed_name, numbers)]]
    for config in configurations:
        first = [config["configuration"], *(FIRST_ROWS[what](config) for what in about)]
        rows.append([*first, *(cell(config, name) for name in numbers)])
    return markdown(rows)


def report(configurations, left_out, by=None):
    """Everything in Markdown: a table for each model, or one table by a number; then the runs that are left out."""
    if by:
        head = f"### By {printed_name(by)}, best first: mean ± standard error over the runs"
        parts = [f"{head}\n\n{table_by(configurations, by)}"]
    else:
        models = {}
        for config in configurations:
            models.setdefault(config["model"], []).append(config)
        parts = [f"### {model}\n\n{table(same)}" for model, same in models.items()]
    if left_out:
        parts.append("### Left out\n\n" + "\n".join(f"* {sentence}" for sentence in left_out))
    return "\n\n".join(parts)
