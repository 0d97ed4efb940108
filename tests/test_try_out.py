"""The trial of a model before its training: every error in a model of one's own is known at the start."""

import pytest
import torch
from conftest import contents, curves, same, weights
from torch import nn

from codebase.errors import InputError
from codebase.models.vae import VAE
from codebase.runs import draw
from codebase.runs.try_out import check_loss

ONE = torch.ones(())


@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        (ONE, "it returned a tensor of shape ()"),
        ((ONE, ONE), "it returned (a tensor of shape (), a tensor of shape ())"),
        ((ONE, {}, {}), "it returned (a tensor of shape (), a dict, a dict)"),
        (None, "it returned a NoneType"),
        ((torch.ones(100), {}), "the loss is a tensor of shape (100,)"),
        ((1.0, {}), "the loss is a float"),
        ((ONE, {"a": ONE, "gen/x": torch.ones(3, 1)}), "gen/x is a tensor of shape (3, 1)"),
        ((ONE, {"gen/x": 2.0}), "gen/x is a float"),
    ],
)
def test_a_loss_that_is_none_ends_the_run_before_its_first_step(vae, folders, monkeypatch, result, complaint):
    monkeypatch.setattr(VAE, "loss", lambda model, x: result)
    code, _, err = vae()
    assert code == 2
    assert f"model.loss must return a pair, (scalar tensor, {{tag: scalar tensor}}); {complaint}." in err
    assert not list(folders()[0].glob("*.pt"))


def test_a_loss_as_it_should_be():
    loss = torch.ones((), requires_grad=True)
    assert check_loss((loss, {})) is None
    assert check_loss((loss, {"a": ONE.double()})) is None
    with pytest.raises(InputError, match="Is it detached"):
        check_loss((loss.detach(), {}))


@pytest.mark.parametrize("name", ["elbo_terms", "log_weights", "mean_z", "mean_x", "reconstruct"])
def test_an_error_in_a_method_that_is_used_later_comes_at_once(vae, folders, monkeypatch, name):
    """Also with --train 1, where the IWAE bounds are computed only in an evaluation."""
    losses = []

    def wrong(*args):
        raise ValueError("my mistake")

    loss = VAE.loss
    monkeypatch.setattr(VAE, "loss", lambda model, x: losses.append(x) or loss(model, x))
    monkeypatch.setattr(VAE, name, wrong)
    with pytest.raises(ValueError, match="my mistake"):
        vae("--z", 3)
    assert len(losses) <= 1  # no step of the training


def test_what_is_drawn_may_write_files(vae, folders, monkeypatch):
    """In the trial to a folder that is deleted, then to the run's."""
    places = []

    def own(run, model, splits, writer, step):
        places.append(run.logs)
        (run.logs / "own.txt").write_text(str(step))

    monkeypatch.setattr(draw, "draw_samples", own)
    assert vae("--z", 2, "--iter_max", 10)[0] == 0
    trial, training = places
    assert not trial.exists()
    assert training.absolute() == folders()[1]
    assert (training / "own.txt").read_text() == "10"


def test_weights_that_are_no_tensors_cannot_be_saved(vae, monkeypatch):
    monkeypatch.setattr(VAE, "get_extra_state", lambda model: {"a": 1}, raising=False)
    code, _, err = vae()
    assert code == 2
    assert "the model's state_dict must hold tensors only; _extra_state is a dict." in err


def test_the_trial_changes_nothing(vae, folders, monkeypatch):
    """Weights and curves are those of a training without it, also of a model with BatchNorm and a counter."""
    made, loss = VAE.__init__, VAE.loss

    def with_buffers(model, *args, **how):
        made(model, *args, **how)
        model.enc = nn.Sequential(nn.Linear(model.x_dim, 9), nn.BatchNorm1d(9), nn.Linear(9, 2 * model.z_dim))
        model.register_buffer("losses", torch.zeros(()))

    def counting(model, x):
        model.losses += 1
        return loss(model, x)

    monkeypatch.setattr(VAE, "__init__", with_buffers)
    monkeypatch.setattr(VAE, "loss", counting)
    found = []
    for _ in ("tried", "not tried"):
        assert vae("--overwrite", 1)[0] == 0
        checkpoints, logs = folders()
        found.append((weights(checkpoints, 30), curves(logs)))
        monkeypatch.setattr("codebase.runs.run.try_out", lambda *args: None)
    assert same(found[0][0], found[1][0])
    assert found[0][0]["losses"] == 30
    assert found[0][1] == found[1][1]


def test_a_trial_that_fails_leaves_no_file(vae, folders, monkeypatch):
    assert vae()[0] == 0
    _, logs = folders()
    before = contents(logs)
    monkeypatch.setattr(VAE, "loss", lambda model, x: None)
    assert vae("--overwrite", 1)[0] == 2
    assert contents(logs) == before


def test_a_loss_with_a_gradient_in_it(vae, monkeypatch):
    loss = VAE.loss

    def penalised(model, x):
        x = x.clone().requires_grad_()
        value, terms = loss(model, x)
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        return value + slope.square().sum(), terms

    monkeypatch.setattr(VAE, "loss", penalised)
    assert vae("--iter_max", 2)[0] == 0


def test_a_resumed_run_is_not_tried(vae, monkeypatch):
    """Its pictures would be of the untrained model."""
    assert vae("--iter_max", 20)[0] == 0
    monkeypatch.setattr("codebase.runs.run.try_out", None)
    assert vae("--iter_max", 30, "--resume", 1)[0] == 0
