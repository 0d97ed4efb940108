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
CURVES = {"train/loss": {1: 7.5, 2: 7.25}, "mi": {2: 0.5}}


def begin(folder, make=Adam):
    """A model and its optimiser after two updates, which are saved in the folder."""
    model = VAE(z_dim=2, n_hidden=8)
    optimizer = make(model.parameters())
    for step in (1, 2):
        update(model, optimizer)
        checkpoints.save(folder, Progress(step, 1.5 * step, CURVES), model, optimizer, FLAGS)
    return model, optimizer


@pytest.fixture
def begun(tmp_path):
    """A folder with training states of steps 1 and 2, the model and its optimiser after step 2."""
    return tmp_path, *begin(tmp_path)


def resume(folder, flags=FLAGS, z_dim=2, make=Adam):
    """Resume a fresh model there: its Progress, the model, its optimiser."""
    model = VAE(z_dim, n_hidden=8)
    optimizer = make(model.parameters())
    return checkpoints.resume(folder, model, optimizer, flags), model, optimizer


def update(model, optimizer):
    optimizer.zero_grad()
    model.loss(torch.zeros(3, 784))[0].backward()
    optimizer.step()


def equal(a, b):
    return same(dict(a.state_dict()), dict(b.state_dict()))


def test_names_and_a_bare_state_dict(begun):
    folder, model, _ = begun
    for step in (20_000, 123_456):
        checkpoints.weights_path(folder, step).touch()
    (folder / "model-7.pt").touch()
    assert checkpoints.steps(folder) == [1, 2, 20_000, 123_456]
    assert {path.name for path in folder.iterdir()} == {
        *("model-00001.pt", "model-00002.pt", "model-20000.pt", "model-123456.pt", "model-7.pt", "training.pt")
    }
    assert checkpoints.steps(folder / "absent") == []
    weights = torch.load(folder / "model-00001.pt", weights_only=True)
    assert type(weights) is OrderedDict
    assert list(weights) == list(model.state_dict())


def test_weights_come_back_without_constants_of_other_editions(begun):
    folder, model, _ = begun
    torch.save(model.state_dict() | {"y_prior": torch.ones(1, 10), "x_v": torch.ones(1)}, folder / "theirs.pt")
    for name in ("model-00002.pt", "theirs.pt"):
        other = VAE(z_dim=2, n_hidden=8)
        assert not equal(model, other)
        checkpoints.load_weights(other, folder / name)
        assert equal(model, other)


@pytest.mark.parametrize(
    "make", [Adam, torch.optim.AdamW, partial(torch.optim.SGD, lr=0.1, momentum=0.9), torch.optim.Rprop]
)
def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(make, tmp_path):
    """With any optimizer, also if its state is made in the first step. Its whole curves come back."""
    model, optimizer = begin(tmp_path, make)
    update(model, optimizer)
    expected = torch.rand(3)
    torch.manual_seed(99)
    progress, other, other_optimizer = resume(tmp_path, make=make)
    assert progress == Progress(2, 3.0, CURVES)
    update(other, other_optimizer)
    assert torch.rand(3).equal(expected)
    assert equal(model, other)
    assert same(optimizer.state_dict()["state"], other_optimizer.state_dict()["state"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"enc.net.0.bias": None}, "Missing key.*enc.net.0.bias"),
        ({"z_prior_m": None}, "Missing key.*z_prior_m"),
        ({"z_pre": torch.zeros(1)}, "Unexpected key.*z_pre"),
        ({"enc.net.0.bias": torch.full((8,), float("nan"))}, "enc.net.0.bias is not finite"),
        ({"dec.net.0.weight": torch.zeros(8, 10)}, r"mismatch for dec.net.0.weight: .*\[8, 10\].*\[8, 2\]"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, complaint):
    model = VAE(z_dim=2, n_hidden=8)
    weights = {key: value for key, value in (model.state_dict() | change).items() if value is not None}
    torch.save(weights, tmp_path / "bad.pt")
    with pytest.raises(InputError, match=f"bad.pt does not fit this VAE: .*{complaint}"):
        checkpoints.load_weights(model, tmp_path / "bad.pt")


def test_the_weights_of_another_model_or_size_name_the_script_or_the_flag(tmp_path):
    path, vae, k_3 = tmp_path / "w.pt", VAE(z_dim=2, n_hidden=8), GMVAE(z_dim=2, k=3, n_hidden=8)
    for weights, model, why in (
        (k_3, GMVAE(z_dim=2, k=4, n_hidden=8), "this GMVAE: its --k is 3, not 4."),
        (k_3, vae, r"this VAE: it is a GMVAE's \(run_gmvae.py\)."),
        (vae, VAE(z_dim=3, n_hidden=8), "this VAE: its --z is 2, not 3."),
        (vae, VAE(z_dim=2, n_hidden=8, x_dim=9), "this VAE: its x_dim is 784, not 9."),
    ):
        torch.save(weights.state_dict(), path)
        with pytest.raises(InputError, match=f"w.pt does not fit {why}$"):
            checkpoints.load_weights(model, path)


