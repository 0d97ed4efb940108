"""Tables of the runs under logs/, in Markdown: for each model, mean ± standard error over the runs by configuration.

Commands:
    python report.py                         print the tables
    python report.py 'vae_*'                 only of the configurations whose names match this pattern
    python report.py --by "test nelbo"       one table, a row for each configuration, best first by this number
    python report.py --difference vae_z=10 vae_z=2
                                             both, and second minus first, run by run
    python report.py --csv FILE.csv          also write the numbers of every run to a file; -: print them instead

Runs of one seed see the same batches, and begin with the same weights if their networks have the same sizes. So
--difference compares runs of the same seed. Its standard error is that of the mean of these differences. A difference
within two or three standard errors is not significant.
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

NO_RUN = "there is no finished run under logs/{}; train one first."


def parse_flags():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="names of configurations: 'vae_*'")
    parser.add_argument("--by", metavar="NUMBER", help="one table, sorted by this number, such as 'test nelbo'")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--difference", metavar=("A", "B"), nargs=2, help="configuration B minus A, paired by seed")
    what.add_argument(
        "--csv", metavar="FILE", help="also write every run's numbers to this file; -: print them instead"
    )
    flags = parser.parse_args()
    if flags.by is not None and flags.difference:
        parser.error("--by sorts all configurations and --difference compares two: give one of them")
    flags.pattern = flags.pattern.removeprefix("model=")
    flags.difference = [name.removeprefix("model=") for name in flags.difference or ()]
    return flags


def matching(folders, flags):
    """Those of the runs' folders whose configurations are asked for. InputError if there are none."""
    if not folders:
        raise InputError(NO_RUN.format(""))
    names = sorted({tables.configuration_name(folder.name) for folder in folders}, key=tables.natural_order)
    wanted = [name for name in names if fnmatchcase(name, flags.pattern)]
    if not wanted:
        raise InputError(f"no configuration matches {flags.pattern!r}; there are {', '.join(names)}.")
    for name in flags.difference:
        if name not in wanted:
            raise InputError(f"there is no configuration {name!r}; there are {', '.join(wanted)}.")
    wanted = flags.difference or wanted
    return [folder for folder in folders if tables.configuration_name(folder.name) in wanted]


def the_only(configurations, name):
    """The configuration of this name. InputError if several have it: runs of other steps, data or flags."""
    found = [config for config in configurations if config["configuration"] == name]
    if not found:
        raise InputError(f"{name} has no finished run.")
    if len(found) > 1:
        rows = tables.differing(found)
        each = (
            f"runs {', '.join(map(str, config['runs']))}"
            + (f" with {', '.join(f'{row} {tables.FIRST_ROWS[row](config)}' for row in rows)}" if rows else "")
            for config in found
        )
        why = "" if rows else "; they differ in the flags that results.json holds under 'experiment'"
        raise InputError(f"{len(found)} configurations are called {name}: {'; '.join(each)}{why}.")
    return found[0]


def difference_table(first, second):
    """A table of the numbers of two configurations, and of second minus first, paired by seed.

    Its first rows say in which of steps, data and precision they differ, and whether the runs of one of them differ in
    torch or code. InputError if no seed is in both.
    """
    names = first["configuration"], second["configuration"]
    if not set(first["seeds"]) & set(second["seeds"]):
        raise InputError(f"{' and '.join(names)} have no seed in common.")
    rows = [["", *names, "difference", "seeds in both"]]
    for what in [*tables.differing([first, second]), *tables.mixed([first, second])]:
        rows.append([what, *map(tables.FIRST_ROWS[what], (first, second)), "", ""])
    for name in first["results"]:
        if name in second["results"]:
            means = [tables.mean_and_error(config["results"][name], digits=3) for config in (first, second)]
            try:
                paired = tables.difference(second, first, name)
                rows.append([tables.printed_name(name), *means, tables.mean_and_error(paired, digits=3), paired["n"]])
            except ValueError:  # no seed has this number in both
                rows.append([tables.printed_name(name), *means, "", 0])
    return tables.markdown(rows)


def csv_text(configurations):
    """The numbers of every run as CSV, each in its own line; in nats, not in bits per dimension."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")  # it writes floats with all digits, as repr does
    writer.writerow(["configuration", "step", "data", "run", "seed", "split", "number", "value"])
    for config in configurations:
        for i, (run, seed) in enumerate(zip(config["runs"], config["seeds"], strict=True)):
            for name, number in config["results"].items():
                if number["values"][i] is not None:
                    about = config["configuration"], config["step"], config["data"], run, seed
                    *split, short = name.split(" ", 1)
                    writer.writerow([*about, "".join(split), short, number["values"][i]])
    return text.getvalue().rstrip("\n")


def show(text):
    """Print the text. If nobody reads it any more, as after `| head -1`, that is no error."""
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's stream has no such method
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the rest, which Python writes at its end
        if not isinstance(error, BrokenPipeError):
            raise


def report(flags):
    configurations, left_out = tables.read(matching(list(Path("logs").glob("model=*_run=*")), flags))
    by = None
    if flags.by is not None and configurations:
        by = tables.find_number(configurations, flags.by)
        configurations = tables.best_first(configurations, by)
    if flags.difference or flags.csv == "-":  # there is no place for them in the output
        for sentence in left_out:
            print(f"report.py: left out: {sentence}", file=sys.stderr)
    if flags.difference:
        text = difference_table(*(the_only(configurations, name) for name in flags.difference))
    elif flags.csv == "-":
        text = csv_text(configurations)
    else:
        text = tables.report(configurations, left_out, by)
    show(text)
    if not configurations:
        raise InputError(NO_RUN.format("" if flags.pattern == "*" else f" that matches {flags.pattern!r}"))
    if flags.csv not in (None, "-"):
        text = csv_text(configurations)
        Path(flags.csv).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def main():
    flags = parse_flags()
    try:
        report(flags)
    except (InputError, OSError) as error:
        print(f"report.py: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
