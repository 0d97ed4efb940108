"""The runs under logs/ by configuration, the model with its flags, steps and data: means over the runs, as tables."""

import json
import math
import re
import statistics
from itertools import groupby
from pathlib import Path

NAMES = {"nelbo": "NELBO", "kl": "KL", "kl_z": "KL_z", "kl_y": "KL_y", "rec": "Rec"}
NAMES |= {"accuracy_percent": "accuracy, %", "classifier_percent": "classifier's accuracy, %"}


def printed_name(number):
    """The printed name of a number: 'kl_z' -> 'KL_z', 'test nelbo' -> 'test NELBO', 'iwae_10' -> 'IWAE-10'."""
    *split, name = number.split(" ", 1)
    return " ".join([*split, NAMES.get(name, name.replace("iwae_", "IWAE-"))])


def configuration_name(run):
    """The name of a run's configuration: 'model=vae_z=10_iw=05_seed=7_run=0001' -> 'vae_z=10_iw=05'."""
    return re.sub(r"_(run|seed)=\d+", "", run.removeprefix("model="))


def natural_order(name):
    """A key to sort names by: numbers in a name count by their values, so that z=2 is before z=10."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", name)
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


def read(folders, seeds=None):
    """The configurations of the runs in these folders of logs/, and sentences that say which runs are left out.

    seeds: if given, only of the runs with these seeds.

    Each configuration is a dict for JSON:
        model, configuration, step, data, precision     such as 'vae', 'vae_z=10', 20000, 'mnist (...)', 'float32'
        experiment              {flag: value} of the flags that decide the weights, without the seed
        runs, seeds, seconds    of each run: its number, its seed, the seconds of its training
        made                    the devices, days, versions of torch and commits, as far as known
        results                 {'test nelbo': {'mean', 'se', 'values'}}: mean and standard error over the runs, or None
                                for one run; in values, None stands for a run without that number
    """
    found, left_out = {}, []
    for path in sorted(Path(folder) / "results.json" for folder in folders):
        try:
            record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            if record.get("complete") is not True:
                left_out.append(f"{path}: not finished")
                continue
            about, run = parts_of(record)
        except Exception as error:  # a damaged file can hold anything
            left_out.append(f"{path}: cannot be read ({error!r})")
            continue
        if seeds is not None and run["seed"] not in seeds:
            continue
        _, runs = found.setdefault(json.dumps(about, sort_keys=True), (about, {}))
        counted = runs.setdefault(run["seed"], run)
        if counted is not run:
            left_out.append(f"{path}: has the same seed as run {counted['run']}, and is not counted twice")
    configurations = [about | over_runs(runs.values()) for about, runs in found.values()]
    return sorted(configurations, key=lambda config: (natural_order(config["configuration"]), config["step"])), left_out


def parts_of(record):
    """A run's results.json as two dicts: its configuration, and what is the run's own."""
    flags, data, trained = record["flags"], record["data"], record.get("trained") or record["evaluated"]
    about = {
        "model": record["name"].removeprefix("model=").split("_")[0],
        "configuration": configuration_name(record["name"]),
        "step": int(record["step"]),
        "data": f"{data['name']} ({data['train']:,} + {data['test']:,} images)",
        "precision": str(flags["precision"]),
        "experiment": {flag: value for flag, value in record["experiment"].items() if flag != "seed"},
    }
    made = {what: trained.get(what) for what in ("device", "torch", "commit")} | {"day": str(trained.get("date"))[:10]}
    numbers = means(record["results"])
    if not all(abs(value) < 1e100 for value in numbers.values()):  # so that its square is finite, too
        raise ValueError("a number in it is not finite")
    own = {"run": int(flags["run"]), "seed": int(flags["seed"]), "seconds": trained.get("seconds")}
    return about, own | {"made": made, "numbers": numbers}


def means(results):
    """The means of a run's results: {'test nelbo': 99.7}, without those in bits."""
    return {
        f"{split} {name}".strip(): float(value["mean"])
        for split, numbers in results.items()
        for name, value in numbers.items()
        if name != "ess" and not name.endswith("_bits") and isinstance(value, dict) and "mean" in value
    }


def over_runs(runs):
    """What a configuration holds of its runs; see read."""
    runs = sorted(runs, key=lambda run: run["run"])
    results = {}
    for name in dict.fromkeys(name for run in runs for name in run["numbers"]):
        values = [run["numbers"].get(name) for run in runs]
        results[name] = estimate([value for value in values if value is not None]) | {"values": values}
    return {
        "runs": [run["run"] for run in runs],
        "seeds": [run["seed"] for run in runs],
        "seconds": [run["seconds"] for run in runs],
        "made": {what: sorted({str(run["made"][what]) for run in runs} - {"None"}) for what in runs[0]["made"]},
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
    """'mean ± standard error', without the error if there is none; and how many runs have the number if not all do."""
    text = f"{round(number['mean'], digits) + 0:.{digits}f}"  # + 0: not -0.00
    if number["se"] is not None:
        text += f" ± {number['se']:.{digits}f}"
    values = number.get("values", [])
    return f"{text} ({len(values) - values.count(None)} of {len(values)} runs)" if None in values else text


def markdown(rows):
    """A Markdown table of rows of cells; the first row is its head."""
    head, *lines = (f"| {' | '.join(map(str, row))} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *lines])


def rows(configurations, first=None):
    """The head and rows of a table: a column for each configuration, a row for each number, `first` before others."""
    found = [
        ["mean ± standard error over the runs", *(config["configuration"] for config in configurations)],
        ["runs", *(len(config["runs"]) for config in configurations)],
        ["seeds", *(", ".join(map(str, config["seeds"])) for config in configurations)],
        ["steps", *(f"{config['step']:,}" for config in configurations)],
        ["data", *(config["data"] for config in configurations)],
        ["precision", *(config["precision"] for config in configurations)],
    ]
    names = dict.fromkeys(name for config in configurations for name in config["results"])
    for name in sorted(names, key=lambda name: name != first):
        numbers = (config["results"].get(name) for config in configurations)
        found.append([printed_name(name), *("" if number is None else mean_and_error(number) for number in numbers)])
    return found


def table(configurations):
    """A Markdown table: a column for each configuration, a row for each number."""
    return markdown(rows(configurations))


def best_first(configurations, number, reverse=False):
    """The configurations that have this number, the largest accuracy or the smallest other number first; or reverse."""
    chosen = [config for config in configurations if number in config["results"]]
    is_accuracy = number.endswith("percent")
    return sorted(chosen, key=lambda config: config["results"][number]["mean"], reverse=is_accuracy != reverse)


def table_by(configurations, number):
    """A Markdown table: a row for each configuration, a column for each number, this one first.

    Steps, data and precision have columns if the configurations differ in them.
    """
    head, *others = rows(configurations, number)
    same = [row[0] for row in others if row[0] in ("steps", "data", "precision") and len(set(row[1:])) == 1]
    columns = [["configuration", *head[1:]], *(row for row in others if row[0] not in ["seeds", *same])]
    return markdown(list(zip(*columns, strict=True)))


def report(configurations, left_out):
    """A table for each model, and below them which runs are left out."""
    models = groupby(configurations, key=lambda config: config["model"])
    parts = [f"### {model}\n\n{table(list(same))}" for model, same in models]
    if left_out:
        parts.append("### Left out\n\n" + "\n".join(f"* {sentence}" for sentence in left_out))
    return "\n\n".join(parts)
