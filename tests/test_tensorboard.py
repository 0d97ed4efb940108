"""What TensorBoard shows of runs besides their curves: HPARAMS, the charts of CUSTOM SCALARS, legends of pictures."""

import json
import re
import signal
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader, RawEventFileLoader
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_BLOB_SEQUENCE
from tensorboard.context import RequestContext
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from codebase.runs import course as training

ALL = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING]


@pytest.fixture
def hparams(tmp_path):
    """The tab HPARAMS: its columns, and {folder in logs/: (status, flags, {number: (value, step)})}."""

    def read():
        multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "logs")).Reload()
        provider = MultiplexerDataProvider(multiplexer, str(tmp_path / "logs"))
        context = RequestContext(), Context(SimpleNamespace(data_provider=provider)), ""
        request = api_pb2.ListSessionGroupsRequest(allowed_statuses=ALL, slice_size=100)
        groups = list_session_groups.Handler(*context, request).run().session_groups
        experiment = get_experiment.Handler(*context, api_pb2.GetExperimentRequest()).run()
        columns = {info.name for info in experiment.hparam_infos}, [info.name.tag for info in experiment.metric_infos]
        rows = {}
        for group in groups:
            flags = {name: value.string_value or value.number_value for name, value in group.hparams.items()}
            numbers = {value.name.tag: (value.value, value.training_step) for value in group.metric_values}
            (session,) = group.sessions
            rows[group.name.removesuffix("/final")] = session.status, flags, numbers
        return columns, rows

    return read


def expected(logs):
    """The flags and numbers in results.json, as HPARAMS shows them: None is an empty cell, numbers are float32."""
    record = json.loads((logs / "results.json").read_text())
    model = re.match("model=([^_]*)", record["name"])[1]
    flags = {name: value for name, value in record["experiment"].items() if value is not None}
    means = {
        f"{split} {name}": (pytest.approx(value["mean"], rel=1e-6), record.get("step", 0))
        for split, values in record["results"].items()
        for name, value in values.items()
        if name not in ("ess", "latent_units", "confusion")
    }
    return {"model": model} | flags, means


def without_group(numbers):
    return {tag.split("/")[1]: value for tag, value in numbers.items()}


def test_hparams_lists_runs_of_two_models_with_their_flags_and_final_numbers(vae, on_digits, hparams, tmp_path):
    vae("--z", 2, "--train", 2, "--iw_eval", "1,999,1000")
    on_digits("run_ssvae.py", "--z", 3, "--iter_max", 4, "--iter_save", 4)
    folders = {path.name: path for path in (tmp_path / "logs").iterdir()}
    (flag_columns, number_columns), rows = hparams()
    assert rows.keys() == folders.keys()
    for name, (status, flags, numbers) in rows.items():
        assert status == api_pb2.STATUS_SUCCESS
        assert (flags, without_group(numbers)) == expected(folders[name])
    assert flag_columns == set().union(*(flags for _, flags, _ in rows.values()))
    assert number_columns == sorted(set().union(*(numbers for _, _, numbers in rows.values())))
    # These are shown first, the others when they are selected.
    assert [name for name in number_columns if name.startswith("final/")] == number_columns[:4]
    assert number_columns[:4] == [
        f"final/{name}" for name in ("subset iwae_1000", "subset nelbo", "test accuracy_percent", "test nelbo")
    ]


def test_hparams_of_a_run_that_is_evaluated_again(vae, hparams, folders):
    vae("--z", 2, "--lr_schedule", "cosine")
    _, logs = folders()
    vae("--z", 2, "--lr_schedule", "cosine", "--train", 0, "--iw_eval", "2,4")
    _, rows = hparams()
    assert (rows[logs.name][1], without_group(rows[logs.name][2])) == expected(logs)
    assert rows[logs.name][1]["iter_max"] == 30
    assert "final_more/subset iwae_4" in rows[logs.name][2]
    assert len(list((logs / "final").iterdir())) == 1

    vae("--z", 2, "--lr_schedule", "cosine", "--train", 0, "--iw_eval", 2, "--iter_max", 20)  # an earlier checkpoint
    before, (_, rows) = rows, hparams()
    assert rows.keys() == {logs.name, f"{logs.name}/step=00020"}
    assert rows[logs.name] == before[logs.name]
    assert without_group(rows[f"{logs.name}/step=00020"][2]) == expected(logs / "step=00020")[1]


