"""Checkpoints: whole or absent, loaded only where they fit, nothing in them executed."""

import errno
import io
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Trap, same

from codebase import checkpoints
from codebase.errors import InputError
from codebase.models.gmvae import GMVAE
from codebase.models.vae import VAE
from codebase.train import Adam

FLAGS = {"z": 2, "lr": 1e-3}


@pytest.fixture
def saved(tmp_path):
    """A folder with weights said to be of steps 100, 20000 and 123456; model and optimiser after two updates."""
    model = VAE(z_dim=2)
    optimizer = Adam(model.parameters(), 1e-3)
    for _ in range(2):
        update(model, optimizer)
    for step in (20_000, 100, 123_456):
        checkpoints.save(tmp_path, step, model, optimizer, FLAGS, 0.0)
    return tmp_path, model, optimizer


@pytest.fixture
def begun(tmp_path):
    """A folder with training states of steps 1 and 2, the model and its optimiser after step 2."""
    model = VAE(z_dim=2)
    optimizer = Adam(model.parameters(), 1e-3)
    for step in (1, 2):
        update(model, optimizer)
        checkpoints.save(tmp_path, step, model, optimizer, FLAGS, 1.5 * step)
    return tmp_path, model, optimizer


def resume(folder, flags=FLAGS, z_dim=2):
    """Resume a fresh model there: (step, seconds), the model, its optimiser."""
    model = VAE(z_dim)
    optimizer = Adam(model.parameters(), flags["lr"])
    return checkpoints.resume(folder, model, optimizer, flags), model, optimizer


def update(model, optimizer):
    optimizer.zero_grad()
    model.loss(torch.zeros(3, 784))[0].backward()
    optimizer.step()


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
        "training-previous.pt",
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


def test_resume_restores_step_optimiser_and_random_numbers(begun):
    folder, model, optimizer = begun
    expected = torch.rand(3)
    torch.manual_seed(99)
    (step, seconds), other, other_optimizer = resume(folder)
    assert torch.rand(3).equal(expected)
    assert (step, seconds) == (2, 3.0)
    assert equal(model, other)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            assert optimizer.state[p][key].equal(other_optimizer.state[q][key])
    torch.testing.assert_close(other_optimizer.param_groups[0]["t"], torch.tensor(2.0, dtype=torch.float64))


@pytest.mark.parametrize("make", [torch.optim.AdamW, partial(torch.optim.SGD, lr=0.1, momentum=0.9), torch.optim.Rprop])
def test_the_state_of_any_optimizer_is_kept(make, tmp_path):
    """Saved after two steps, resumed in a new one, and both go on alike; also where the state is made in a step."""
    torch.manual_seed(0)
    model = VAE(z_dim=2)
    optimizer = make(model.parameters())
    for step in (1, 2):
        update(model, optimizer)
        checkpoints.save(tmp_path, step, model, optimizer, FLAGS, 0.0)
    other = VAE(z_dim=2)
    other_optimizer = make(other.parameters())
    assert checkpoints.resume(tmp_path, other, other_optimizer, FLAGS)[0] == 2
    for each in ((model, optimizer), (other, other_optimizer)):
        torch.manual_seed(3)
        update(*each)
    assert equal(model, other)


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
    bias = {"enc.net.0.bias": torch.zeros(300)}
    zeros = torch.zeros(300)
    strange = [zeros.long(), zeros.to_sparse(), zeros.cfloat(), zeros.to("meta"), zeros.to(torch.float8_e4m3fn)]
    for content in ([1, 2], {"enc": 3}, torch.zeros(3), *({**bias, "x": tensor} for tensor in strange)):
        torch.save(content, folder / "other.pt")
        with pytest.raises(InputError, match=r"other.pt holds no state_dict"):
            checkpoints.load_weights(model, folder / "other.pt")


def change(path, edit):
    """Read a training state, let edit(state) change it, write it again."""
    state = torch.load(path, weights_only=True)
    new = edit(state)
    torch.save(state if new is None else new, path)


def entry(state, key, value):
    state["optimizer"]["state"][3][key] = value


