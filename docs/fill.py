"""Keep the numbers in README.md and docs/*.md those of the runs.

    python docs/fill.py logs        adds the results of the finished runs under logs/ to docs/results.json, and brings
                                    the numbers that this changes into the pages
    python docs/fill.py             says which numbers of the pages are not those of docs/results.json

docs/numbers.txt lists the numbers. Each line is a piece of a page, with an {expression} in the place of a value. The
expressions are Python calls of the functions below. Their arguments are names of configurations and numbers in
docs/results.json, such as "vae_z=10" and "test nelbo". A name stands for the configuration with the most steps, or with
a step, as in "vae_z=10 step=5000", for that one. For a new number, write its line and start this script: it prints the
piece with its value.
"""

import argparse
import fnmatch
import json
import math
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from codebase import evaluate  # noqa: E402
from codebase.runs import tables  # noqa: E402

STORED = ROOT / "docs" / "results.json"
NUMBERS = ROOT / "docs" / "numbers.txt"

VAE, GMVAE, IW5 = "vae_z=10", "gmvae_z=10_k=500", "vae_z=10_iw=05"
VAE_MEDIUM, GMVAE_MEDIUM = "vae_z=10_precision=medium", "gmvae_z=10_k=500_precision=medium"
SSVAE, BASELINE = "ssvae_gw=001_cw=100", "ssvae_gw=000_cw=100"
HOUSES, GLYPHS = "fsvae_data=house-numbers-814b07e3", "fsvae_data=glyphs"

# The course staff's numbers: mean, and standard deviation over their 50 runs if they gave it, on the homework's subset
# of the test images, in their own binarisation.
STAFF_RUNS = 50
STAFF = {
    VAE: {
        "subset nelbo": (101.21, 0.61),
        "subset kl": (19.34, 0.19),
        "subset rec": (81.86, 0.66),
        "subset iwae_1": (101.21, None),
        "subset iwae_10": (98.50, None),
        "subset iwae_100": (97.46, None),
        "subset iwae_1000": (96.93, None),
    },
    GMVAE: {
        "subset nelbo": (98.58, 0.46),
        "subset kl": (17.82, 0.18),
        "subset rec": (80.77, 0.51),
        "subset iwae_1": (98.58, None),
        "subset iwae_10": (96.12, None),
        "subset iwae_100": (95.16, None),
        "subset iwae_1000": (94.71, None),
    },
    BASELINE: {"test accuracy_percent": (73.5, None)},
    SSVAE: {"test accuracy_percent": (93.52, 1.09)},
}


def by_name(configurations):
    """The configurations by name, and by name and step."""
    found = {}
    for configuration in sorted(configurations, key=lambda configuration: configuration["step"]):
        name = configuration["configuration"]
        key = f"{name} step={configuration['step']}"
        if key in found:
            raise SystemExit(f"fill.py: error: several configurations are called {key}.")
        found[name] = found[key] = configuration
    return found


def merged(old, new):
    """The old configurations and the new ones, which take the places of old ones of the same name and step."""
    by_name(new)  # complains of two with the same name and step
    return list({(config["configuration"], config["step"]): config for config in [*old, *new]}.values())


RUNS = by_name(json.loads(STORED.read_text())["configurations"])


def number(configuration, name):
    return RUNS[configuration]["results"][name]


def mean(configuration, name, digits=2):
    """'99.81 ± 0.09': the mean over the runs ± its standard error."""
    return tables.mean_and_error(number(configuration, name), digits)


def deviation(configuration, name):
    """The standard deviation of single runs around their mean."""
    return statistics.stdev(value for value in number(configuration, name)["values"] if value is not None)


def expected(configuration, name, digits=1):
    """'99.1 to 100.3': the mean ∓ two standard deviations of single runs, the range to expect of one run."""
    middle, two = number(configuration, name)["mean"], 2 * deviation(configuration, name)
    return f"{middle - two:.{digits}f} to {middle + two:.{digits}f}"


def of_run(configuration, name, i=0):
    """The number of a single run."""
    return f"{number(configuration, name)['values'][i]:.2f}"


def minus(a, name_a, b, name_b, digits=2):
    """Number name_a of configuration a minus name_b of b, between runs of the same seed."""
    return tables.mean_and_error(tables.difference(RUNS[a], RUNS[b], name_a, name_b), digits)


def low_high(configuration, name, digits=2):
    """'89.82 to 94.81': the lowest and the highest run."""
    values = number(configuration, name)["values"]
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def bits(configuration, name, is_density=True, dimensions=3072):
    """A number in bits per dimension, of images of 32 × 32 values in three colours.

    From the stored nats, so without the noise of a report, which adds 1e-5 bits to the FSVAE's.
    """
    nats = number(configuration, name)
    estimate = evaluate.Estimate(nats["mean"], nats["se"], len(nats["values"]))
    return f"{evaluate.bits_per_dimension(estimate, dimensions, is_density):.4f}"