def test_hparams_of_a_file_of_weights(vae, hparams, folders, tmp_path):
    vae("--z", 2)
    checkpoints, logs = folders()
    vae("--z", 2, "--train", 0, "--iw_eval", 2, "--checkpoint", checkpoints / "model-00030.pt")
    (other,) = (path for path in (tmp_path / "logs").iterdir() if path != logs)
    _, rows = hparams()
    assert rows.keys() == {logs.name, other.name}
    assert (rows[other.name][1], without_group(rows[other.name][2])) == expected(other)


@pytest.mark.slow
def test_hparams_of_a_resumed_run_and_of_one_that_was_stopped(vae, hparams, folders, monkeypatch):
    """Numbers of earlier weights are not shown any more when the training goes on."""
    vae("--z", 2, "--iter_max", 20)
    _, logs = folders()
    before = expected(logs)
    check_weights = training.check_weights

    def interrupted(*args):
        signal.raise_signal(signal.SIGTERM)
        check_weights(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "check_weights", interrupted)
        assert vae("--z", 2, "--iter_max", 60, "--resume", 1)[0] == 143
    assert hparams()[1] == {logs.name: (api_pb2.STATUS_UNKNOWN, before[0], {})}

    vae("--z", 2, "--iter_max", 60, "--resume", 1)
    status, flags, numbers = hparams()[1][logs.name]
    assert (status, flags, without_group(numbers)) == (api_pb2.STATUS_SUCCESS, *expected(logs))
    assert {step for _, step in numbers.values()} == {60}
    assert without_group(numbers) != before[1]


def values(logs):
    """What is written to a run's event files, as TensorBoard reads it."""
    events = (event for path in sorted(logs.glob("*tfevents*")) for event in EventFileLoader(str(path)).Load())
    return [value for event in events for value in event.summary.value]


@pytest.mark.slow
def test_custom_scalars_groups_the_curves(on_digits, folders):
    """The layout is written once, also if the run is resumed and evaluated. A chart is a regular expression of tags."""
    ssvae = ("run_ssvae.py", "--z", 2, "--iter_save", 4)
    on_digits(*ssvae, "--iter_max", 4)
    on_digits(*ssvae, "--iter_max", 8, "--resume", 1)
    on_digits(*ssvae, "--train", 0, "--iw_eval", 2)
    found = values(folders()[1])
    (written,) = (value for value in found if value.metadata.plugin_data.plugin_name == "custom_scalars")
    (category,) = Layout.FromString(written.tensor.string_val[0]).category
    tags = {value.tag for value in found if value.metadata.plugin_data.plugin_name == "scalars"}
    tags |= {"gen/my_term", "train/my_rate"}  # of a model of one's own
    charts = {chart.title: {t for t in tags for r in chart.multiline.tag if re.match(r, t)} for chart in category.chart}
    assert charts == {
        "loss and its terms": {"train/loss", "gen/kl_z", "gen/kl_y", "gen/rec", "gen/my_term", "class/ce"},
        "negative ELBO of test, training and validation images": {"eval/nelbo_test", "eval/nelbo_train"},
        "accuracy of a classifier, %": {"test/accuracy_percent"},
    }


@pytest.mark.parametrize(
    "name", ["run_vae.py", *(pytest.param(f"run_{name}.py", marks=pytest.mark.slow) for name in ("ssvae", "fsvae"))]
)
def test_every_picture_has_a_legend(on_digits, fsvae, folders, name):
    flags = ("--z", 2, "--iter_max", 4, "--iter_save", 2)
    fsvae(*flags) if name == "run_fsvae.py" else on_digits(name, *flags)
    (path,) = folders()[1].glob("*tfevents*")
    events = [Event.FromString(raw) for raw in RawEventFileLoader(str(path)).Load()]
    images = [value for event in events for value in event.summary.value if value.HasField("image")]
    assert len(images) == 3 * 5  # five pictures at step 0 and at two checkpoints
    for value in images:
        assert len(value.metadata.summary_description.split()) > 5
        # Without these, TensorBoard's fast loader does not show it.
        assert value.metadata.plugin_data.plugin_name == "images"
        assert value.metadata.data_class == DATA_CLASS_BLOB_SEQUENCE
    by_class = [value.metadata.summary_description for value in images if value.tag == "samples"]
    assert all(("row = class, column = style z" in legend) == (name != "run_vae.py") for legend in by_class)