EDITS = [
    lambda state: {"step": 2},
    lambda state: [1, 2],
    lambda state: state.update(step=-1),
    lambda state: state.update(step="2"),
    lambda state: state.update(step="../../2"),
    lambda state: state.update(step=True),
    lambda state: state.update(seconds=float("nan")),
    lambda state: state.update(seconds=None),
    lambda state: state.update(flags=None),
    lambda state: state.update(random={}),
    lambda state: state.update(random={"cpu": torch.zeros(3, dtype=torch.uint8)}),
    lambda state: state.update(optimizer={}),
    lambda state: state.update(optimizer={"state": {}}),
    lambda state: state.update(optimizer={"state": {99: state["optimizer"]["state"][0]}}),
    lambda state: entry(state, "exp_avg", torch.zeros(2)),
    lambda state: entry(state, "exp_avg", None),
    lambda state: entry(state, "exp_avg", state["optimizer"]["state"][3]["exp_avg"].long()),
    lambda state: entry(state, "exp_avg_sq", state["optimizer"]["state"][3]["exp_avg_sq"] * torch.inf),
    lambda state: state["optimizer"]["state"].__delitem__(3),
    lambda state: state["optimizer"]["param_groups"].clear(),
    lambda state: state["optimizer"]["param_groups"][0].__delitem__("t"),
    lambda state: state["optimizer"]["param_groups"][0].update(t=7),
    lambda state: state["optimizer"]["param_groups"][0].update(t=torch.tensor([2.0, 3.0])),
    lambda state: state["optimizer"]["param_groups"][0].update(t=torch.tensor(torch.nan)),
    lambda state: entry(state, "more", torch.tensor(3.0)),
]


@pytest.mark.parametrize("edit", EDITS)
def test_a_training_state_that_is_none_is_refused_and_the_one_before_it_named(begun, edit):
    folder, *_ = begun
    change(folder / "training.pt", edit)
    with pytest.raises(InputError, match=r"training.pt is not the training state of this run \(") as error:
        resume(folder)
    hint = "training-previous.pt, of step 1, is whole: move training.pt away, and --resume 1 goes on from there."
    assert str(error.value).endswith(hint)
    (folder / "training.pt").unlink()  # as it says
    assert resume(folder)[0] == (1, 1.5)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (
            lambda state: state["weights"].__delitem__("enc.net.0.bias"),
            "training.pt does not fit a VAE .*enc.net.0.bias is miss",
        ),
        (lambda state: state.update(weights=3), "training.pt holds no state_dict"),
        (
            lambda state: state["flags"].update(lr=0.5),
            "training.pt is of a run that began with other flags: --lr was 0.5 ",
        ),
    ],
)
def test_a_training_state_of_other_weights_or_flags(begun, edit, complaint):
    folder, *_ = begun
    (folder / "training-previous.pt").unlink()
    change(folder / "training.pt", edit)
    with pytest.raises(InputError, match=complaint) as error:
        resume(folder)
    assert "is whole" not in str(error.value)


def test_other_flags_and_another_z_are_named(begun):
    folder, *_ = begun
    with pytest.raises(InputError, match=r"other flags: --z was 2 and is 3, --lr was 0.001 and is 0.01\.$"):
        resume(folder, {"z": 3, "lr": 0.01}, z_dim=3)
    with pytest.raises(InputError, match=r"training.pt does not fit a VAE"):
        resume(folder, z_dim=3)


