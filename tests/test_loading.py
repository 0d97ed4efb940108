"""codebase.load: trained models for a notebook."""

import re
import runpy
import sys

import pytest
import torch
from conftest import ROOT
from torch import nn

import codebase
from codebase.errors import InputError
from codebase.models.fsvae import FSVAE
from codebase.models.gmvae import GMVAE
from codebase.models.ssvae import SSVAE
from codebase.models.vae import VAE

OWN = {VAE: {}, GMVAE: {"k": 4}, SSVAE: {"classes": 5}, FSVAE: {"classes": 5}}


@pytest.mark.parametrize("sizes", [{}, {"z_dim": 3, "x_dim": 12, "n_hidden": 7}])
@pytest.mark.parametrize("of_class", OWN)
def test_class_and_sizes_are_read_off_the_weights(of_class, sizes, tmp_path):
    model = of_class(**sizes, **(OWN[of_class] if sizes else {}))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    loaded = codebase.load(tmp_path / "weights.pt")
    assert type(loaded) is type(model)
    assert not loaded.training
    assert (loaded.z_dim, loaded.x_dim) == (model.z_dim, model.x_dim)
    assert getattr(loaded, "classes", None) == getattr(model, "classes", None)
    for key, value in loaded.state_dict().items():
        assert value.equal(model.state_dict()[key])
    y = [torch.eye(model.classes)[0]] if isinstance(model, FSVAE) else []
    with torch.no_grad():
        assert loaded.sample_x(20, *y).shape == (20, model.x_dim)


def test_a_runs_folder_gives_its_newest_weights(tmp_path):
    models = {step: VAE(z_dim=3, n_hidden=5) for step in (20, 100_000, 9)}
    for step, model in models.items():
        torch.save(model.state_dict(), tmp_path / f"model-{step:05d}.pt")
    model = codebase.load(str(tmp_path))
    assert all(value.equal(models[100_000].state_dict()[key]) for key, value in model.state_dict().items())
    if torch.cuda.is_available():
        assert codebase.load(tmp_path, device="cuda").sample_x(2).is_cuda


def test_the_lines_for_a_notebook(digits, tmp_path, monkeypatch):
    """The README's, without flags or folders, on small data: trained, evaluated image by image, drawn; no file."""
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"## In a notebook\n\n```python\n(.*?)```", readme, re.DOTALL)
    names = {}
    exec(lines.replace('"mnist", "data"', repr(str(digits))).replace("500)", "40)"), names)
    assert len(names["curves"]["train/loss"]) == 40
    assert names["curves"]["train/loss"][-1] < 0.8 * names["curves"]["train/loss"][0]
    nelbo, (x,) = names["nelbo"], names["splits"]["test"]
    assert nelbo.values.shape == (120,)
    assert (nelbo.mean, nelbo.se) == pytest.approx((nelbo.values.mean().item(), nelbo.values.std().item() / 120**0.5))
    image_by_image = names["model"].negative_elbo_bound(x)[0].item()
    assert nelbo.mean == pytest.approx(image_by_image, rel=0.01)
    assert names["picture"].shape == (2 * (10 * 29 + 1), 2 * (20 * 29 + 1), 3)
    assert {path.name for path in tmp_path.iterdir()} == {"digits.npz"}


def test_an_old_python_is_told_so(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit, match=r"Python 3.10 or newer is needed"):
        runpy.run_path(codebase.__file__)


def test_other_networks_need_the_model(tmp_path):
    def made():
        return VAE(z_dim=2, x_dim=12, enc=nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4)), dec=nn.Linear(2, 12))

    torch.manual_seed(1)
    model = made()
    model.loss(torch.rand(8, 12))  # moves the running statistics
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"weights.pt has other networks than the homework's: give the model, too"):
        codebase.load(tmp_path / "weights.pt")
    loaded = codebase.load(tmp_path / "weights.pt", made())
    assert loaded.enc[1].num_batches_tracked == 1
    assert all(value.equal(model.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"absent.pt cannot be read: FileNotFoundError"):
        codebase.load(tmp_path / "absent.pt")
    with pytest.raises(InputError, match=r"holds no weights \(model-\*.pt\)"):
        codebase.load(tmp_path)
    torch.save({"dec.net.0.weight": 3}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other.pt"):
        codebase.load(tmp_path / "other.pt")
