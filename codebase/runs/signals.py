"""Signals that stop the training after the current step, which is then saved."""

import contextlib
import signal

from codebase import processes


@contextlib.contextmanager
def catch_signals():
    """In the block: SIGINT (Ctrl-C), SIGTERM and SIGHUP (closed terminal) are appended to a list, which is yielded.

    A second Ctrl-C raises KeyboardInterrupt. A signal that is already ignored, as SIGINT in a shell's background jobs,
    stays ignored.
    """
    signals, own = [], []  # should_stop adds the signals of other processes to the first list

    def note(number, frame):
        if own and number == signal.SIGINT:
            raise KeyboardInterrupt
        own.append(number)
        signals.append(number)
        print("\nfinishing and saving this step; a second Ctrl-C stops at once", flush=True)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {n: signal.signal(n, note) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def should_stop(signals, step):
    """Should training stop after this step? signals: what this process has caught; those of the others are added.

    Several processes stop after the same step. They communicate only at every tenth step, because that takes time.
    """
    if step % 10 and processes.size() > 1:
        return False
    number = processes.maximum(signals[0] if signals else 0)
    if number and not signals:
        signals.append(number)
    return number > 0