def test_damaged_training_states(begun):
    folder, *_ = begun
    path, previous = folder / "training.pt", folder / "training-previous.pt"
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-1], pickle.dumps(Trap(folder / "sprung"))):
        path.write_bytes(content)
        with pytest.raises(
            InputError, match=r"training.pt is not a checkpoint .* of step 1, is whole: move training.pt away"
        ):
            resume(folder)
    previous.write_bytes(b"")
    with pytest.raises(
        InputError,
        match=r"training.pt is not a checkpoint that can be read safely \([^()]*\). The weights of step 2 are ",
    ):
        resume(folder)
    path.unlink()
    with pytest.raises(InputError, match=r"training-previous.pt is not a checkpoint"):
        resume(folder)
    assert checkpoints.newest_whole(folder, VAE(z_dim=2)) == 2
    (folder / "model-00002.pt").write_bytes(b"")
    assert checkpoints.newest_whole(folder, VAE(z_dim=2)) == 1
    assert checkpoints.newest_whole(folder, VAE(z_dim=3)) is None
    previous.unlink()
    with pytest.raises(InputError, match=r"holds weights, but no training.pt to go on from: --train 0"):
        resume(folder)
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.EIO, "Input/output error"), OSError, "Input/output error"),
        (PermissionError(errno.EACCES, "Permission denied"), OSError, "Permission denied"),
        (MemoryError(), InputError, "there is too little memory for it, or it is damaged"),
        (
            RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: ..."),
            InputError,
            "too little memory",
        ),
    ],
)
def test_an_error_of_the_machine_is_not_blamed_on_the_file(begun, monkeypatch, error, kind, words):
    folder, *_ = begun

    def load(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(kind, match=words):
        checkpoints.read(folder / "training.pt")


def test_a_bit_that_flips_anywhere_is_noticed_or_harmless(begun):
    """In a training state and in a checkpoint. PyTorch itself does not look at the checksums of its archives."""
    folder, *_ = begun
    for name in ("training.pt", "model-00002.pt"):
        path = folder / name
        whole = path.read_bytes()
        noticed = 0
        for place in range(1, len(whole), len(whole) // 40):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
            try:
                content = checkpoints.read(path)
            except InputError:
                noticed += 1
            else:
                assert same(content, torch.load(io.BytesIO(whole), weights_only=True))
        assert noticed > 35


def test_another_number_of_components_is_named(tmp_path):
    torch.save(GMVAE(z_dim=2, k=3).state_dict(), tmp_path / "three.pt")
    with pytest.raises(
        InputError, match=r"three.pt does not fit a GMVAE .* z_pre is \(1, 6, 2\) instead of \(1, 8, 2\); pi is"
    ):
        checkpoints.load_weights(GMVAE(z_dim=2, k=4), tmp_path / "three.pt")


def test_weights_beside_a_training_state_that_are_not_its_own(begun):
    folder, *_ = begun
    beside = folder / "model-00002.pt"
    torch.save(VAE(z_dim=2).state_dict(), beside)
    with pytest.raises(
        InputError, match=r"model-00002.pt does not hold the weights that training.pt beside it goes on f"
    ):
        resume(folder)
    beside.write_bytes(b"")
    with pytest.raises(
        InputError, match=r"model-00002.pt is not a checkpoint .* --resume 1 can do without it: move it aw"
    ):
        resume(folder)
    beside.unlink()
    assert resume(folder)[0] == (2, 3.0)


def test_a_folder_is_locked(tmp_path):
    """Refused while another holds it; free again afterwards."""
    folder = tmp_path / "run"
    refused = pytest.raises(InputError, match=r"run is in use: another process is training")
    for _ in range(2):
        with checkpoints.locked(folder), refused, checkpoints.locked(folder):
            pass


@pytest.mark.slow
def test_a_folder_is_locked_while_its_process_lives(tmp_path):
    """Refused in another process; free again when that has been killed."""
    folder = tmp_path / "run"
    hold = "import sys, time; from pathlib import Path; from codebase import checkpoints\n"
    hold += "with checkpoints.locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", hold, folder], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="in use"), checkpoints.locked(folder):
            pass
        process.kill()
    with checkpoints.locked(folder):
        pass


class Disk:
    """What a power cut may leave: a file's content is safe once it is synced, a name once its folder is."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.contents, self.names = folder, {}, None  # inode -> content; name -> inode
        self.syncing, self.renaming = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "replace", self.replace)
        self.fsync_names()

    def fsync_names(self):
        self.names = {path.name: path.stat().st_ino for path in self.folder.iterdir()}

    def fsync(self, fd):
        self.syncing(fd)
        inode = os.fstat(fd).st_ino
        if inode == self.folder.stat().st_ino:
            self.fsync_names()
        for path in self.folder.iterdir():
            if path.stat().st_ino == inode:
                self.contents[inode] = path.read_bytes()

    def replace(self, a, b):
        inode = Path(a).stat().st_ino
        assert self.contents.get(inode) == Path(a).read_bytes(), f"{b} may be empty after a power cut"
        self.renaming(a, b)

    def after_a_power_cut(self, path):
        return self.contents[self.names[path.name]]


def test_a_power_cut_leaves_a_whole_file_in_each_place(tmp_path, monkeypatch):
    """Once a file is written it stays; and what it takes the place of has the other name, if it is given one."""
    path, previous = tmp_path / "file", tmp_path / "previous"
    disk = Disk(tmp_path, monkeypatch)
    checkpoints.write_atomically(path, lambda file: file.write(b"old"))
    assert disk.after_a_power_cut(path) == b"old"
    checkpoints.write_atomically(path, lambda file: file.write(b"new"))
    assert disk.after_a_power_cut(path) == b"new"
    checkpoints.write_atomically(path, lambda file: file.write(b"newer"), previous)
    assert (disk.after_a_power_cut(path), disk.after_a_power_cut(previous)) == (b"newer", b"new")
    assert (path.read_bytes(), previous.read_bytes()) == (b"newer", b"new")


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


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def acquire(self, timeout):
        raise NotImplementedError("FileSystem does not appear to support flock; use SoftFileLock instead")

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with checkpoints.locked(tmp_path):
        assert "without locks: see to it that no other process" in capsys.readouterr().out
