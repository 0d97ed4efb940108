"""Checkpoints: complete or absent, loaded only if they fit, nothing in them executed."""

import io
import pickle
import re
from collections import OrderedDict
from functools import partial

import pytest
import torch
from conftest import Trap, same

from codebase.errors import InputError
from codebase.models.gmvae import GMVAE
from codebase.models.vae import VAE
from codebase.runs import checkpoints
from codebase.runs.checkpoints import Progress
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
        checkpoints.save(tmp_path, Progress(step), model, optimizer, FLAGS)
    return tmp_path, model, optimizer


@pytest.fixture
def begun(tmp_path):
    """A folder with training states of steps 1 and 2, the model and its optimiser after step 2."""
    model = VAE(z_dim=2)
    optimizer = Adam(model.parameters(), 1e-3)
    for step in (1, 2):
        update(model, optimizer)
        checkpoints.save(tmp_path, Progress(step, 1.5 * step, {"train/loss": 7.5}), model, optimizer, FLAGS)
    return tmp_path, model, optimizer


def resume(folder, flags=FLAGS, z_dim=2):
    """Resume a fresh model there: its Progress, the model, its optimiser."""
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
    progress, other, other_optimizer = resume(folder)
    assert torch.rand(3).equal(expected)
    assert progress == Progress(2, 3.0, {"train/loss": 7.5})
    assert equal(model, other)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            assert optimizer.state[p][key].equal(other_optimizer.state[q][key])
    torch.testing.assert_close(other_optimizer.param_groups[0]["t"], torch.tensor(2.0, dtype=torch.float64))


@pytest.mark.parametrize("make", [torch.optim.AdamW, partial(torch.optim.SGD, lr=0.1, momentum=0.9), torch.optim.Rprop])
def test_the_state_of_any_optimizer_is_kept(make, tmp_path):
    """Saved after two steps and loaded by a new one; both continue in the same way. Also if a step makes the state."""
    torch.manual_seed(0)
    model = VAE(z_dim=2)
    optimizer = make(model.parameters())
    for step in (1, 2):
        update(model, optimizer)
        checkpoints.save(tmp_path, Progress(step), model, optimizer, FLAGS)
    other = VAE(z_dim=2)
    other_optimizer = make(other.parameters())
    assert checkpoints.resume(tmp_path, other, other_optimizer, FLAGS).step == 2
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
    with pytest.raises(InputError, match=f"bad.pt does not fit this VAE: .*{complaint}"):
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
        with pytest.raises(InputError, match=f"{name}.pt cannot be read") as error:
            checkpoints.load_weights(model, folder / f"{name}.pt")
        assert "\n" not in str(error.value)
        assert ("would call posix.mkdir" in str(error.value)) == (name == "trap2")
    assert not (folder / "sprung").exists()
    with pytest.raises(InputError, match=r"absent.pt does not exist"):
        checkpoints.load_weights(model, folder / "absent.pt")
    for content in ([1, 2], {"enc": 3}, torch.zeros(3)):
        torch.save(content, folder / "other.pt")
        with pytest.raises(InputError, match=r"other.pt holds no state_dict"):
            checkpoints.load_weights(model, folder / "other.pt")


def change(path, edit):
    """Read a training state, let edit(state) change it, write it again."""
    state = torch.load(path, weights_only=True)
    new = edit(state)
    torch.save(state if new is None else new, path)


EDITS = [
    lambda state: {"step": 2},
    lambda state: [1, 2],
    lambda state: state.update(step="../../2"),
    lambda state: state.update(seconds=None),
    lambda state: state.update(flags=None),
    lambda state: state.update(random={}),
    lambda state: state.update(random={"cpu": torch.zeros(3, dtype=torch.uint8)}),
    lambda state: state.update(optimizer={}),
    lambda state: state.update(optimizer={"state": {}}),
    lambda state: state["optimizer"]["param_groups"].clear(),
    lambda state: state["optimizer"]["param_groups"][0].__delitem__("params"),
]


@pytest.mark.parametrize("edit", EDITS)
def test_a_training_state_that_is_none_is_refused(begun, edit):
    folder, *_ = begun
    change(folder / "training.pt", edit)
    with pytest.raises(InputError, match=r"training.pt is not a training state of this run: "):
        resume(folder)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (
            lambda state: state["weights"].__delitem__("enc.net.0.bias"),
            "training.pt does not fit this VAE: .*enc.net.0.bias is miss",
        ),
        (lambda state: state.update(weights=3), "training.pt holds no state_dict"),
        (
            lambda state: state["flags"].update(lr=0.5),
            "training.pt belongs to a run that began with other flags: --lr was 0.5 ",
        ),
    ],
)
def test_a_training_state_of_other_weights_or_flags(begun, edit, complaint):
    folder, *_ = begun
    change(folder / "training.pt", edit)
    with pytest.raises(InputError, match=complaint):
        resume(folder)


def test_other_flags_and_another_z_are_named(begun):
    folder, *_ = begun
    with pytest.raises(InputError, match=r"other flags: --z was 2 and is 3, --lr was 0.001 and is 0.01\. Resume"):
        resume(folder, {"z": 3, "lr": 0.01}, z_dim=3)
    with pytest.raises(InputError, match=r"training.pt does not fit this VAE"):
        resume(folder, z_dim=3)


def test_damaged_training_states(begun):
    folder, *_ = begun
    path = folder / "training.pt"
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-1], pickle.dumps(Trap(folder / "sprung"))):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"training.pt cannot be read"):
            resume(folder)
    assert not (folder / "sprung").exists()
    path.unlink()
    with pytest.raises(InputError, match=r"training.pt does not exist"):
        resume(folder)


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


def test_a_tensor_that_is_marked_as_a_folder_is_noticed(begun):
    """By one bit of the archive's directory, which no checksum covers: PyTorch would not read the tensor at all."""
    folder, *_ = begun
    path = folder / "model-00002.pt"
    whole = path.read_bytes()
    entries = [match.start() for match in re.finditer(rb"PK\x01\x02", whole)]
    assert len(entries) > 10
    for entry in entries:
        attributes = entry + 38  # of the external file attributes in an entry of the directory
        path.write_bytes(whole[:attributes] + bytes([whole[attributes] ^ 0x10]) + whole[attributes + 1 :])
        with pytest.raises(InputError, match=r"model-00002.pt cannot be read: .* is marked as a folder"):
            checkpoints.read(path)


def test_another_number_of_components_is_named(tmp_path):
    torch.save(GMVAE(z_dim=2, k=3).state_dict(), tmp_path / "three.pt")
    with pytest.raises(
        InputError, match=r"three.pt does not fit this GMVAE: z_pre is \(1, 6, 2\) instead of \(1, 8, 2\); pi is"
    ):
        checkpoints.load_weights(GMVAE(z_dim=2, k=4), tmp_path / "three.pt")


def test_prune_keeps_what_was_just_saved_and_all_that_is_later(tmp_path):
    """An orphan of a later step, whose training state was never written, must not count as the last one."""
    for step in (5, 10, 15, 20, 23, 40):
        checkpoints.weights_path(tmp_path, step).touch()
    checkpoints.prune(tmp_path, 27, keep=2, iter_save=5)
    assert checkpoints.steps(tmp_path) == [15, 20, 40]
    checkpoints.weights_path(tmp_path, 27).touch()
    checkpoints.prune(tmp_path, 27, keep=1, iter_save=5)
    assert checkpoints.steps(tmp_path) == [20, 27, 40]