def count(configuration):
    return len(RUNS[configuration]["runs"])


def seconds(configuration):
    """The median time of training, in words."""
    middle = statistics.median(RUNS[configuration]["seconds"])
    return f"{middle:.0f} s" if middle < 300 else f"{middle / 60:.0f} min"


def made(configuration):
    """Where and when the runs were made."""
    about = RUNS[configuration]["made"]
    commits = "".join(f"; commit `{commit[:7]}{commit[40:]}`" for commit in about["commit"] if len(commit) >= 40)
    return f"{', '.join(about['day'])}; {'; '.join(about['device'])}; torch {', '.join(about['torch'])}{commits}"


def best_first(pattern, number, step):
    """A table of the configurations of so many steps whose names match a shell pattern, best first by a number."""
    names = fnmatch.filter((key for key in RUNS if key.endswith(f" step={step}")), f"{pattern} step=*")
    rows = tables.table_by(tables.best_first([RUNS[name] for name in names], number), number).splitlines()
    return "\n".join("|".join(row.split("|")[:4]) + "|" for row in rows)  # configuration, runs, this number


def against_staff(*configurations):
    """Our numbers, each of the first configuration that has it, beside the course staff's of the first configuration.

    The difference, also in units of its standard error. If the staff gave no standard deviation of single runs, ours is
    used.
    """
    rows = [["", "ours", "sd of a run", "course staff", "difference", "in standard errors"]]
    having = {name: each for each in reversed(configurations) for name in RUNS[each]["results"]}
    for name, configuration in having.items():
        sd_ours = deviation(configuration, name)
        rows.append([tables.printed_name(name), mean(configuration, name), f"{sd_ours:.2f}"])
        if name in STAFF[configurations[0]]:
            theirs, sd = STAFF[configurations[0]][name]
            result = number(configuration, name)
            difference = result["mean"] - theirs
            error = math.hypot(result["se"], (sd or sd_ours) / math.sqrt(STAFF_RUNS))
            staff = f"{theirs:.2f}" + (f" ± {sd / math.sqrt(STAFF_RUNS):.2f}" if sd else "")
            rows[-1] += [staff, f"{difference:+.2f}", f"{difference / error:+.1f}"]
    return tables.markdown(rows)


def pieces():
    """docs/numbers.txt: the pairs (page, [text, expression, text, ..., text])."""
    for line in NUMBERS.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            page = ROOT / line.removeprefix("# ")
        elif line:
            yield page, re.split(r"\{(.+?)\}", line)


def with_values(piece):
    """The piece with the values of its expressions: [text, value, text, ..., text]."""
    return [str(eval(part)) if i % 2 else part for i, part in enumerate(piece)]


def replaced(text, old, new):
    """The text with the new values of a piece in the place of the old ones, and how often the piece is in it."""

    def changed(match):  # a part that stays keeps its line breaks
        return "".join(a if b == c else c for a, b, c in zip(match.groups(), old, new, strict=True))

    # A group for each part. A space may be a line break in the page.
    return re.subn("".join(f"({re.escape(part)})" for part in old).replace(r"\ ", r"\s+"), changed, text)


def fill(old):
    """Bring the numbers into the pages, in the places of the old values, [with_values(piece) of each piece].

    Returns the pieces that do not stand in their pages exactly once, in words.
    """
    misplaced = []
    for (page, piece), before in zip(pieces(), old, strict=True):
        text, new = page.read_text(encoding="utf-8"), with_values(piece)
        filled, times = replaced(text, before, new)
        if filled != text:
            page.write_text(filled, encoding="utf-8")
        if times != 1:
            misplaced.append(f"{page.relative_to(ROOT)} must have this once, and has it {times} times: {''.join(new)}")
    return misplaced


def add_runs(logs):
    """Add the results of the finished runs under logs/ to docs/results.json."""
    stored = json.loads(STORED.read_text())
    new, left_out = tables.read(Path(logs).glob("model=*_run=*"))
    print(*(f"left out: {sentence}" for sentence in left_out), sep="\n")
    stored["configurations"] = merged(stored["configurations"], new)
    RUNS.update(by_name(stored["configurations"]))
    STORED.write_text(json.dumps(stored, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="?", help="the folder of the runs whose results are added")
    logs = parser.parse_args().logs
    old = [with_values(piece) for _, piece in pieces()]
    if logs:
        add_runs(logs)
    sys.exit("\n".join(fill(old)) or None)


if __name__ == "__main__":
    main()
