"""The names of runs: what changes the experiment joins the name, and what joins the name changes the experiment."""

import json
import re

import pytest
import torch
from conftest import run_steps, save_svhn, weights

from codebase import data
from codebase.models.fsvae import FSVAE


def test_what_changes_the_experiment_joins_the_name(vae, tmp_path):
    for args in ((), ("--iw", 5), ("--lr", 3e-4), ("--seed", 7), ("--z", 3), ("--run", 2)):
        assert vae("--iter_max", 2, "--hidden", 20, *args)[0] == 0
    folders = list((tmp_path / "checkpoints").iterdir())
    first, other = (
        weights(next(path for path in folders if path.name.endswith(end)), 2)["enc.net.0.weight"]
        for end in ("_batch=50_run=0000", "_batch=50_seed=7_run=0000")
    )
    assert (first - other).norm() > first.norm()  # the seed decides the initial weights, not only the batches
    assert len({tuple(weights(path, 2)["enc.net.0.weight"].flatten()[:50].tolist()) for path in folders}) == 6
    assert {re.sub(r"_hidden=20|_data=digits-[0-9a-f]{8}|_batch=50", "", path.name) for path in folders} == {
        "model=vae_z=10_run=0000",
        "model=vae_z=10_iw=05_run=0000",
        "model=vae_z=10_lr=0.0003_run=0000",
        "model=vae_z=10_seed=7_run=0000",
        "model=vae_z=3_run=0000",
        "model=vae_z=10_run=0002",
    }


def test_learning_rate_schedules(vae, tmp_path):
    """They join the run's name; that of the cosine depends on --iter_max, which must stay."""
    assert vae("--lr_schedule", "2,1", "--iter_max", 3)[0] == 0
    assert list(tmp_path.glob("checkpoints/*schedule=1,2_run=0000"))
    assert vae("--lr_schedule", "1,2", "--iter_max", 4, "--resume", 1)[0] == 0
    assert vae("--lr_schedule", "cosine", "--iter_max", 3)[0] == 0
    code, _, err = vae("--lr_schedule", "cosine", "--iter_max", 4, "--resume", 1)
    assert code == 2
    assert "--iter_max was 3 and is 4" in err
    # --train 0 has another --iter_max, and must not change what is recorded of the experiment.
    (path,) = tmp_path.glob("logs/*schedule=cosine*/results.json")
    experiment = json.loads(path.read_text())["experiment"]
    assert experiment["iter_max"] == 3
    assert vae("--lr_schedule", "cosine", "--train", 0, "--iw_eval", 2)[0] == 0
    assert json.loads(path.read_text())["experiment"] == experiment


def test_weights_of_the_loss_are_any_numbers_from_0_on(on_digits, folders):
    assert on_digits("run_ssvae.py", "--gw", "0.5", "--cw", "1e3", "--hidden", 9, "--iter_max", 2)[0] == 0
    assert folders()[0].name.startswith("model=ssvae_gw=0.5_cw=1000_hidden=9_data=digits-")


@pytest.mark.parametrize(
    "model", ["vae", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gmvae", "ssvae", "fsvae"))]
)
def test_hidden_is_the_width_of_every_hidden_layer(on_digits, folders, model):
    assert on_digits(f"run_{model}.py", "--hidden", 7, "--iter_max", 2)[0] == 0
    assert "_hidden=7_" in folders()[0].name
    state = weights(folders()[0], 2)
    nets = ("enc", "dec", "cls") if model == "ssvae" else ("enc", "dec")
    assert {len(state[f"{net}.net.{layer}.bias"]) for net in nets for layer in (0, 2)} == {7}


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


def test_the_fsvae_on_files_of_svhn(script, tmp_path, monkeypatch):
    """Each split is an experiment of its own; SVHN is not part of the name."""
    folder = save_svhn(tmp_path / "data", monkeypatch)
    args = ["--batch_size", 10, "--iter_max", 1, "--hidden", 20, "--device", "cpu"]
    for split, name in (("train", "split=train_"), ("extra", "")):
        code, out, _ = script("run_fsvae.py", "--data_dir", folder, "--split", split, *args)
        assert code == 0
        assert f"SVHN, {split}, from " in out
        assert (tmp_path / "logs" / f"model=fsvae_hidden=20_{name}batch=10_run=0000").is_dir()


def test_split_where_the_glyphs_stand_in(script, tmp_path, monkeypatch, colour_digits):
    """The docstring's --split train without network: glyphs, with a warning, and a name without the split."""
    monkeypatch.delenv("DATA_DIR", raising=False)
    save_svhn(tmp_path / "elsewhere", monkeypatch)
    glyphs = data.load(colour_digits)._replace(name="glyphs")
    monkeypatch.setattr(data, "draw_glyphs", lambda shape: glyphs)
    code, out, _ = script("run_fsvae.py", "--split", "train", "--iter_max", 1, "--hidden", 9, "--device", "cpu")
    assert code == 0
    assert "USING THE BUILT-IN GLYPHS INSTEAD" in out
    assert (tmp_path / "logs" / "model=fsvae_hidden=9_data=glyphs_run=0000").is_dir()
