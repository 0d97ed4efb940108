"""The curves, pictures and texts of a run, in the format of TensorBoard."""

import contextlib
import time

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from codebase.runs.files import errors_with_path

FLUSH_SECONDS = 10
BLOB_SEQUENCE = b"\x20\x03"  # data_class in SummaryMetadata: TensorBoard needs it to show a description of an image
# The curves of the negative ELBO, and the split of each.
ELBO_CURVES = {"eval/nelbo_test": "test", "eval/nelbo_train": "train", "eval/nelbo_validation": "validation"}
CHARTS = {  # the curves in each chart: a regular expression of their tags
    "loss and its terms": ("Multiline", ["train/loss$|gen/(?!elbo$)|class/(?!acc$)"]),
    "negative ELBO of test, training and validation images": ("Multiline", ["eval/nelbo_"]),
    "accuracy of a classifier, %": ("Multiline", [".*/accuracy_percent$"]),
}


class EventFile:
    """A new event file in a folder, for a process that logs from the step `first` on.

    TensorBoard ignores what an earlier process logged from that step on. A flush writes all that was added before it; a
    write error raises OSError. (tensorboardX's SummaryWriter writes in another thread. Its flush does not wait for that
    thread, and after an error there, such as a full disk, the next event waits forever.)
    """

    def __init__(self, folder, first):
        self.path = folder / f"events.out.tfevents.{time.time():.6f}"  # TensorBoard reads the files in this order
        self.file = RecordWriter(str(self.path))
        self.flushed = time.monotonic()
        self.write(file_version="brain.Event:2")
        self.write(step=first, session_log=SessionLog(status=SessionLog.START))

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

    def add_text(self, tag, text, step):
        """text: Markdown."""
        self.write(step=step, summary=summary.text(tag, text))

    def add_start(self, flags):
        """What is written once, when a run starts: its flags as a text, and the charts of the tab CUSTOM SCALARS."""
        self.add_text("flags", "\n".join(f"    {name} = {value}" for name, value in flags.items()), 0)
        self.write(step=0, summary=summary.custom_scalars({"curves": CHARTS}))


def write_hparams(folder, step, flags, numbers=None):
    """What the tab HPARAMS shows of a run: its flags, and {tag: number} after `step` steps if it has ended.

    The folder is only for these: the tab has a column for each curve that is in the same folder as the flags. Older
    numbers in it are deleted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    single = (int, float, type(None))  # None has an empty cell
    flags = {name: value if isinstance(value, single) else str(value) for name, value in flags.items()}
    _, start, end = summary.hparams(flags, {})
    with contextlib.closing(EventFile(folder, step)) as file:
        file.write(step=step, summary=start)
        for tag, value in (numbers or {}).items():  # not by summary.scalar, which replaces the spaces in tags
            file.write(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))
        if numbers is not None:
            file.write(step=step, summary=end)
    for path in set(folder.iterdir()) - {file.path}:
        path.unlink(missing_ok=True)
