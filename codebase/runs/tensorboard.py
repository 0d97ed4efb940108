"""The curves, pictures and flags of a run, in the format of TensorBoard."""

import os
import time

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from codebase import processes
from codebase.runs.files import errors_with_path

BLOB_SEQUENCE = b"\x20\x03"  # data_class in SummaryMetadata: TensorBoard needs it to show a description of an image


class EventFile:
    """A new event file in a folder, for a process that logs from the step `first` on; nowhere if its rank is above 0.

    TensorBoard ignores what an earlier process logged from that step on. A flush writes all that was added before it; a
    write error raises OSError. (tensorboardX's SummaryWriter writes in another thread. Its flush does not wait for that
    thread, and after an error there, such as a full disk, the next event waits forever.)
    """

    def __init__(self, folder, first):
        name = f"events.out.tfevents.{time.time():.6f}"  # TensorBoard reads the files in this order
        self.path = folder / name if processes.rank() == 0 else os.devnull
        self.file = RecordWriter(str(self.path))
        self.write(file_version="brain.Event:2")
        self.write(step=first, session_log=SessionLog(status=SessionLog.START))

    def close(self):
        with errors_with_path(self.path):
            self.file.close()

    def write(self, **event):
        """Add an event."""
        with errors_with_path(self.path):
            self.file.write(Event(wall_time=time.time(), **event).SerializeToString())

    def flush(self):
        if self.path != os.devnull:  # no disk, and so an error
            with errors_with_path(self.path):
                self.file.flush()

    def add_scalar(self, tag, value, step):
        """A point of a curve. value: a float."""
        self.write(step=step, summary=summary.scalar(tag, value))

    def add_image(self, tag, png, shape, step, description=""):
        """png: the contents of a PNG file; shape: (H, W, 3). description: the legend, in Markdown."""
        height, width, colours = shape
        image = Summary.Image(height=height, width=width, colorspace=colours, encoded_image_string=png)
        of_image = Summary(value=[Summary.Value(tag=tag, image=image)])
        metadata = of_image.value[0].metadata
        metadata.summary_description = description
        metadata.plugin_data.plugin_name = "images"
        metadata.MergeFromString(BLOB_SEQUENCE)
        self.write(step=step, summary=of_image)

    def add_flags(self, flags):
        """The flags of a run, for the tab HPARAMS, which takes its other columns from the curves."""
        single = (int, float, type(None))  # None has an empty cell
        flags = {name: value if isinstance(value, single) else str(value) for name, value in flags.items()}
        self.write(step=0, summary=summary.hparams(flags, {})[1])
