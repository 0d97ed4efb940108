"""What TensorBoard shows of runs besides their curves: the tab HPARAMS, and the legends of pictures."""

import json
from types import SimpleNamespace

import pytest
from conftest import curves
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_BLOB_SEQUENCE
from tensorboard.context import RequestContext
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context


def hparams(folder):
    """The tab HPARAMS: its columns, of flags and of numbers, and {run: (flags, {number: (step, value)})}."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    context = RequestContext(), Context(SimpleNamespace(data_provider=provider)), ""
    every = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING]
    request = api_pb2.ListSessionGroupsRequest(allowed_statuses=every, slice_size=100)
    groups = list_session_groups.Handler(*context, request).run().session_groups
    experiment = get_experiment.Handler(*context, api_pb2.GetExperimentRequest()).run()
    columns = {info.name for info in experiment.hparam_infos}, {info.name.tag for info in experiment.metric_infos}
    rows = {}
    for group in groups:
        flags = {name: value.string_value or value.number_value for name, value in group.hparams.items()}
        numbers = {value.name.tag: (value.training_step, value.value) for value in group.metric_values}
        rows[group.name] = flags, numbers
    return columns, rows


def test_hparams_lists_runs_of_two_models_with_their_flags_and_last_points(vae, on_digits, tmp_path):
    """Also of a run that was resumed; an earlier step and a file, which are evaluated, have no curves."""
    usual = ("--lr_schedule", "2,4", "--hidden", 20, "--iter_save", 2)
    assert vae(*usual, "--iter_max", 2)[0] == 0
    assert vae(*usual, "--iter_max", 4, "--resume", 1)[0] == 0
    for more in (["--iter_max", 2], ["--checkpoint", next(tmp_path.glob("checkpoints/*/model-00004.pt"))]):
        assert vae(*usual, "--train", 0, "--iw_eval", 2, *more)[0] == 0
    on_digits("run_ssvae.py", "--z", 3, "--hidden", 20, "--iter_max", 2)
    (flag_columns, number_columns), rows = hparams(tmp_path / "logs")
    folders = {path.parent.name: path.parent for path in tmp_path.glob("logs/*/*tfevents*")}
    assert rows.keys() == folders.keys()
    assert len(rows) == 2
    for name, (flags, numbers) in rows.items():
        experiment = json.loads((folders[name] / "results.json").read_text())["experiment"]
        assert flags == {k: v for k, v in experiment.items() if v is not None} | {"model": name.split("_")[0][6:]}
        assert numbers == {tag: points[-1] for tag, points in curves(folders[name]).items()}
    assert flag_columns == set().union(*(flags for flags, _ in rows.values()))
    assert number_columns == set().union(*(numbers for _, numbers in rows.values()))
    assert "test/accuracy_percent" in number_columns


@pytest.mark.parametrize(
    "name", ["run_vae.py", *(pytest.param(f"run_{name}.py", marks=pytest.mark.slow) for name in ("ssvae", "fsvae"))]
)
def test_every_picture_has_a_legend(on_digits, fsvae, folders, name):
    flags = ("--z", 2, "--hidden", 20, "--iter_max", 2)
    fsvae(*flags) if name == "run_fsvae.py" else on_digits(name, *flags)
    (path,) = folders()[1].glob("*tfevents*")
    events = [Event.FromString(raw) for raw in RawEventFileLoader(str(path)).Load()]
    images = [value for event in events for value in event.summary.value if value.HasField("image")]
    assert len(images) == 2 * (6 if name == "run_ssvae.py" else 5)  # at step 0 and at the checkpoint
    for value in images:
        assert len(value.metadata.summary_description.split()) > 5
        # Without these, TensorBoard's fast loader does not show it.
        assert value.metadata.plugin_data.plugin_name == "images"
        assert value.metadata.data_class == DATA_CLASS_BLOB_SEQUENCE
    by_class = [value.metadata.summary_description for value in images if value.tag == "gen/samples"]
    assert all(("row = class, column = style z" in legend) == (name != "run_vae.py") for legend in by_class)