def test_what_is_no_checkpoint_is_named_and_never_executed(begun):
    """As weights, and as a training state."""
    folder, model, _ = begun
    whole = (folder / "training.pt").read_bytes()
    trap = io.BytesIO()
    torch.save({"enc": Trap(folder / "sprung")}, trap)
    damaged = [whole[: len(whole) // 2], whole[:-1], b"", b"hello", pickle.dumps(Trap(folder / "sprung"))]
    for content in (*damaged, trap.getvalue()):
        (folder / "training.pt").write_bytes(content)
        for read in (partial(checkpoints.load_weights, model, folder / "training.pt"), partial(resume, folder)):
            with pytest.raises(InputError, match=r"training.pt cannot be read") as error:
                read()
            assert "\n" not in str(error.value)
            assert ("would call posix.mkdir" in str(error.value)) == (content == trap.getvalue())
    assert not (folder / "sprung").exists()
    for content in ([1, 2], {"enc": 3}, torch.zeros(3)):
        torch.save(content, folder / "other.pt")
        with pytest.raises(InputError, match=r"other.pt does not fit this VAE"):
            checkpoints.load_weights(model, folder / "other.pt")
    (folder / "training.pt").unlink()
    (folder / "folder.pt").mkdir()
    for name in ("training.pt", "folder.pt"):
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            checkpoints.load_weights(model, folder / name)
    with pytest.raises(InputError, match=r"training.pt cannot be read: FileNotFoundError"):
        resume(folder)


IS_NONE = "training.pt is not a training state of this run: "


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda state: {"step": 2}, IS_NONE),
        (lambda state: [1, 2], IS_NONE),
        (lambda state: state.update(step="../../2"), IS_NONE),
        (lambda state: state.update(seconds=None), IS_NONE),
        (lambda state: state.update(flags=None), IS_NONE),
        (lambda state: state.update(curves=[1]), IS_NONE),
        (lambda state: state.update(random={}), IS_NONE),
        (lambda state: state.update(random={"cpu": torch.zeros(3, dtype=torch.uint8)}), IS_NONE),
        (lambda state: state.update(optimizer={}), IS_NONE),
        (lambda state: state.update(optimizer={"state": {}}), IS_NONE),
        (lambda state: state["optimizer"]["param_groups"].clear(), IS_NONE),
        (lambda state: state["optimizer"]["param_groups"][0].__delitem__("params"), IS_NONE),
        (
            lambda state: state["weights"].__delitem__("enc.net.0.bias"),
            "training.pt does not fit this VAE: .*Missing key.*enc.net.0.bias",
        ),
        (lambda state: state.update(weights=3), "training.pt does not fit this VAE"),
        (
            lambda state: state["flags"].update(lr=0.5),
            "training.pt belongs to a run that began with other flags: --lr was 0.5 ",
        ),
    ],
)
def test_a_training_state_that_is_none_or_that_of_another_run_is_refused(begun, edit, complaint):
    path = begun[0] / "training.pt"
    state = torch.load(path, weights_only=True)
    torch.save(edit(state) or state, path)
    with pytest.raises(InputError, match=complaint):
        resume(begun[0])


def test_other_flags_and_another_z_are_named(begun):
    folder, *_ = begun
    with pytest.raises(InputError, match=r"other flags: --z was 2 and is 3, --lr was 0.001 and is 0.01\. Resume"):
        resume(folder, {"z": 3, "lr": 0.01}, z_dim=3)
    with pytest.raises(InputError, match=r"training.pt does not fit this VAE"):
        resume(folder, z_dim=3)


def test_a_tensor_that_is_marked_as_a_folder_is_noticed(begun):
    """By one bit of the archive's directory, which no checksum covers: PyTorch would not read the tensor at all."""
    path = begun[0] / "model-00002.pt"
    whole = path.read_bytes()
    entries = [match.start() for match in re.finditer(rb"PK\x01\x02", whole)]
    assert len(entries) > 10
    for entry in entries:
        attributes = entry + 38  # of the external file attributes in an entry of the directory
        path.write_bytes(whole[:attributes] + bytes([whole[attributes] ^ 0x10]) + whole[attributes + 1 :])
        with pytest.raises(InputError, match=r"model-00002.pt cannot be read: .* is damaged"):
            checkpoints.read(path)


def test_a_bit_that_flips_anywhere_is_noticed_or_harmless(begun):
    """In a training state and in a checkpoint. PyTorch itself does not look at the checksums of its archives."""
    for name in ("training.pt", "model-00002.pt"):
        path = begun[0] / name
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
        assert noticed > 35, noticed
