"""What `python run_*.py` does: one run, or the series of --replicates; errors as messages without a traceback."""

import contextlib
import os
import sys
from pathlib import Path

import torch

from codebase import processes
from codebase.errors import InputError, NonFiniteError
from codebase.runs import tables
from codebase.runs.flags import parse_flags, replicates
from codebase.runs.run import execute, open_run


class IgnoringWriteErrors:
    """A text stream that ignores write errors, so that a closed pipe or terminal does not stop the training."""

    def __init__(self, stream):
        self.stream = stream or open(os.devnull, "w")  # noqa: SIM115  (Python has None for a stream that is closed)
        if hasattr(self.stream, "reconfigure"):  # a notebook's stream has no such method
            self.stream.reconfigure(errors="backslashreplace")  # for characters that the terminal does not have

    def write(self, text):
        with contextlib.suppress(OSError):
            self.stream.write(text)

    def flush(self):
        try:
            self.stream.flush()
        except OSError:  # otherwise the rest of its buffer would cause an error when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name):
        return getattr(self.stream, name)


def run_main(model, main, own_flags, description, usual_data="mnist"):
    """Call main(run) as a script, once for each of the --replicates; then print their table.

    model: its name, such as 'vae'; the others as in flags.parse_flags and run.open_run. An error that the user can
    correct ends the script with a sentence and exit code 2, Ctrl-C with 130.
    """
    this, several = processes.torchrun_rank_and_size()
    out = IgnoringWriteErrors(sys.stdout if this == 0 else None)  # only the first process prints
    err = IgnoringWriteErrors(sys.stderr)

    def fail(error, code):
        process = f" (process {this})" if several > 1 else ""
        print(f"{Path(sys.argv[0]).name}{process}: error: {error}", file=err)
        sys.exit(code)

    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_all(model, main, parse_flags(description, own_flags), usual_data)
        except (InputError, OSError) as error:
            fail(error, 2)
        except NonFiniteError as error:
            fail(error, 1)
        except KeyboardInterrupt:
            sys.exit(130)
        except (MemoryError, RuntimeError) as error:
            if processes.has_another_ended(error):
                fail(f"another process of this run has ended ({str(error).splitlines()[0]})", 1)
            if not is_out_of_memory(error):
                raise
            fail("there is not enough memory: use smaller numbers in the flags.", 2)
        finally:
            out.flush(), err.flush()


def is_out_of_memory(error):
    """Did an allocation fail? On a CPU, PyTorch then raises a RuntimeError that only its text identifies."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


def run_all(model, main, flags, usual_data):
    """Call main(run). With --replicates, the processes share the calls, one for each run; then print their table."""
    if flags.replicates == 1:
        with processes.data_parallel(flags.device):
            execute(open_run(model, flags, usual_data), main)
        return
    this, several = processes.torchrun_rank_and_size()
    flags_of = list(replicates(flags))

    def replicate(i):
        by = f", by process {this}" if several > 1 else ""
        print(f"\nreplicate {i + 1} of {flags.replicates}{by}", file=sys.stderr if this else sys.stdout, flush=True)
        run = open_run(model, flags_of[i], usual_data)
        execute(run, main)
        return str(run.logs)

    if logs := processes.share_out(replicate, flags.replicates):
        print(f"\n{tables.report(*tables.read(logs))}")
