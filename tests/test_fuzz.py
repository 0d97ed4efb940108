"""Damaged input to every reader: it returns the original contents, or raises the project's own error."""

import contextlib
import copy
import gzip
import hashlib
import io
import json
import re
import runpy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, same, save_svhn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codebase import data
from codebase.errors import InputError
from codebase.models.vae import VAE
from codebase.runs import checkpoints, tables
from codebase.runs.flags import SHARED_FLAGS, parse_flags
from codebase.runs.results import read_results
from codebase.train import Adam

CASES = [100, pytest.param(2000, marks=pytest.mark.slow)]
FEWER_CASES = [100, pytest.param(500, marks=pytest.mark.slow)]  # of the code besides the readers of files and flags

PLACES = st.floats(0, 1, exclude_max=True)
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), PLACES, st.integers(0, 7)),
        st.tuples(st.just("put"), PLACES, st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("insert"), PLACES, st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("cut"), PLACES, st.none()),
        st.tuples(st.just("delete"), PLACES, st.integers(1, 64)),
        st.tuples(st.just("copy"), PLACES, PLACES),
    ),
    max_size=4,
)


def damage(whole, edits):
    """The bytes after all edits: a bit that flips, other bytes, the end or some bytes missing, a part in two places."""
    content = bytearray(whole)
    for kind, place, what in edits:
        i = int(place * len(content))
        if kind == "flip" and content:
            content[i] ^= 1 << what
        elif kind == "put":
            content[i : i + len(what)] = what
        elif kind == "insert":
            content[i:i] = what
        elif kind == "cut":
            del content[i:]
        elif kind == "delete":
            del content[i : i + what]
        elif kind == "copy":
            j = int(what * len(content))
            content[i : i + 40] = content[j : j + 40]
    return bytes(content)


def for_all(n, strategies, check):
    """check(*drawn) for n draws, the same ones each time."""
    options = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    settings(max_examples=n, derandomize=True, **options)(given(*strategies)(check))()


def outcome(read):
    """What read() returns; None for the project's own error, which must be one sentence that can be shown."""
    try:
        return read()
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert message.isprintable()
    return None


# The readers: each returns a path, what may be there, and a function that reads it.


def npz(folder, monkeypatch):
    """Some files that can be read, and two that cannot."""
    y = np.arange(4) % 10
    grey = np.random.RandomState(0).randint(0, 256, (4, 28, 28)).astype(np.uint8)
    arrays = {"x_train": grey, "y_train": y, "x_test": grey[:2], "y_test": y[:2]}
    np.savez(folder / "plain.npz", **arrays)
    np.savez_compressed(folder / "packed.npz", **arrays)
    np.savez(folder / "channel.npz", **arrays | {"x_train": np.asfortranarray(grey)[..., None], "more": y})
    np.savez(folder / "pickled.npz", **arrays | {"y_test": np.array([1, "2"], dtype=object)})
    np.save(folder / "single.npy", grey)
    files = [path.read_bytes() for path in sorted(folder.iterdir())]
    return folder / "damaged.npz", files, lambda: data.load(folder / "damaged.npz")[3:]


def idx(folder, monkeypatch, compress=bytes):
    """MNIST's format, with the checksum of the whole file."""
    content = b"\0\0\x08\x03" + b"\0\0\0\x02\0\0\0\x1c\0\0\0\x1c" + bytes(np.arange(2 * 784) % 256)
    monkeypatch.setitem(data.mnist.MNIST_FILES, "images", hashlib.sha256(content).hexdigest())
    name = "images" if compress is bytes else "images.gz"
    return folder / name, [compress(content)], lambda: data.mnist.read_file(folder / "images")


def idx_gz(folder, monkeypatch):
    return idx(folder, monkeypatch, gzip.compress)


def mat(folder, monkeypatch):
    """SVHN's format."""
    path = save_svhn(folder / "svhn", monkeypatch) / "test_32x32.mat"
    return path, [path.read_bytes()], lambda: data.svhn.read_file(path)


def small():
    """A small model and its optimizer."""
    model = VAE(z_dim=1, x_dim=4, n_hidden=3)
    return model, Adam(model.parameters(), 1e-3)


def checkpoint(folder, monkeypatch, old=False):
    """Weights, in PyTorch's format or in its old one."""
    path = folder / "weights.pt"
    torch.save(small()[0].state_dict(), path, _use_new_zipfile_serialization=not old)

    def read():
        model, _ = small()
        checkpoints.load_weights(model, path)
        if old:  # it has no checksums: a number may have changed, but is finite
            return all(value.isfinite().all() for value in model.state_dict().values())
        return dict(model.state_dict())

    return path, [path.read_bytes()], read


