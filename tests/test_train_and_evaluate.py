"""Each of the four run scripts from end to end, as a user calls it, on small data."""

import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from conftest import EVAL, NUMBER, STATES, contents, curves, pictures_shown, run_steps, same, saved, weights
from PIL import Image

from codebase import data
from codebase.models.fsvae import FSVAE
from codebase.models.ssvae import SSVAE
from codebase.models.vae import VAE

LATENT = ("interpolations", "manifold", "posterior")  # the pictures of a z of two dimensions


def test_train_then_evaluate(vae, folders):
    code, out, _ = vae("--z", 2)
    assert code == 0
    checkpoints, logs = folders()
    assert re.fullmatch(r"model=vae_z=2_data=digits-[0-9a-f]{8}_batch=50_run=0000", checkpoints.name)
    lines = out.splitlines()
    assert lines[0].startswith("device       cpu")
    assert "300 training and 120 test images" in lines[1]
    assert checkpoints.name in lines[2]
    assert len(re.findall(rf"^NELBO: {NUMBER}  KL: {NUMBER}  Rec: {NUMBER}$", out, re.M)) == 2
    assert "IWAE" not in out
    assert saved(checkpoints) == {"model-00020.pt", "model-00030.pt", *STATES}

    # The pictures: 10 x 20 tiles of 28 pixels, a line of one pixel around each.
    for name in ("samples", "reconstructions"):
        with Image.open(logs / f"{name}.png") as picture:
            assert picture.size == (20 * 29 + 1, 10 * 29 + 1)
    assert set(pictures_shown(logs)) == {"samples", "reconstructions", *LATENT}
    assert set(curves(logs)) == {"train/loss", "gen/elbo", "gen/kl_z", "gen/rec", *EVAL}

    record = json.loads((logs / "results.json").read_text())
    assert record["name"] == checkpoints.name
    assert record["step"] == 30
    assert (record["flags"]["z"], record["flags"]["seed"], record["flags"]["lr"]) == (2, 0, 1e-3)
    assert record["data"]["train"] == 300
    assert record["trained"]["torch"] == torch.__version__
    assert record["trained"]["steps"] == 30
    results = record["results"]
    assert results["subset"]["nelbo"]["n"] == 100
    assert results["test"]["nelbo"]["n"] == 120
    assert f"NELBO: {results['test']['nelbo']['mean']:.2f}" in out
    held_out = curves(logs)["eval/nelbo_test"]
    assert [step for step, _ in held_out] == [0, 30]
    assert held_out[-1][1] == pytest.approx(results["test"]["nelbo"]["mean"], rel=1e-2)  # of fewer draws

    before = contents(checkpoints)
    code, out, _ = vae("--z", 2, "--train", 0)
    assert code == 0
    assert "model-00030.pt" in out
    bounds = [float(x) for x in re.findall(r"^Negative IWAE-\d+: (-?\d+\.\d\d) ± \d+\.\d\d$", out, re.M)]
    assert len(bounds) == 4  # only on the subset
    assert sorted(bounds, reverse=True) == bounds
    assert contents(checkpoints) == before
    after = json.loads((logs / "results.json").read_text())
    assert after["results"]["test"] == results["test"]  # the same numbers again
    assert after["results"]["subset"].keys() == results["subset"].keys() | {
        "iwae_1",
        "iwae_10",
        "iwae_100",
        "iwae_1000",
        "ess",
    }
    assert after["trained"] == record["trained"]
    assert after["flags"] == record["flags"]

    # An earlier step's numbers and pictures are kept separate from the run's.
    before = contents(logs)
    assert vae("--z", 2, "--train", 0, "--iter_max", 20, "--iw_eval", 2)[0] == 0
    assert contents(logs).items() >= before.items()
    assert json.loads((logs / "step=00020" / "results.json").read_text())["step"] == 20
    assert (logs / "step=00020" / "samples.png").exists()
    assert vae("--z", 2, "--train", 0, "--iter_max", 20, "--iw_eval", 3)[0] == 0
    subset = json.loads((logs / "step=00020" / "results.json").read_text())["results"]["subset"]
    assert {"iwae_2", "iwae_3"} <= subset.keys()  # a second look adds to the first
    shutil.rmtree(checkpoints)
    assert vae("--z", 2)[0] == 0
    assert not (logs / "step=00020").exists()  # a new run does not keep an older run's numbers

    code, out, _ = vae("--z", 2, "--train", 0, "--full", 1, "--iw_eval", 20)
    assert out.count("Negative IWAE-20: ") == 2


