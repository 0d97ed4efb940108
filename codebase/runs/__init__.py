"""What `python run_*.py` does around a model: flags, the course of a run, its files and its report."""

# ruff: noqa: F401 (names imported here for the run scripts)

from codebase.runs.course import train_or_load
from codebase.runs.flags import DATASET, HIDDEN, IW, Flag, count, size, weight
from codebase.runs.main import run_main
from codebase.runs.results import report, report_confusion