def old_checkpoint(folder, monkeypatch):
    return checkpoint(folder, monkeypatch, old=True)


def training_state(folder, monkeypatch):
    model, optimizer = small()
    model.loss(torch.ones(2, 4))[0].backward()
    optimizer.step()
    checkpoints.save(folder, checkpoints.Progress(1, 2.0, {"train/loss": {1: 0.5}}), model, optimizer, {"z": 1})

    def read():
        model, optimizer = small()
        return checkpoints.resume(folder, model, optimizer, {"z": 1}), dict(model.state_dict()), optimizer.state_dict()

    path = checkpoints.state_path(folder)
    return path, [path.read_bytes()], read


@pytest.mark.parametrize("n", CASES)
@pytest.mark.parametrize("reader", [npz, idx, idx_gz, mat, checkpoint, old_checkpoint, training_state])
def test_a_damaged_file_is_refused_or_read_as_it_was(tmp_path, monkeypatch, reader, n):
    path, files, read = reader(tmp_path, monkeypatch)

    def read_damaged(file, edits):
        path.write_bytes(damage(files[file], edits))
        return outcome(read)

    wholes = [read_damaged(file, []) for file in range(len(files))]
    assert wholes.count(None) == (2 if reader is npz else 0)

    def check(file, edits):
        found = read_damaged(file, edits)
        assert found is None or same(found, wholes[file])

    for_all(n, (st.integers(0, len(files) - 1), EDITS), check)


ARRAYS = st.one_of(
    st.builds(
        lambda shape, dtype, fill: np.full(shape, fill).astype(dtype),
        st.lists(st.sampled_from([0, 1, 2, 3, 28, 32]), max_size=4).filter(lambda shape: np.prod(shape) < 1e5),
        st.sampled_from(["u1", "i1", "i8", ">i4", "u8", "f4", "f8", "?", "c8", "S3", "U2", "M8[s]"]),
        st.sampled_from([0, 1, 9, 10, 255]),
    ),
    st.sampled_from([np.zeros((2, 28, 28), np.uint8), np.zeros((2, 28, 28, 1), np.uint8), np.arange(2)]),
)


@pytest.mark.parametrize("n", FEWER_CASES)
def test_npz_files_of_other_arrays(tmp_path, n):
    """Undamaged files whose arrays have any shape and type."""
    path = tmp_path / "other.npz"

    def check(arrays):
        with path.open("wb") as file:
            np.savez(file, **arrays)
        result = outcome(lambda: data.load(path))
        if result is not None:
            assert result.x_train.dtype == result.x_test.dtype == torch.uint8
            assert result.x_train.shape[1] == result.x_test.shape[1] == np.prod(result.shape) > 0
            assert result.shape[0] in (1, 3)
            assert min(len(result.x_train), len(result.x_test)) > 0
            if result.classes:
                y = torch.cat([result.y_train, result.y_test])
                assert (len(result.x_train), len(result.x_test)) == (len(result.y_train), len(result.y_test))
                assert y.min() >= -1  # in y_train: without a label
                assert result.y_test.min() >= 0
                assert y.max() == result.classes - 1
            else:
                assert result.y_train is None

    images, labels = (dict.fromkeys(names, ARRAYS) for names in (("x_train", "x_test"), ("y_train", "y_test")))
    for_all(n, (st.fixed_dictionaries(images, optional=labels),), check)


VALUES = st.one_of(
    st.sampled_from(["0", "1", "2", "10", "-1", "1e400", "nan", "-inf", "0x10", "1_0", "٣", "", " 7 ", "1,10", "1,,2"]),
    st.sampled_from(["auto", "cpu", "cuda", "glyphs", "mnist", "svhn", "x.npz", "\udcff.npz", "--z", "-h"]),
    st.integers(-(10**30), 10**30).map(str),
    st.floats().map(str),
    st.text(max_size=8),
    st.integers(1, 9).map(lambda n: str(n) * 5000),
)


