"""Signals that stop the training after the current step, which is then saved."""

import contextlib
import signal
import threading

from codebase import processes

# Ctrl-C, kill, a closed terminal; clusters announce the end of a job with the others
ENDS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")


@contextlib.contextmanager
def catch_signals():
    """In the block: the signals below are appended to a list, which is yielded. A second Ctrl-C: KeyboardInterrupt.

    A signal that is ignored before, as SIGINT in a shell's background jobs, stays so. Only the main thread catches one.
    """
    signals = []

    def note(number, frame):
        if signals and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not signals:
            print("\nfinishing and saving this step; a second Ctrl-C stops at once", flush=True)
        signals.append(number)

    main = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in ENDS if main and hasattr(signal, name)]
    # None is a handler that is not Python's, and could not be restored.
    before = {n: signal.signal(n, note) for n in numbers if signal.getsignal(n) not in (signal.SIG_IGN, None)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped_by(signals, step):
    """The signal after which training stops at this step, or 0: of this process or of another one.

    Several processes stop after the same step. They communicate only at every tenth step, because that takes time.
    """
    if processes.size() == 1:
        return signals[0] if signals else 0
    return 0 if step % 10 else max(processes.gather(signals[:1] or [0]))
