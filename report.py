"""Tables of the runs under logs/, in Markdown: for each model, mean ± standard error over the runs by configuration.

Commands:
    python report.py                     print the tables
    python report.py --out FILE.md       also write them to a file
    python report.py --json              print JSON instead, with the numbers of every run
"""

import argparse
import json
import sys
from pathlib import Path

from codebase.runs import tables


def fail(reason):
    print(f"report.py: error: {reason}", file=sys.stderr)
    sys.exit(2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="FILE", help="also write the output to this file")
    parser.add_argument("--json", action="store_true", help="JSON instead of Markdown")
    flags = parser.parse_args()
    configurations, left_out = tables.read(Path("logs").glob("model=*_run=*"))
    if flags.json:
        text = json.dumps({"configurations": configurations, "left_out": left_out}, indent=1)
    else:
        text = tables.report(configurations, left_out)
    sys.stdout.reconfigure(errors="backslashreplace")
    print(text)
    if not configurations:
        fail("there is no finished run under logs/; train one first.")
    if flags.out:
        try:
            Path(flags.out).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            fail(error)


if __name__ == "__main__":
    main()
