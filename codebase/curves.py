"""The curves, pictures and texts of a run, as TensorBoard reads them."""

import contextlib
import time

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from codebase.checkpoints import naming

FLUSH_SECONDS = 10


class Curves:
    """An event file of its own in a folder, for a process that goes on after step `start`; to be left with `with`.

    What an earlier process logged after that step is forgotten by TensorBoard. All that was added before a flush is in
    the file, whatever ends the process afterwards; what cannot be written is an OSError. (tensorboardX's SummaryWriter
    leaves the writing to a thread of its own: its flush does not wait for that, and once an error, such as a full disk,
    has ended the thread, the next event waits for it forever.)
    """

    def __init__(self, folder, start):
        self.path = folder / f"events.out.tfevents.{time.time():.6f}"  # TensorBoard reads a folder's files by name
        self.file = RecordWriter(str(self.path))
        self.flushed = time.monotonic()
        self.write(file_version="brain.Event:2")
        self.write(step=start + 1, session_log=SessionLog(status=SessionLog.START))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        with contextlib.suppress(OSError) if kind else naming(self.path):  # an error that is there already stays
            self.file.close()

    def write(self, **event):
        """Add an event, and flush now and then, so that TensorBoard shows what is new."""
        with naming(self.path):
            self.file.write(Event(wall_time=time.time(), **event).SerializeToString())
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self):
        """Put all that was added into the file."""
        with naming(self.path):
            self.file.flush()
        self.flushed = time.monotonic()

    def add_scalar(self, tag, value, step):
        """A point of a curve. value: a float."""
        self.write(step=step, summary=summary.scalar(tag, value))

    def add_image(self, tag, image, step):
        """image: (3, H, W) in [0, 1]."""
        self.write(step=step, summary=summary.image(tag, image))

    def add_text(self, tag, text, step):
        """text: Markdown."""
        self.write(step=step, summary=summary.text(tag, text))
