"""Checkpoints: whole or absent, loaded only where they fit, nothing in them executed."""

import os
import pickle
from collections import OrderedDict

import pytest
import torch

from codebase import InputError, checkpoints
from codebase.models.vae import VAE
from codebase.train import adam


@pytest.fixture
def saved(tmp_path):
    """A folder with steps 100 and 20000 of a model, the model and its optimiser after a step."""
    model = VAE(z_dim=2)
    optimizer = adam(model, 1e-3)
    model.loss(torch.zeros(3, 784))[0].backward()
    optimizer.step()
    for step in (20_000, 100, 123_456):
        checkpoints.save(tmp_path, step, model, optimizer, {"z": 2})
    return tmp_path, model, optimizer


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(a[key].equal(b[key]) for key in a)


def test_names_and_steps(saved):
    folder, *_ = saved
    assert checkpoints.steps(folder) == [100, 20_000, 123_456]
    assert {path.name for path in folder.iterdir()} == {
        "model-00100.pt",
        "model-20000.pt",
        "model-123456.pt",
        "training.pt",
    }
    assert checkpoints.steps(folder / "absent") == []


def test_weights_are_a_bare_state_dict(saved):
    folder, model, _ = saved
    weights = torch.load(folder / "model-00100.pt", weights_only=True)
    assert type(weights) is OrderedDict
    assert list(weights) == list(model.state_dict())


def test_weights_come_back(saved):
    folder, model, _ = saved
    other = VAE(z_dim=2)
    assert not equal(model, other)
    checkpoints.load_weights(other, folder / "model-20000.pt")
    assert equal(model, other)


def test_resume_restores_step_optimiser_and_random_numbers(saved):
    folder, model, optimizer = saved
    checkpoints.save(folder, 7, model, optimizer, {})
    expected = torch.rand(3)
    torch.manual_seed(99)
    other = VAE(z_dim=2)
    other_optimizer = adam(other, 1e-3)
    assert checkpoints.resume(folder, other, other_optimizer) == 7
    assert torch.rand(3).equal(expected)
    assert equal(model, other)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert optimizer.state[p][key].equal(other_optimizer.state[q][key])


def test_constants_of_other_editions_are_skipped(saved):
    folder, model, _ = saved
    weights = model.state_dict() | {"y_prior": torch.ones(1, 10), "x_v": torch.ones(1)}
    torch.save(weights, folder / "theirs.pt")
    other = VAE(z_dim=2)
    checkpoints.load_weights(other, folder / "theirs.pt")
    assert equal(model, other)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"enc.net.0.bias": None}, "enc.net.0.bias is missing"),
        ({"z_prior_m": None}, "z_prior_m is missing"),
        ({"z_pre": torch.zeros(1)}, "z_pre is unexpected"),
        ({"enc.net.0.bias": torch.full((300,), float("nan"))}, "enc.net.0.bias is not finite"),
        ({"dec.net.0.weight": torch.zeros(300, 10)}, r"dec.net.0.weight is \(300, 10\) instead of \(300, 2\)"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_change_nothing(saved, change, complaint):
    folder, model, _ = saved
    weights = {key: value for key, value in (model.state_dict() | change).items() if value is not None}
    torch.save(weights, folder / "bad.pt")
    other = VAE(z_dim=2)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(InputError, match=f"bad.pt does not fit a VAE .*{complaint}"):
        checkpoints.load_weights(other, folder / "bad.pt")
    assert all(before[key].equal(value) for key, value in other.state_dict().items())


class Trap:
    """Unpickled, it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_what_is_no_checkpoint_is_named_and_never_executed(saved):
    folder, model, _ = saved
    whole = (folder / "model-20000.pt").read_bytes()
    (folder / "short.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.pt").write_text("hello")
    (folder / "trap.pt").write_bytes(pickle.dumps({"enc": Trap(folder / "sprung")}))
    torch.save({"enc": Trap(folder / "sprung")}, folder / "trap2.pt")
    (folder / "folder.pt").mkdir()
    for name in ("short", "empty", "text", "trap", "trap2", "folder"):
        with pytest.raises(InputError, match=f"{name}.pt is not a checkpoint that can be read safely") as error:
            checkpoints.load_weights(model, folder / f"{name}.pt")
        assert "\n" not in str(error.value)
    assert not (folder / "sprung").exists()
    with pytest.raises(InputError, match=r"absent.pt does not exist"):
        checkpoints.load_weights(model, folder / "absent.pt")
    for content in ([1, 2], {"enc": 3}, torch.zeros(3)):
        torch.save(content, folder / "other.pt")
        with pytest.raises(InputError, match=r"other.pt holds no state_dict"):
            checkpoints.load_weights(model, folder / "other.pt")


@pytest.mark.parametrize("state", [{}, [], {"step": 100}, {"step": 100, "optimizer": {}, "random": {}}, {"step": "a"}])
def test_a_training_state_that_is_none(saved, state):
    folder, model, optimizer = saved
    torch.save(state, folder / "training.pt")
    with pytest.raises(InputError, match=r"training.pt is not the training state of this run"):
        checkpoints.resume(folder, model, optimizer)


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    checkpoints.write_atomically(tmp_path / "file", lambda file: file.write(b"new"))
    assert order == ["fsync", "replace"]


def test_a_file_is_whole_or_the_old_one(tmp_path):
    """A write that fails halfway leaves the old content and nothing beside it."""
    path = tmp_path / "file"
    checkpoints.write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the new")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        checkpoints.write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_prune_keeps_what_was_just_saved_and_all_that_is_later(tmp_path):
    """An orphan of a later step, whose training state was never written, must not count as the last one."""
    for step in (5, 10, 15, 20, 23, 40):
        checkpoints.weights_path(tmp_path, step).touch()
    checkpoints.prune(tmp_path, 27, keep=2, iter_save=5)
    assert checkpoints.steps(tmp_path) == [15, 20, 40]
    checkpoints.weights_path(tmp_path, 27).touch()
    checkpoints.prune(tmp_path, 27, keep=1, iter_save=5)
    assert checkpoints.steps(tmp_path) == [20, 27, 40]
