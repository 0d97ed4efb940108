"""The runs under logs/ by configuration: means over the runs ± standard errors, as data and as tables in Markdown.

A configuration is the model with its flags, the number of steps, and the data. Its runs differ in their number and seed
only.
"""

import json
import math
import statistics
from pathlib import Path

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


def read(folders):
    """The configurations of the runs in these folders of logs/, and sentences that say which runs are left out.

    Each configuration is a dict for JSON:
        model, configuration    such as 'vae' and 'vae_z=10_iw=05'
        step, data, precision   the step of the weights; the data set's name and numbers of images; --precision
        runs, seeds             of the runs, in order
        made                    the devices, versions of torch, commits, and days of the runs
        seconds                 of training, of each run
        results                 {'test nelbo': {'mean', 'se', 'values'}}: mean and standard error over the runs; se is
                                None if there is one run; in values, None stands for a run without that number
    """
    found, left_out = {}, []
    for path in sorted(Path(folder) / "results.json" for folder in folders):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record.get("complete") is not True:
                left_out.append(f"{path}: not finished")
                continue
            about, run = configuration_of(record)
            experiment = {k: v for k, v in record.get("experiment", {}).items() if k != "seed"}
        except FileNotFoundError:
            left_out.append(f"{path}: not finished, it does not exist yet")
            continue
        except Exception as error:  # a damaged file can hold anything
            left_out.append(f"{path}: cannot be read ({error!r})")
            continue
        _, runs = found.setdefault(json.dumps([about, experiment], sort_keys=True), (about, {}))
        if run["seed"] in runs:
            left_out.append(f"{path}: has the same seed as run {runs[run['seed']]['run']}, and is not counted twice")
        else:
            runs[run["seed"]] = run
    return [over_runs(about, runs.values()) for about, runs in found.values()], left_out


def configuration_of(record):
    """A run's results.json as two flat dicts: its configuration, and what belongs only to this run."""
    flags, data, trained = record["flags"], record["data"], record.get("trained") or record.get("evaluated", {})
    parts = record["name"].removeprefix("model=").split("_")
    about = {
        "model": parts[0],
        "configuration": "_".join(part for part in parts if not part.startswith(("run=", "seed="))),
        "step": int(record["step"]),
        "data": f"{data['name']} ({data['train']:,} + {data['test']:,} images)",
        "precision": flags.get("precision"),
    }
    numbers = means(record["results"])
    if not all(abs(value) < 1e100 for value in numbers.values()):  # so that its square is finite, too
        raise ValueError("a number in it is not finite")
    made = {"day": str(trained.get("date"))[:10]} | {key: trained.get(key) for key in ("device", "torch", "commit")}
    own = {"run": int(flags["run"]), "seed": int(flags["seed"]), "seconds": trained.get("seconds")}
    return about, own | {"numbers": numbers, "made": {key: str(value) for key, value in made.items()}}


def means(results):
    """The means of a run's results: {'test nelbo': 99.7}, without those in bits."""
    return {
        f"{split} {name}": float(value["mean"])
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
        "made": {what: sorted({run["made"][what] for run in runs}) for what in runs[0]["made"]},
        "seconds": [run["seconds"] for run in runs],
        "results": results,
    }


def estimate(values):
    """Mean of independent values and its standard error, s / sqrt(n); None if there is one value."""
    se = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "se": se}


def difference(a, b, name, name_b=None):
    """Number `name` of configuration a minus name_b (or name) of b, paired by seed: {'mean', 'se', 'n'}.

    Runs of one seed have the same initial weights and batches, so their difference is known more precisely than
    either number. ValueError if no seed is in both.
    """
    pairs = ((of["seeds"], of["results"][which]["values"]) for of, which in ((a, name), (b, name_b or name)))
    first, second = (dict(zip(seeds, values, strict=True)) for seeds, values in pairs)
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
    "runs": lambda of: len(of["runs"]),
    "seeds": lambda of: ", ".join(map(str, of["seeds"])),
    "steps": lambda of: f"{of['step']:,}",
    "data": lambda of: of["data"],
    "precision": lambda of: of["precision"] or "",
}


def table(configurations):
    """A Markdown table: a column for each configuration, a row for each number, in nats unless the row says otherwise.

    If not all runs have a number, its cell says how many have it.
    """

    def cell(of, name):
        if name not in of["results"]:
            return ""
        values = of["results"][name]["values"]
        n = sum(value is not None for value in values)
        return mean_and_error(of["results"][name]) + (f" ({n} of {len(values)} runs)" if n < len(values) else "")

    names = dict.fromkeys(name for of in configurations for name in of["results"])
    head = ["mean ± standard error over the runs", *(of["configuration"] for of in configurations)]
    about = [[what, *map(row, configurations)] for what, row in FIRST_ROWS.items()]
    return markdown(
        [head, *about, *([printed_name(name), *(cell(of, name) for of in configurations)] for name in names)]
    )


def report(configurations, left_out):
    """Everything in Markdown: a table for each model, then the runs that are left out."""
    models = {}
    for of in configurations:
        models.setdefault(of["model"], []).append(of)
    parts = [f"### {model}\n\n{table(of)}" for model, of in models.items()]
    if left_out:
        parts.append("### Left out\n\n" + "\n".join(f"* {sentence}" for sentence in left_out))
    return "\n\n".join(parts)
