"""Damaged input to every reader: it returns the original contents, or raises the project's own error."""

import contextlib
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
from codebase.train import Adam

CASES = [30, pytest.param(1000, marks=pytest.mark.slow)]

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


def idx_gz(folder, monkeypatch):
    """MNIST's format, with the checksum of the whole file."""
    content = b"\0\0\x08\x03" + b"\0\0\0\x02\0\0\0\x1c\0\0\0\x1c" + bytes(np.arange(2 * 784) % 256)
    monkeypatch.setitem(data.mnist.MNIST_FILES, "images", hashlib.sha256(content).hexdigest())
    return folder / "images.gz", [gzip.compress(content)], lambda: data.mnist.read_file(folder / "images")


def mat(folder, monkeypatch):
    """SVHN's format."""
    path = save_svhn(folder / "svhn", monkeypatch) / "test_32x32.mat"
    return path, [path.read_bytes()], lambda: data.svhn.read_file(path)


def small():
    """A small model and its optimizer."""
    model = VAE(z_dim=1, x_dim=4, n_hidden=3)
    return model, Adam(model.parameters(), 1e-3)


def checkpoint(folder, monkeypatch):
    path = folder / "weights.pt"
    torch.save(small()[0].state_dict(), path)

    def read():
        model, _ = small()
        checkpoints.load_weights(model, path)
        return dict(model.state_dict())

    return path, [path.read_bytes()], read


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
@pytest.mark.parametrize("reader", [npz, idx_gz, mat, checkpoint, training_state])
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


@pytest.mark.parametrize("n", CASES)
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
