"""Tables of the runs under logs/, in Markdown: one for each experiment, a row for each run, then mean ± standard error.

Commands:
    python report.py                 every finished run's results.json
"""

import json
import math
import statistics
import sys
from pathlib import Path

from codebase import LABELS


def read_runs(folder):
    """The records of the finished runs by experiment and step, {words: [record, ...]}, and complaints."""
    experiments, complaints = {}, []
    for path in sorted(Path(folder).glob("*_run=*/results.json")):
        try:
            record = json.loads(path.read_text())
            if not record["results"]:
                complaints.append(f"{path}: not finished")
                continue
            experiment = f"{path.parent.name.rpartition('_run=')[0]}, {record['step']:,} steps"
            table([record])  # so that what cannot be shown is found here
            experiments.setdefault(experiment, []).append(record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            complaints.append(f"{path}: cannot be read ({error!r})")
    return experiments, complaints


def mean_and_error(values):
    """'mean ± standard error' over runs (standard deviation / sqrt(n)); a single run has no error."""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}" if len(values) > 1 else mean


def table(records):
    """One experiment as a Markdown table. Columns: the numbers that all of its runs have, in nats or as they say."""
    columns = [
        (split, name)
        for split, results in records[0]["results"].items()
        for name in results
        if name not in ("ess", "latent_units", "confusion") and not name.endswith("_bits")
        if all(name in record["results"].get(split, {}) for record in records)
    ]
    heads = [f"{split} {LABELS.get(name, name.replace('iwae_', 'IWAE-'))}" for split, name in columns]
    lines = [f"| run | seed | {' | '.join(heads)} |", "|" + "---|" * (2 + len(heads))]
    values = [[record["results"][split][name]["mean"] for split, name in columns] for record in records]
    for record, row in zip(records, values, strict=True):
        run, seed = record["flags"]["run"], record["flags"]["seed"]
        lines.append(f"| {run} | {seed} | {' | '.join(f'{x:.2f}' for x in row)} |")
    means = " | ".join(mean_and_error(column) for column in zip(*values, strict=True))
    lines.append(f"| mean of {len(records)} | | {means} |")
    return "\n".join(lines)


def main():
    experiments, complaints = read_runs("logs")
    for name, records in experiments.items():
        print(f"### {name}\n\n{table(records)}\n")
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    if not experiments:
        print("report.py: error: there is no finished run under logs/; train one first.", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