def test_train_2_does_both(vae):
    code, out, _ = vae("--train", 2, "--iter_max", 3, "--iw_eval", 2)
    assert code == 0
    assert "trained 3 steps" in out
    assert "Negative IWAE-2: " in out


def test_iw_eval_chooses_the_bounds_and_says_how_far_to_trust_them(vae, folders):
    code, out, _ = vae("--z", 2, "--train", 2, "--iw_eval", "30,1,7,7")
    assert code == 0
    assert re.findall(r"Negative IWAE-(\d+)", out) == ["1", "7", "30"]
    assert re.search(r"^Relative effective sample size of 30 importance weights: \d+\.\d\d% ± \d+\.\d\d%$", out, re.M)
    assert re.search(r"^Active latent units: \d of 2$", out, re.M)
    subset = json.loads((folders()[1] / "results.json").read_text())["results"]["subset"]
    assert {"iwae_1", "iwae_7", "iwae_30"} <= subset.keys()
    assert subset["ess"]["samples"] == 30
    assert 1 / 30 <= subset["ess"]["mean"] <= 1


def test_a_file_of_the_homeworks_weights_is_evaluated(vae, tmp_path):
    """A bare state_dict of the homework's keys, in another order; its results are separate from those of all runs."""
    state = VAE(z_dim=10).state_dict()
    torch.save(dict(sorted(state.items())), tmp_path / "theirs_run=5 é.pt")
    code, out, _ = vae("--train", 0, "--checkpoint", "theirs_run=5 é.pt", "--iw_eval", 2)
    assert code == 0
    assert "Negative IWAE-2: " in out
    (logs,) = (tmp_path / "logs").iterdir()
    assert re.fullmatch(r"model=vae_z=10_data=digits-\w+_batch=50_checkpoint=theirs-run-5--[0-9a-f]{8}", logs.name)
    assert (logs / "samples.png").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_a_test_set_of_one_image(vae, digits, folders):
    with np.load(digits) as file:
        arrays = dict(file)
    np.savez(digits, **arrays | {"x_test": arrays["x_test"][:1], "y_test": arrays["y_test"][:1]})
    code, out, _ = vae("--train", 2, "--iw_eval", 2)
    assert code == 0
    assert "nan" not in out
    assert re.search(r"^NELBO: \d+\.\d\d  KL: ", out, re.M)  # without a standard error
    text = (folders()[1] / "results.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["results"]["test"]["nelbo"]["se"] is None


@pytest.mark.parametrize("iw", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_the_gmvae_trains_resumes_and_evaluates(on_digits, folders, iw):
    gmvae = partial(on_digits, "run_gmvae.py", "--z", 2, "--k", 7, "--iw", iw)
    assert gmvae()[0] == 0
    checkpoints, logs = folders()
    name = "model=gmvae_z=2_k=7" + ("_iw=05" if iw == 5 else "") + r"_data=digits-[0-9a-f]{8}_batch=50_run=0000"
    assert re.fullmatch(name, checkpoints.name)
    final = weights(checkpoints, 30)
    assert final["z_pre"].shape == (1, 14, 2)
    assert set(curves(logs)) == {"train/loss", "gen/elbo", "gen/kl_z", "gen/rec", *EVAL}
    assert (logs / "samples.png").exists()
    gmvae("--overwrite", 1, "--iter_max", 20)
    gmvae("--resume", 1)
    assert same(final, weights(checkpoints, 30))
    code, out, _ = gmvae("--train", 0, "--iw_eval", "1,10")
    assert code == 0
    assert len(re.findall(rf"^NELBO: {NUMBER}  KL: {NUMBER}  Rec: {NUMBER}$", out, re.M)) == 2
    assert len(re.findall(rf"^Negative IWAE-10?: {NUMBER}$", out, re.M)) == 2
    assert re.search(r"^Active latent units: \d of 2$", out, re.M)


def test_the_ssvae_trains_resumes_and_evaluates(on_digits, folders):
    ssvae = partial(on_digits, "run_ssvae.py", "--z", 2, "--labels", 50, "--iter_save", 4)
    code, out, _ = ssvae("--iter_max", 6)
    assert code == 0
    checkpoints, logs = folders()
    name = r"model=ssvae_gw=001_cw=100_z=2_labels=50_data=digits-[0-9a-f]{8}_batch=50_run=0000"
    assert re.fullmatch(name, checkpoints.name)
    terms = rf"^NELBO: {NUMBER}  KL_y: {NUMBER}  KL_z: {NUMBER}  Rec: {NUMBER}$"
    assert len(re.findall(terms, out, re.M)) == 2
    accuracy = re.search(r"^test accuracy, %: (\d+\.\d\d) ± (\d+\.\d\d)$", out, re.M)
    record = json.loads((logs / "results.json").read_text())
    test = record["results"]["test"]
    confusion = np.array(test["confusion"])
    assert confusion.sum(1).tolist() == [12] * 10
    p = confusion.trace() / 120
    assert test["accuracy_percent"] == {
        "mean": 100 * p,
        "se": pytest.approx(100 * (p * (1 - p) / 120) ** 0.5),
        "n": 120,
    }
    assert [float(x) for x in accuracy.groups()] == pytest.approx([100 * p, test["accuracy_percent"]["se"]], abs=0.006)

    # The curves: what is trained on at every logged step, the test accuracy at every checkpoint.
    shown = curves(logs)
    generative, classifier = {"gen/elbo", "gen/kl_z", "gen/kl_y", "gen/rec", *EVAL}, {"class/ce", "class/acc"}
    assert set(shown) == {"train/loss", "test/accuracy_percent"} | generative | classifier
    assert [step for step, _ in shown["test/accuracy_percent"]] == [0, 4, 6]
    assert shown["test/accuracy_percent"][-1][1] == pytest.approx(100 * p)
    assert set(pictures_shown(logs)) == {"samples", "mistakes", *LATENT}

    # The pictures: 10 x 20 and 10 x 10 tiles of 28 pixels; of a mistake a tile, of none black.
    with Image.open(logs / "samples.png") as picture:
        assert picture.size == (20 * 29 + 1, 10 * 29 + 1)
    with Image.open(logs / "mistakes.png") as picture:
        assert picture.size == (10 * 29 + 1, 10 * 29 + 1)
        pixels = np.asarray(picture.convert("L"))
    tiles = np.array(
        [[pixels[29 * i + 1 : 29 * i + 29, 29 * j + 1 : 29 * j + 29].max() for j in range(10)] for i in range(10)]
    )
    off_diagonal = confusion * (1 - np.eye(10, dtype=int))
    assert ((tiles > 0) == (off_diagonal > 0)).all()

    final = weights(checkpoints, 6)
    before = {tag: points[-1:] for tag, points in shown.items()}
    ssvae("--overwrite", 1, "--iter_max", 4)
    ssvae("--resume", 1, "--iter_max", 6)
    assert same(final, weights(checkpoints, 6))
    assert {tag: curves(logs)[tag][-1:] for tag in before} == before
    code, out, _ = ssvae("--train", 0, "--iw_eval", "1,10")
    assert code == 0
    assert len(re.findall(rf"^Negative IWAE-10?: {NUMBER}$", out, re.M)) == 2
    assert accuracy[0] in out


def test_the_labelled_images_are_chosen_by_the_seed(on_digits, digits, folders):
    """The classifier learns from those of seed 7, and not from those of another seed."""
    flags = ["--gw", 0, "--labels", 30, "--seed", 7, "--iter_max", 5]
    assert on_digits("run_ssvae.py", *flags)[0] == 0
    found = weights(folders()[0], 5)["cls.net.0.weight"]
    images = data.load(digits)
    away = {}
    for seed in (7, 0):
        chosen = data.labelled_subset(images, 30, seed)
        torch.manual_seed(7)
        model = SSVAE(gen_weight=0)
        y = data.one_hot(images.y_train[chosen], 10)
        run_steps(model, data.semi_supervised_batches(images.x_train, images.x_train[chosen], y, 50, 7), 5)
        away[seed] = (found - model.cls.net[0].weight).norm()
    assert away[7] < 0.01 * away[0]


def test_the_supervised_baseline(on_digits, folders):
    """--gw 0 trains only the classifier, and reports nothing about the generative model, which is untrained."""
    code, out, _ = on_digits("run_ssvae.py", "--gw", 0, "--iter_max", 100)
    assert code == 0
    assert "nats" not in out
    assert "NELBO" not in out
    assert float(re.search(r"accuracy, %: (\d+\.\d\d)", out)[1]) > 95
    checkpoints, logs = folders()
    assert checkpoints.name.startswith("model=ssvae_gw=000_cw=100_data=digits-")
    assert set(curves(logs)) == {"train/loss", "class/ce", "class/acc", "test/accuracy_percent"}
    assert not (logs / "samples.png").exists()
    torch.manual_seed(0)
    assert weights(checkpoints, 100)["dec.net.0.weight"].equal(SSVAE().dec.net[0].weight)
    assert set(json.loads((logs / "results.json").read_text())["results"]) == {"test"}


def test_a_file_of_the_homeworks_ssvae_is_evaluated(on_digits, tmp_path):
    """Its keys, with the constant y_prior that some editions saved: as the same weights without it."""
    torch.save(SSVAE().state_dict() | {"y_prior": torch.tensor([0.1])}, tmp_path / "theirs.pt")
    code, out, _ = on_digits("run_ssvae.py", "--train", 0, "--checkpoint", "theirs.pt", "--iw_eval", 2)
    assert code == 0
    assert "Negative IWAE-2: " in out
    (logs,) = (tmp_path / "logs").iterdir()
    model = SSVAE()
    model.load_state_dict({k: v for k, v in torch.load(tmp_path / "theirs.pt").items() if k != "y_prior"})
    with np.load(tmp_path / "digits.npz") as arrays:
        x, y = torch.tensor(arrays["x_test"]).flatten(1) / 255, torch.tensor(arrays["y_test"])
    percent = 100 * (model.cls(x).argmax(-1) == y).float().mean().item()
    assert json.loads((logs / "results.json").read_text())["results"]["test"]["accuracy_percent"]["mean"] == (
        pytest.approx(percent)
    )


def test_the_fsvae_trains_resumes_and_evaluates(fsvae, folders, tmp_path):
    fsvae = partial(fsvae, "--iter_save", 2)
    code, out, _ = fsvae("--iter_max", 6, "--keep", 2)
    assert code == 0
    checkpoints, logs = folders()
    assert re.fullmatch(r"model=fsvae_data=digits-[0-9a-f]{8}_batch=50_run=0000", checkpoints.name)
    assert saved(checkpoints) == {"model-00004.pt", "model-00006.pt", *STATES}
    bits = r"\d+\.\d{4} ± \d+\.\d{4}"
    assert len(re.findall(rf"^NELBO: {NUMBER}  KL: {NUMBER}  Rec: {NUMBER}$", out, re.M)) == 2
    assert len(re.findall(rf"^Bits per dimension: NELBO: {bits}  Rec: {bits}$", out, re.M)) == 2
    record = json.loads((logs / "results.json").read_text())["results"]
    test = record["test"]
    for term in ("nelbo", "rec"):  # the density is nearly constant on the interval of a value
        expected = (test[term]["mean"] / 3072 + np.log(255)) / np.log(2)
        assert test[f"{term}_bits"]["mean"] == pytest.approx(expected, abs=1e-3)
    assert "kl_bits" not in test
    assert set(curves(logs)) == {"train/loss", "gen/elbo", "gen/kl_z", "gen/rec", *EVAL}

    # The pictures: 10 x 20 tiles of 32 pixels; an image of each class, its reconstruction, its style in ten digits.
    shown = pictures_shown(logs)
    for name, columns in (("samples", 20), ("reconstructions", 12)):
        with Image.open(logs / f"{name}.png") as picture:
            assert picture.size == (columns * 33 + 1, 10 * 33 + 1)
        assert [step for step, _ in shown[name]] == [0, 2, 4, 6]
    with np.load(tmp_path / "digits.npz") as arrays, Image.open(logs / "reconstructions.png") as picture:
        x, y, pixels = arrays["x_test"], arrays["y_test"], np.asarray(picture)
    final = weights(checkpoints, 6)
    model = FSVAE()
    model.load_state_dict(final)
    tiles = pixels[:330, :396].reshape(10, 33, 12, 33, 3)[:, 1:, :, 1:].transpose(0, 2, 1, 3, 4)  # row, column, image
    every_y = torch.eye(10)
    for c in range(10):
        assert any((tiles[c, 0] == image).all() for image in x[y == c])
        image = torch.tensor(tiles[c, 0] / 255).float().permute(2, 0, 1).reshape(1, -1)
        with torch.no_grad():
            z = model.posterior(image, every_y[c : c + 1])[0]
            styles = model.mean_x(z, every_y[[c, *range(10)]])  # its reconstruction, then its style in every digit
        expected = 255 * styles.reshape(11, 3, 32, 32).permute(0, 2, 3, 1).numpy()
        assert np.abs(tiles[c, 1:] - expected).max() <= 1

    fsvae("--overwrite", 1, "--iter_max", 4)
    fsvae("--resume", 1, "--iter_max", 6)
    assert same(final, weights(checkpoints, 6))
    code, out, _ = fsvae("--train", 0, "--iw_eval", "1,10")
    assert code == 0
    assert len(re.findall(rf"^Negative IWAE-10?: {NUMBER} \({bits} bits per dimension\)$", out, re.M)) == 2


@pytest.mark.slow
def test_the_twenty_styles_are_the_same_throughout_training(fsvae, folders, monkeypatch):
    """With a learning rate of next to nothing the model stays as it is, and so does its picture."""
    fsvae("--lr", 1e-30, "--iter_max", 3, "--iter_save", 1)
    shown = pictures_shown(folders()[1])["samples"]
    assert [step for step, _ in shown] == [0, 1, 2, 3]
    assert len({picture for _, picture in shown}) == 1


def test_rows_are_digits_and_columns_are_styles(fsvae, tmp_path, monkeypatch):
    """A decoder whose first pixel is 0.5 + z_0 / 10, whose second is y / 10."""
    state = FSVAE().state_dict()
    decoder = [state[f"dec.net.{i}.{what}"].zero_() for i in (0, 2, 4) for what in ("weight", "bias")]
    first, bias, second, _, last, last_bias = decoder
    first[0, 0], bias[0], last_bias[0] = 0.1, 2, 0.5 - 2  # above 0, where the activation is the identity
    first[1, 10:] = torch.arange(10) / 10
    for layer in (second, last):
        layer[0, 0] = layer[1, 1] = 1
    torch.save(state, tmp_path / "drawing.pt")
    assert fsvae("--train", 0, "--checkpoint", "drawing.pt", "--iw_eval", 1)[0] == 0
    (logs,) = (tmp_path / "logs").iterdir()
    with Image.open(logs / "samples.png") as picture:
        pixels = np.asarray(picture)[..., 0].astype(int)
    styles, digits = (pixels[1::33, place::33][:10, :20] for place in (1, 2))
    assert (styles == styles[0]).all()
    assert len(set(styles[0])) > 10
    assert (abs(digits - 25.5 * np.arange(10)[:, None]) <= 1).all()


def test_a_file_of_the_homeworks_fsvae_is_evaluated(fsvae, tmp_path, monkeypatch):
    torch.save(FSVAE().state_dict() | {"x_v": torch.full((1,), 0.1)}, tmp_path / "theirs.pt")
    code, out, _ = fsvae("--train", 0, "--checkpoint", "theirs.pt", "--iw_eval", 2)
    assert code == 0
    assert "Negative IWAE-2: " in out


@pytest.mark.parametrize(
    "name", ["vae", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gmvae", "ssvae", "fsvae"))]
)
def test_validation(on_digits, fsvae, folders, name):
    """In the report, the curves and the name, beside the test set; trained without those images."""
    call = fsvae if name == "fsvae" else partial(on_digits, f"run_{name}.py")
    code, out, err = call("--z", 3, "--validation", 40, "--iter_max", 20)
    assert code == 0, err
    assert "260 training and 120 test images, 40 for validation" in out
    assert "the validation images (40 images)" in out
    _, logs = folders()
    assert "_validation=40_" in logs.name
    found = json.loads((logs / "results.json").read_text())
    assert found["data"]["validation"] == 40
    assert found["data"]["train"] == 260
    assert found["results"]["validation"]["nelbo"]["n"] == 40
    if name == "ssvae":
        assert "validation accuracy, %: " in out
        assert found["results"]["validation"]["accuracy_percent"]["n"] == 40
        assert "validation/accuracy_percent" in curves(logs)
    points = dict(curves(logs)["eval/nelbo_validation"])
    assert points[20] == pytest.approx(found["results"]["validation"]["nelbo"]["mean"], rel=2e-2)  # of fewer draws
