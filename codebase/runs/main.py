"""What `python run_*.py` does: one run, or the series of --replicates; errors as messages without a traceback."""

import contextlib
import os
import sys
from pathlib import Path

from codebase import processes
from codebase.errors import InputError, NonFiniteError
from codebase.runs import tables
from codebase.runs.files import InUse
from codebase.runs.flags import parse_flags
from codebase.runs.run import execute, open_run


class IgnoringWriteErrors:
    """A text stream that a closed pipe or terminal turns into one to nowhere, instead of stopping the training."""

    def __init__(self, stream):
        self.stream = stream or open(os.devnull, "w")  # noqa: SIM115  (Python has None for a stream that is closed)
        if hasattr(self.stream, "reconfigure"):  # a notebook's stream has no such method
            self.stream.reconfigure(errors="backslashreplace")  # for characters that the terminal does not have

    def write(self, text):
        try:
            self.stream.write(text)
            self.stream.flush()  # here, where its error is caught
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name):
        return getattr(self.stream, name)


def run_main(model, main, own_flags, description, usual_data="mnist", **defaults):
    """Call main(run) as a script, once for each of the --replicates; then print their table.

    model: its name, such as 'vae'; the others as in flags.parse_flags and run.open_run. An error that the user can
    correct ends the script with a sentence and exit code 2.
    """
    out = IgnoringWriteErrors(None if processes.launched() else sys.stdout)  # torchrun's first process prints for all
    err = IgnoringWriteErrors(sys.stderr)

    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            flags = parse_flags(description, own_flags, **defaults)
            if flags.replicates > 1:
                run_series(model, main, flags, usual_data)
            else:
                with processes.on_one_run(flags.device):
                    execute(open_run(model, flags, usual_data), main)
        except (InputError, NonFiniteError, OSError) as error:
            print(f"{Path(sys.argv[0]).name}: error: {error}", file=err)
            sys.exit(1 if isinstance(error, NonFiniteError) else 2)


def run_series(model, main, flags, usual_data):
    """Call main(run) for each of the --replicates that is neither finished nor trained by another process.

    Those are tried again until all of the rest are trained elsewhere. When all are finished, print their table.
    """
    here = sys.stderr if processes.launched() else sys.stdout
    waiting, folders = range(flags.replicates), {}
    while waiting:
        locked = []
        for i in waiting:
            print(f"\nreplicate {i + 1} of {flags.replicates}", file=here, flush=True)
            run = open_run(model, flags.of_run(i), usual_data)
            folders[i] = run.logs
            try:
                execute(run, main)
            except InUse:
                print("another process trains this run", flush=True)
                locked.append(i)
        if len(locked) == len(waiting):
            names = ", ".join(folders[i].name for i in locked)
            print(f"\nstill trained by other processes: {names}. The same command later prints the table.", file=here)
            return
        waiting = locked
    print(f"\n{tables.report(*tables.read(folders.values()))}", file=here)
