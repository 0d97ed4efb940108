"""How long each part of a whole run takes, with an empty and with a full cache of the compiler.

    python benchmarks/default_run.py [--data_dir DIR] [--script run_vae.py] [--warm 3]

Runs the script in an empty folder with its default flags, first with an empty cache, then --warm times with the full
one. The second column is the median of the runs with a full cache.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from codebase.runs import tables  # noqa: E402

# Runs a script, and prints the seconds that these functions have taken in all.
TIMED = """
import runpy, sys, time
from codebase.runs import checkpoints, course

def timed(module, name):
    function, seconds[name] = getattr(module, name), 0.0
    def timed_function(*args, **how):
        began = time.perf_counter()
        result = function(*args, **how)
        seconds[name] += time.perf_counter() - began
        return result
    setattr(module, name, timed_function)

seconds = {}
timed(course, "nelbos"), timed(course, "looked_at"), timed(checkpoints, "save"), timed(course, "show")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print("seconds", *seconds.values())
"""


def seconds_of(command, folder, cache):
    """{part of the run: seconds}."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    began = time.time()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    printed = [(time.time() - began, line) for line in process.stdout]
    if process.wait():
        raise SystemExit(f"{' '.join(command[3:])} failed; is --data_dir right?")
    ended = time.time() - began
    at = {
        words: next(seconds for seconds, line in printed if line.startswith(words)) for words in ("device", "trained")
    }
    update = [seconds for seconds, line in printed if line.startswith("update")] or [at["device"]]  # begun, ready
    curves, pictures, files, shown = map(float, printed[-1][1].split()[1:])
    return {
        "start: Python, imports, data": at["device"],
        "model, first look and bounds": update[0] - at["device"],
        "compiler; two steps of each kind, compared": update[-1] - update[0],
        "training": at["trained"] - update[-1],
        "in all: held-out curves": curves,
        "in all: pictures": pictures + shown,
        "in all: checkpoints": files,
        "report: bounds of the test images": ended - at["trained"],
        "all": ended,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--script", default="run_vae.py")
    parser.add_argument("--warm", type=int, default=3)
    flags = parser.parse_args()
    command = [
        sys.executable,
        "-u",
        "-c",
        TIMED,
        str(ROOT / flags.script),
        "--data_dir",
        str(Path(flags.data_dir).absolute()),
    ]
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for i in range(1 + flags.warm):
            Path(folder, str(i)).mkdir()
            runs.append(seconds_of(command, Path(folder, str(i)), Path(folder, "cache")))
    print(f"{flags.script}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    cells = [["seconds", "empty cache", f"full cache, median of {flags.warm}", "from to"]]
    for part, cold in runs[0].items():
        warm = [run[part] for run in runs[1:]]
        cells.append([part, f"{cold:.1f}", f"{statistics.median(warm):.1f}", f"{min(warm):.1f} to {max(warm):.1f}"])
    print(tables.markdown(cells))


if __name__ == "__main__":
    main()
