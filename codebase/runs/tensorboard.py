"""The curves, pictures and texts of a run, in the format of TensorBoard."""

import time

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from codebase.runs.files import errors_with_path

FLUSH_SECONDS = 10


class EventFile:
    """A new event file in a folder, for a process that trains from step `start` on.

    TensorBoard ignores what an earlier process logged after that step. A flush writes all that was added before it; a
    write error raises OSError. (tensorboardX's SummaryWriter writes in another thread. Its flush does not wait for that
    thread, and after an error there, such as a full disk, the next event waits forever.)
    """

    def __init__(self, folder, start):
        self.path = folder / f"events.out.tfevents.{time.time():.6f}"  # TensorBoard reads the files in this order
        self.file = RecordWriter(str(self.path))
        self.flushed = time.monotonic()
        self.write(file_version="brain.Event:2")
        self.write(step=start + 1, session_log=SessionLog(status=SessionLog.START))

    def close(self):
        with errors_with_path(self.path):
            self.file.close()

    def write(self, **event):
        """Add an event. Every few seconds all are flushed, so that TensorBoard shows what is new."""
        with errors_with_path(self.path):
            self.file.write(Event(wall_time=time.time(), **event).SerializeToString())
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self):
        with errors_with_path(self.path):
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
