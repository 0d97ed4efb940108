"""Do the results of two experiments differ? Each number of both, and the difference, over the seeds.

    python benchmarks/compare_runs.py model=vae_z=10_precision=highest model=vae_z=10

The arguments are the names of runs without their number; the runs are read from logs/. Prints, in Markdown, means over
the runs ± standard errors, and the difference, second minus first, run by run: runs of the same number have the same
seed, so they begin with the same weights and see the same images. Its standard error is that of the mean of the
differences; a difference within two or three standard errors is not significant.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from codebase.runs import tables


def read(name):
    """The configuration of the runs of this name."""
    configurations, left_out = tables.read(Path("logs").glob(f"{name}_run=*"))
    if len(configurations) != 1:
        sys.exit(f"compare_runs.py: error: logs/ has {len(configurations)} configurations of {name}; {left_out}")
    return configurations[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first")
    parser.add_argument("second")
    flags = parser.parse_args()
    first, second = read(flags.first), read(flags.second)
    if not set(first["seeds"]) & set(second["seeds"]):
        sys.exit(f"compare_runs.py: error: {flags.first} and {flags.second} have no seed in common")
    cells = [["", flags.first, flags.second, "difference", "seeds in both"]]
    for name in first["results"]:
        if name in second["results"]:
            difference = tables.difference(second, first, name)
            numbers = [first["results"][name], second["results"][name], difference]
            cells.append(
                [tables.printed_name(name), *(tables.mean_and_error(x, digits=3) for x in numbers), difference["n"]]
            )
    print(tables.markdown(cells))


if __name__ == "__main__":
    main()
