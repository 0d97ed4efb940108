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


def seconds_of(command, folder, cache):
    """{part of the run: seconds}, from the times at which the script prints its lines."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    began, times = time.perf_counter(), {}
    with subprocess.Popen(command, cwd=folder, env=environment, **streams) as process:
        for line in process.stdout:
            word = line.split(" ")[0]
            times.setdefault(word, []).append(time.perf_counter() - began)
    ended = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{' '.join(command[2:])} failed; is --data_dir right?")
    (device,), (trained,) = times["device"], times["trained"]
    updates = times.get("update", [device])  # compiling, compiled
    return {
        "start: Python, imports, data": device,
        "model, first look and bounds": updates[0] - device,
        "compiler; two steps of each kind, compared": updates[-1] - updates[0],
        "training, with curves, pictures and checkpoints": trained - updates[-1],
        "report: bounds of the test images": ended - trained,
        "all": ended,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--script", default="run_vae.py")
    parser.add_argument("--warm", type=int, default=3)
    flags = parser.parse_args()
    command = [sys.executable, "-u", str(ROOT / flags.script), "--data_dir", str(Path(flags.data_dir).absolute())]
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for i in range(1 + flags.warm):
            Path(folder, str(i)).mkdir()
            runs.append(seconds_of(command, Path(folder, str(i)), Path(folder, "cache")))
    print(f"{flags.script}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(f"| seconds | empty cache | full cache, median of {flags.warm} | from to |\n|---|---|---|---|")
    for part, cold in runs[0].items():
        warm = [run[part] for run in runs[1:]]
        print(f"| {part} | {cold:.1f} | {statistics.median(warm):.1f} | {min(warm):.1f} to {max(warm):.1f} |")


if __name__ == "__main__":
    main()
