"""Tables of the runs under logs/, in Markdown: for each model, mean ± standard error over the runs by configuration.

python report.py                        print the tables
python report.py 'vae_*'                only of the configurations whose names match this pattern
python report.py --by "test nelbo"      one table, best first: the largest accuracy, or the smallest other number
python report.py --difference A B       the configurations A and B, and B minus A, paired by seed
python report.py --csv FILE.csv         a line for each run: its flags and its numbers; -: print them

Runs of one seed see the same batches, and begin with the same weights if their networks have the same sizes, so the
mean of their differences is more precise. A difference within two or three standard errors is not significant.
"""

import argparse
import csv
import io
import os
import sys
from fnmatch import fnmatchcase
from pathlib import Path

from codebase.errors import InputError
from codebase.runs import tables


def sorted_table(configurations, wanted, reverse):
    """A table sorted by a number, which is named as in the table or in results.json: 'test NELBO' or 'test nelbo'."""
    numbers = dict.fromkeys(name for config in configurations for name in config["results"])
    for number in numbers:
        if wanted.lower() in (number.lower(), tables.printed_name(number).lower()):
            return tables.table_by(tables.best_first(configurations, number, reverse), number)
    raise InputError(f"there is no number {wanted!r}; there are {', '.join(numbers)}.")


def difference_table(configurations, names, folders):
    """A table of the two configurations, and of second minus first, paired by seed, over the seeds that both have."""
    if sorted(config["configuration"] for config in configurations) != sorted(names):
        there = ", ".join(f"{config['configuration']} ({config['step']:,} steps)" for config in configurations)
        wanted = "one configuration of each name, with one number of steps"
        raise InputError(f"--difference compares {wanted}; there are {there}; --csv shows the flags of each.")
    seeds = set.intersection(*(set(config["seeds"]) for config in configurations))
    if not seeds:
        raise InputError(f"{' and '.join(names)} have no seed in common.")
    pair, _ = tables.read(folders, seeds)
    first, second = pair = sorted(pair, key=lambda config: names.index(config["configuration"]))
    differences = {}
    for name in first["results"]:
        try:
            paired = tables.difference(second, first, name)
        except (KeyError, ValueError):  # no seed has this number in both
            continue
        differences[tables.printed_name(name)] = [tables.mean_and_error(paired, digits=3), paired["n"]]
    head, *rows = tables.rows(pair)
    rows = [[*row, *differences.get(row[0], ["", ""])] for row in rows]
    return tables.markdown([[*head, "difference", "seeds in both"], *rows])


def csv_text(configurations):
    """The numbers of every run, in nats, as CSV with a line for each run and a column for each flag and number."""
    lines = []
    for config in configurations:
        about = {key: config[key] for key in ("configuration", "step", "data")}
        for i, (run, seed) in enumerate(zip(config["runs"], config["seeds"], strict=True)):
            numbers = {name: number["values"][i] for name, number in config["results"].items()}
            lines.append(config["experiment"] | about | {"run": run, "seed": seed} | numbers)
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(column for line in lines for column in line), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().rstrip("\n")


def report(flags):
    """The text that the flags ask for. On standard error: the runs that are left out."""
    patterns = flags.difference or [flags.pattern]
    names = {folder: tables.configuration_name(folder.name) for folder in Path("logs").glob("model=*_run=*")}
    chosen = [folder for folder, name in names.items() if any(fnmatchcase(name, pattern) for pattern in patterns)]
    configurations, left_out = tables.read(chosen)
    for sentence in left_out:
        print(f"report.py: left out: {sentence}", file=sys.stderr)
    if not configurations:
        raise InputError(f"no finished run under logs/ has a configuration that matches {' or '.join(patterns)}.")
    if flags.by is not None:
        return sorted_table(configurations, flags.by, flags.reverse)
    if flags.difference:
        return difference_table(configurations, flags.difference, chosen)
    return csv_text(configurations) if flags.csv else tables.report(configurations, [])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="names of configurations: 'vae_*'")
    parser.add_argument("--reverse", action="store_true", help="with --by: the other way round")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--by", metavar="NUMBER", help="one table, sorted by this number, such as 'test nelbo'")
    what.add_argument("--difference", metavar=("A", "B"), nargs=2, help="configuration B minus A, paired by seed")
    what.add_argument("--csv", metavar="FILE", help="a line for each run, to this file; -: print them")
    flags = parser.parse_args()
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's stream has no such method
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        text = report(flags)
        if flags.csv in (None, "-"):
            print(text, flush=True)
        else:
            Path(flags.csv).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    except BrokenPipeError:  # nobody reads on, as after `| head -1`; nor what Python writes when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        print(f"report.py: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
