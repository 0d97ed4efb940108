"""codebase.load: trained models for a notebook."""

import pytest
import torch
from torch import nn

import codebase
from codebase.errors import InputError
from codebase.models.fsvae import FSVAE
from codebase.models.gmvae import GMVAE
from codebase.models.ssvae import SSVAE
from codebase.models.vae import VAE

MODELS = [
    VAE(),
    VAE(z_dim=3, x_dim=12, n_hidden=7),
    GMVAE(),
    GMVAE(z_dim=3, k=4, x_dim=12, n_hidden=7),
    SSVAE(),
    SSVAE(z_dim=3, classes=5, x_dim=12, n_hidden=7),
    FSVAE(),
    FSVAE(z_dim=3, classes=5, x_dim=12, n_hidden=7),
]


@pytest.mark.parametrize("model", MODELS)
def test_class_and_sizes_are_read_off_the_weights(model, tmp_path):
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


def test_a_runs_folder_gives_its_newest_weights(script, digits, tmp_path):
    """The README's three lines, after a run of the script, on any device that there is."""
    args = ["--dataset", digits, "--batch_size", 50, "--device", "cpu", "--z", 3]
    assert script("run_vae.py", *args, "--iter_max", 20, "--iter_save", 10)[0] == 0
    (folder,) = (tmp_path / "checkpoints").iterdir()
    model = codebase.load(str(folder))
    newest = torch.load(folder / "model-00020.pt")
    assert all(value.equal(newest[key]) for key, value in model.state_dict().items())
    images = codebase.data.load(digits)
    with torch.no_grad():
        picture = codebase.pictures.grid(model.sample_x(20), images.shape)
    assert picture.pixels.shape == (29 + 1, 20 * 29 + 1, 3)
    if torch.cuda.is_available():
        assert codebase.load(folder, device="cuda").sample_x(2).is_cuda


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
    with pytest.raises(InputError, match=r"absent.pt does not exist"):
        codebase.load(tmp_path / "absent.pt")
    with pytest.raises(InputError, match=r"holds no weights \(model-\*.pt\)"):
        codebase.load(tmp_path)
    torch.save({"dec.net.0.weight": 3}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other.pt"):
        codebase.load(tmp_path / "other.pt")
