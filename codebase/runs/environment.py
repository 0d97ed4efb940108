"""The device of a run, and the commit of its code."""

import datetime
import os
import subprocess
from pathlib import Path

import torch

from codebase import processes
from codebase.errors import InputError


def choose_device(wanted):
    """The device, and a description of it. wanted: auto, cpu, cuda or mps. InputError if there is no such device."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(kind for kind in there if there[kind]) if wanted == "auto" else wanted
    if not there[kind]:
        raise InputError(f"--device {kind}: PyTorch {torch.__version__} finds no such device; try --device auto.")
    if kind == "cuda":  # each of torchrun's processes has its own GPU, if there are enough
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    what = torch.cuda.get_device_name() if kind == "cuda" else f"{torch.get_num_threads()} threads"
    why = "as requested" if wanted != "auto" else "PyTorch finds no GPU" if kind == "cpu" else "the fastest here"
    several = f"; {processes.size()} processes" if processes.size() > 1 else ""
    return torch.device(kind), f"{kind} ({what}; {why}{several})"


def environment(device):
    """The device, version of PyTorch, commit and date, for results.json. device: its description."""
    return {
        "device": device,
        "torch": torch.__version__,
        "commit": git_commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def git_commit():
    """The commit of this code, with -dirty if files differ from it; None if git cannot tell."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.check_output(command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.SubprocessError):
        return None