@pytest.mark.parametrize("n", CASES)
def test_flags_of_any_kind(n):
    scripts = ["run_vae", "run_gmvae", "run_ssvae", "run_fsvae"]
    own = {name: runpy.run_path(str(ROOT / f"{name}.py"))["FLAGS"] for name in scripts}
    names = sorted({f"--{flag[0]}" for flags in [SHARED_FLAGS, *own.values()] for flag in flags})
    flags = st.one_of(
        st.tuples(st.sampled_from(names), VALUES).map(list),
        st.tuples(st.sampled_from(names), VALUES).map("=".join).map(lambda word: [word]),
        VALUES.map(lambda word: [word]),
    )

    def check(script, argv):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            try:
                found = parse_flags("", own[script], [word for flag in argv for word in flag])
            except SystemExit as stop:
                found = stop.code
            except InputError:
                return
        if found == 0:
            assert out.getvalue().startswith("usage: ")  # --help
            return
        assert found.z >= 1
        assert 0 < found.lr < float("inf")
        assert found.seed >= 0
        assert min(found.iw_eval) >= 1
        name = found.run_name("model", SimpleNamespace(name="data"), "mnist")
        assert re.fullmatch(r"[\w=.,+-]+", name, re.ASCII)
        json.dumps(found.values()).encode()

    for_all(n, (st.sampled_from(scripts), st.lists(flags, max_size=4)), check)


TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)


@pytest.mark.parametrize("n", FEWER_CASES)
def test_sound_training_states_of_other_contents(tmp_path, monkeypatch, n):
    """A file that PyTorch reads, in which one entry at some depth is something else."""
    path, _, read = training_state(tmp_path, monkeypatch)
    whole = torch.load(path, weights_only=True)
    names = ["step", "seconds", "weights", "optimizer", "random", "flags", "curves", "state", 0, "exp_avg", "cpu", "z"]

    def check(way, value):
        state = inner = copy.deepcopy(whole)
        for key in way[:-1]:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                return
        inner[way[-1]] = value
        torch.save(state, path)
        outcome(read)

    for_all(n, (st.lists(st.sampled_from(names), min_size=1, max_size=3), TREES), check)


@pytest.mark.parametrize("n", FEWER_CASES)
def test_results_of_other_contents(tmp_path, n):
    """A results.json that holds anything: what is kept of it is a dict of splits, which can be added to."""
    run = SimpleNamespace(logs=tmp_path)
    part = st.one_of(TREES, st.dictionaries(st.sampled_from(["subset", "test"]), TREES))
    kept = []

    def check(step, results):
        record = {"step": step, "results": results, "flags": {}, "experiment": {}, "evaluated": {}}
        (tmp_path / "results.json").write_text(json.dumps(record))
        for split in read_results(run, 1).get("results", {}).values():
            split["nelbo"] = 1
            kept.append(split)

    for_all(n, (st.one_of(st.just(1), TREES), part), check)
    assert kept


@pytest.mark.parametrize("n", FEWER_CASES)
def test_tables_of_other_contents(tmp_path, n):
    """A results.json with one entry replaced by any value: it is left out with a line, or makes a table
    beside that of an undamaged one."""
    sound = {
        "name": "model=vae_z=10_run=0000",
        "complete": True,
        "step": 1,
        "flags": {"run": 0, "seed": 0, "precision": "float32", "lr": 1e-3},
        "experiment": {"precision": "float32", "lr": 1e-3},
        "data": {"name": "mnist", "train": 3, "test": 2},
        "trained": {"seconds": 1.0, "device": "cpu", "torch": "2", "commit": "a", "date": "2026-01-01"},
        "results": {"subset": {"nelbo": {"mean": 1.0, "se": 1.0, "n": 2}}, "test": {"kl": {"mean": 1.0}}},
    }
    csv_text = runpy.run_path(str(ROOT / "report.py"))["csv_text"]
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    (folders[0] / "results.json").write_text(json.dumps(sound))
    ways = [(key,) for key in sound]
    ways += [(key, inner) for key in sound if isinstance(sound[key], dict) for inner in sound[key]]
    ways += [("results", "subset", "nelbo"), ("results", "subset", "nelbo", "mean")]

    def check(way, value, edits):
        record = json.loads(json.dumps(sound)) | {"flags": sound["flags"] | {"run": 1, "seed": 1}}
        inner = record
        for key in way[:-1]:
            inner = inner[key]
        inner[way[-1]] = value
        (folders[1] / "results.json").write_bytes(damage(json.dumps(record).encode(), edits))
        configurations, left_out = tables.read(folders)
        assert sum(len(of["runs"]) for of in configurations) + len(left_out) == 2
        json.dumps(configurations)
        assert tables.report(configurations, left_out)
        assert tables.table_by(tables.best_first(configurations, "subset nelbo"), "subset nelbo")
        assert csv_text(configurations)

    for_all(n, (st.sampled_from(ways), TREES, st.one_of(st.just([]), EDITS)), check)
