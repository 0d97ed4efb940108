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
    signals = []

    def note(number, frame):
        if signals and number == signal.SIGINT:
            raise KeyboardInterrupt
        signals.append(number)
        print("\nfinishing and saving this step; a second Ctrl-C stops at once", flush=True)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {n: signal.signal(n, note) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
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
