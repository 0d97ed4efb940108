"""The names of runs: what changes the experiment joins the name, and what joins the name changes the experiment."""

import json
import re

import pytest
import torch
from conftest import run_steps, same, save_svhn, weights

from codebase import data
from codebase.models.fsvae import FSVAE


def test_what_changes_the_experiment_joins_the_name(vae, tmp_path):
    for args in ((), ("--iw", 5), ("--lr", 3e-4), ("--seed", 7), ("--z", 3), ("--run", 2)):
        assert vae("--iter_max", 2, *args)[0] == 0
    tensors = [weights(path, 2)["enc.net.0.weight"] for path in (tmp_path / "checkpoints").iterdir()]
    assert len({tuple(tensor[0, :50].tolist()) for tensor in tensors}) == 6  # and each flag does change it
    names = {
        re.sub(r"_data=digits-[0-9a-f]{8}|_batch=50", "", path.name) for path in (tmp_path / "checkpoints").iterdir()
    }
    assert names == {
        "model=vae_z=10_run=0000",
        "model=vae_z=10_iw=05_run=0000",
        "model=vae_z=10_lr=0.0003_run=0000",
        "model=vae_z=10_seed=7_run=0000",
        "model=vae_z=3_run=0000",
        "model=vae_z=10_run=0002",
    }


def test_learning_rate_schedules(vae, tmp_path):
    """They join the run's name and change its weights; that of the cosine depends on --iter_max, which must stay."""
    ended = {}
    names = {"constant": "batch=50", "2,1": "schedule=1,2", "cosine": "schedule=cosine"}
    for schedule, name in names.items():
        assert vae("--lr_schedule", schedule, "--iter_max", 3)[0] == 0
        (path,) = tmp_path.glob(f"checkpoints/*{name}_run=0000/model-00003.pt")
        ended[schedule] = weights(path.parent, 3)
    assert not same(ended["constant"], ended["2,1"])
    assert not same(ended["constant"], ended["cosine"])
    assert vae("--lr_schedule", "1,2", "--iter_max", 4, "--resume", 1)[0] == 0
    code, _, err = vae("--lr_schedule", "cosine", "--iter_max", 4, "--resume", 1)
    assert code == 2
    assert "--iter_max was 3 and is 4" in err
    # --train 0 has another --iter_max, and must not change what is recorded of the experiment.
    (path,) = tmp_path.glob("logs/*schedule=cosine*/results.json")
    experiment = json.loads(path.read_text())["experiment"]
    assert experiment["iter_max"] == 3
    assert vae("--lr_schedule", "cosine", "--train", 0, "--iw_eval", 2)[0] == 0
    assert json.loads(path.read_text())["experiment"] == experiment


@pytest.mark.parametrize(("gw", "cw", "name"), [("0.5", "1e3", "gw=0.5_cw=1000"), ("2.0", "0", "gw=002_cw=000")])
def test_weights_of_the_loss_are_any_numbers_from_0_on(on_digits, folders, gw, cw, name):
    assert on_digits("run_ssvae.py", "--gw", gw, "--cw", cw, "--iter_max", 2)[0] == 0
    assert folders()[0].name.startswith(f"model=ssvae_{name}_data=digits-")


@pytest.mark.parametrize(
    "model", ["vae", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gmvae", "ssvae", "fsvae"))]
)
def test_hidden_is_the_width_of_every_hidden_layer(on_digits, folders, monkeypatch, model):
    assert on_digits(f"run_{model}.py", "--hidden", 7, "--iter_max", 2)[0] == 0
    assert "_hidden=7_" in folders()[0].name
    state = weights(folders()[0], 2)
    assert {len(state[f"{net}.net.{layer}.bias"]) for net in ("enc", "dec") for layer in (0, 2)} == {7}
    assert model != "ssvae" or {len(state[f"cls.net.{layer}.bias"]) for layer in (0, 2)} == {7}


@pytest.mark.slow
def test_flags_of_the_fsvae_reach_its_model_its_checkpoints_and_its_name(fsvae, folders, tmp_path, monkeypatch):
    assert fsvae("--z", 2, "--iw", 5, "--iter_max", 5, "--iter_save", 1, "--batch_size", 20)[0] == 0
    folder, _ = folders()
    assert re.fullmatch(r"model=fsvae_z=2_data=digits-\w+_iw=05_batch=20_run=0000", folder.name)
    assert {path.name for path in folder.glob("model-*")} == {f"model-0000{step}.pt" for step in range(1, 6)}
    assert weights(folder, 5)["dec.net.0.weight"].shape == (500, 12)
    torch.manual_seed(0)
    model = FSVAE(z_dim=2, iw=5)
    images = data.load(tmp_path / "digits.npz")
    run_steps(model, data.labelled_batches(images.x_train, images.y_train, 10, 20, 0), 5)
    torch.testing.assert_close(weights(folder, 5), model.state_dict())


@pytest.mark.parametrize(("split", "name"), [("train", "fsvae_split=train"), ("extra", "fsvae")])
def test_the_fsvae_on_files_of_svhn(script, tmp_path, monkeypatch, split, name):
    """Each split is an experiment of its own; SVHN is not part of the name."""
    folder = save_svhn(tmp_path / "data", monkeypatch)
    args = ["--split", split, "--batch_size", 10, "--iter_max", 1, "--device", "cpu"]
    code, out, _ = script("run_fsvae.py", "--data_dir", folder, *args)
    assert code == 0
    assert f"SVHN, {split}, from " in out
    assert (tmp_path / "logs" / f"model={name}_batch=10_run=0000").is_dir()


def test_split_where_the_glyphs_stand_in(script, tmp_path, monkeypatch, colour_digits):
    """The docstring's --split train without network: glyphs, with a warning, and a name without the split."""
    monkeypatch.delenv("DATA_DIR", raising=False)
    save_svhn(tmp_path / "elsewhere", monkeypatch)
    glyphs = data.load(colour_digits)._replace(name="glyphs")
    monkeypatch.setattr(data, "draw_glyphs", lambda shape: glyphs)
    code, out, _ = script("run_fsvae.py", "--split", "train", "--iter_max", 1, "--device", "cpu")
    assert code == 0
    assert "USING THE BUILT-IN GLYPHS INSTEAD" in out
    assert (tmp_path / "logs" / "model=fsvae_data=glyphs_run=0000").is_dir()
