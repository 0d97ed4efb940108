"""Can two experiments be told apart by their results? Each number of both, and their difference, over the seeds.

    python benchmarks/compare_runs.py model=vae_z=10_precision=highest model=vae_z=10

The arguments are the names of runs without their number; the runs are read from logs/. Printed are, in Markdown, means
over the runs ± their standard errors, and the difference of the second less the first, run by run: those of one number
have the same seed, hence begin with the same weights and see the same images. Its standard error is that of the mean of
the differences; a difference within two or three of them is none that can be seen.
"""

import argparse
import json
import math
import statistics
import sys
from pathlib import Path


def read(name):
    """The results of an experiment's runs: {run: {(split, quantity): number}}."""
    runs = {}
    for path in Path("logs").glob(f"{name}_run=*/results.json"):
        record = json.loads(path.read_text())
        runs[record["flags"]["run"]] = {
            (split, what): value["mean"]
            for split, values in record["results"].items()
            for what, value in values.items()
            if isinstance(value, dict) and isinstance(value.get("mean"), float)
        }
    return runs


def estimate(values):
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first")
    parser.add_argument("second")
    flags = parser.parse_args()
    first, second = read(flags.first), read(flags.second)
    both = sorted(first.keys() & second.keys())
    if len(both) < 2:
        sys.exit(
            f"logs/ has {len(first)} runs of {flags.first} and {len(second)} of {flags.second}: two of both needed"
        )
    print(f"| runs {', '.join(map(str, both))} | {flags.first} | {flags.second} | difference |\n|---|---|---|---|")
    for key in first[both[0]]:
        if all(key in runs[run] for runs in (first, second) for run in both):
            a, b = ([runs[run][key] for run in both] for runs in (first, second))
            difference = [y - x for x, y in zip(a, b, strict=True)]
            print(f"| {' '.join(key)} | {estimate(a)} | {estimate(b)} | {estimate(difference)} |")


if __name__ == "__main__":
    main()
