"""Each of the four run scripts from end to end, as a user calls it, on small data."""

import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from conftest import EVAL, NUMBER, STATES, contents, curves, pictures_shown, run_steps, saved, weights
from PIL import Image

from codebase import data
from codebase.models.fsvae import FSVAE
from codebase.models.ssvae import SSVAE
from codebase.pictures import EDGE

LATENT = ("interpolations", "manifold", "posterior")  # the pictures of a z of two dimensions


def tiles(path, size, rows, columns, left=0, top=0):
    """The images in a picture, (rows, columns, ...), before it is doubled.

    Each has size x size pixels with a line of one pixel around it. left, top: pixels for labels.
    """
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    assert (pixels == pixels[::2, ::2].repeat(2, 0).repeat(2, 1)).all()
    pixels = pixels[2 * top :: 2, 2 * left :: 2]
    assert pixels.shape == (rows * (size + 1) + 1, columns * (size + 1) + 1, 3)
    return pixels[1:, 1:].reshape(rows, size + 1, columns, size + 1, 3)[:, :-1, :, :-1].swapaxes(1, 2)


def test_train_then_evaluate(vae, folders):
    code, out, _ = vae("--z", 2)
    assert code == 0
    checkpoints, logs = folders()
    assert re.fullmatch(r"model=vae_z=2_data=digits-[0-9a-f]{8}_batch=50_run=0000", checkpoints.name)
    lines = out.splitlines()
    assert lines[0].startswith("device       cpu")
    assert "300 train, 120 test images" in lines[1]
    assert checkpoints.name in lines[2]
    assert len(re.findall(rf"^NELBO: {NUMBER}  KL: {NUMBER}  Rec: {NUMBER}$", out, re.M)) == 2
    assert "Negative IWAE" not in out
    assert saved(checkpoints) == {"model-00020.pt", "model-00030.pt", *STATES}
    assert len(tiles(logs / "samples.png", 28, rows=10, columns=20))
    with Image.open(logs / "reconstructions.png") as picture:
        assert picture.size == (2 * (10 * 57 + 1), 2 * (10 * 29 + 1))  # ten pairs in a row
    shown = pictures_shown(logs)
    assert next(iter(shown)) == "samples"  # TensorBoard opens the first ones
    assert set(shown) == {"samples", "reconstructions", *LATENT}
    assert {path.stem for path in logs.glob("*.png")} == {"curves", *shown}
    assert set(curves(logs)) == {"train/loss", "gen/elbo", "gen/kl_z", "gen/rec", *EVAL}

    record = json.loads((logs / "results.json").read_text())
    assert record["name"] == checkpoints.name
    assert record["step"] == record["trained"]["steps"] == 30
    assert (record["flags"]["z"], record["flags"]["seed"], record["data"]["train"]) == (2, 0, 300)
    assert record["trained"]["torch"] == torch.__version__
    results = record["results"]
    assert results["subset"]["nelbo"]["n"] == 100
    assert results["test"]["nelbo"]["n"] == 120
    assert f"NELBO: {results['test']['nelbo']['mean']:.2f}" in out
    assert lines[-2].startswith(f"pictures     {logs.relative_to(logs.parent.parent)}: curves.png, ")
    assert lines[-1] == "next         for the IWAE bounds: the same command with --train 0"
    held_out = curves(logs)["eval/nelbo_test"]
    assert [step for step, _ in held_out] == [0, 30]
    assert held_out[-1][1] == pytest.approx(results["test"]["nelbo"]["mean"], rel=1e-2)  # of fewer draws

    before = contents(checkpoints)
    code, out, _ = vae("--z", 2, "--train", 0, "--full", 1, "--iw_eval", "30,1,7,7")
    assert code == 0
    assert "model-00030.pt" in out
    bounds = re.findall(r"^Negative IWAE-(\d+): (-?\d+\.\d\d) ± \d+\.\d\d$", out, re.M)
    assert [m for m, _ in bounds] == ["1", "7", "30"] * 2  # of the subset and of the test set
    bounds = [float(value) for _, value in bounds]
    assert sorted(bounds[:3], reverse=True) == bounds[:3]
    ess = r"^Relative effective sample size of 30 importance weights, %: \d+\.\d\d ± \d+\.\d\d$"
    assert len(re.findall(ess, out, re.M)) == 2
    gap = r"^Estimated gap of IWAE-30 to -log p\(x\): (0\.\d\d\d) ± \d\.\d\d\d; more for \d+ images with fewer than 10"
    assert len(re.findall(gap, out, re.M)) == 2
    assert re.search(r"^Active latent units: \d of 2$", out, re.M)
    assert contents(checkpoints) == before
    after = json.loads((logs / "results.json").read_text())
    for split, numbers in results.items():
        found = after["results"][split]
        assert found.items() >= numbers.items()  # the same numbers again
        assert found.keys() == numbers.keys() | {"iwae_1", "iwae_7", "iwae_30", "iwae_gap", "ess"}
        assert found["ess"]["samples"] == 30
        assert 1 / 30 <= found["ess"]["mean"] <= 1
    assert after["trained"] == record["trained"]
    assert after["flags"] == record["flags"]


def test_an_earlier_step_has_its_own_numbers_and_pictures(trained, folders):
    checkpoints, logs = folders()
    before = contents(logs)
    for m in (2, 3):
        code, out, _ = trained("--train", 0, "--iter_max", 20, "--iw_eval", m)
        assert code == 0
        assert "model-00020.pt" in out
    assert contents(logs).items() >= before.items()
    record = json.loads((logs / "step=00020" / "results.json").read_text())
    assert record["step"] == 20
    assert {"iwae_2", "iwae_3"} <= record["results"]["subset"].keys()  # a second look adds to the first
    assert "iwae_2" not in record["results"]["test"]
    assert (logs / "step=00020" / "samples.png").exists()
    code, _, err = trained("--train", 0, "--iter_max", 25)
    assert code == 2
    assert re.search(r"checkpoints/model=vae\S* has no model-00025.pt: there are steps 20, 30", err)
    shutil.rmtree(checkpoints)
    code, out, _ = trained("--train", 2, "--iter_max", 3, "--iw_eval", 2)
    assert code == 0
    assert "trained 3 steps" in out
    assert out.count("Negative IWAE-2: ") == 1
    assert not (logs / "step=00020").exists()  # a new run does not keep an older run's numbers


def test_a_file_of_the_homeworks_weights_is_evaluated(on_digits, digits, tmp_path):
    """A bare state_dict of the homework's keys, in another order, with a constant that some editions saved.

    Its results are separate from those of all runs.
    """
    model = SSVAE()
    state = model.state_dict() | {"y_prior": torch.tensor([0.1])}
    torch.save(dict(sorted(state.items())), tmp_path / "theirs_run=5 é.pt")
    for m in (2, 3):
        code, out, _ = on_digits("run_ssvae.py", "--checkpoint", "theirs_run=5 é.pt", "--iw_eval", m)
        assert code == 0
        assert f"Negative IWAE-{m}: " in out
    (logs,) = (tmp_path / "logs").iterdir()
    name = r"model=ssvae_gw=001_cw=100_data=digits-\w+_batch=50_checkpoint=theirs-run-5--[0-9a-f]{8}"
    assert re.fullmatch(name, logs.name)
    assert (logs / "samples.png").exists()
    assert not (tmp_path / "checkpoints").exists()
    results = json.loads((logs / "results.json").read_text())["results"]
    assert {"iwae_2", "iwae_3"} <= results["subset"].keys()  # a second look adds to the first
    images = data.load(digits)
    percent = 100 * (model.cls(images.x_test / 255).argmax(-1) == images.y_test).float().mean().item()
    assert results["test"]["accuracy_percent"]["mean"] == pytest.approx(percent)


def test_a_test_set_of_one_image(vae, digits, folders):
    with np.load(digits) as file:
        arrays = dict(file)
    np.savez(digits, **arrays | {"x_test": arrays["x_test"][:1], "y_test": arrays["y_test"][:1]})
    code, out, _ = vae("--iter_max", 3, "--hidden", 20, "--train", 2, "--iw_eval", 2)
    assert code == 0
    assert "nan" not in out
    assert re.search(r"^NELBO: \d+\.\d\d  KL: ", out, re.M)  # without a standard error
    text = (folders()[1] / "results.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["results"]["test"]["nelbo"]["se"] is None


def test_the_gmvae_trains_and_evaluates(on_digits, folders):
    gmvae = partial(on_digits, "run_gmvae.py", "--z", 3, "--k", 7, "--iw", 5, "--hidden", 40)
    assert gmvae("--iter_max", 6)[0] == 0
    checkpoints, logs = folders()
    name = r"model=gmvae_z=3_k=7_iw=05_hidden=40_data=digits-[0-9a-f]{8}_batch=50_run=0000"
    assert re.fullmatch(name, checkpoints.name)
    assert weights(checkpoints, 6)["z_pre"].shape == (1, 14, 3)
    assert set(curves(logs)) == {"train/loss", "gen/elbo", "gen/kl_z", "gen/rec", *EVAL}
    assert (logs / "samples.png").exists()
    code, out, _ = gmvae("--train", 0, "--iw_eval", "1,10")
    assert code == 0
    assert len(re.findall(rf"^NELBO: {NUMBER}  KL: {NUMBER}  Rec: {NUMBER}$", out, re.M)) == 2
    assert len(re.findall(rf"^Negative IWAE-10?: {NUMBER}$", out, re.M)) == 2


def test_the_ssvae_trains_resumes_and_evaluates(on_digits, folders):
    ssvae = partial(on_digits, "run_ssvae.py", "--z", 2, "--hidden", 40, "--labels", 50)
    assert ssvae("--iter_max", 4)[0] == 0
    code, out, _ = ssvae("--iter_max", 6, "--resume", 1)
    assert code == 0
    checkpoints, logs = folders()
    name = r"model=ssvae_gw=001_cw=100_z=2_hidden=40_labels=50_data=digits-[0-9a-f]{8}_batch=50_run=0000"
    assert re.fullmatch(name, checkpoints.name)
    terms = rf"^NELBO: {NUMBER}  KL_y: {NUMBER}  KL_z: {NUMBER}  Rec: {NUMBER}$"
    assert len(re.findall(terms, out, re.M)) == 2
    accuracy = re.search(r"^test accuracy, %: (\d+\.\d\d) ± (\d+\.\d\d)$", out, re.M)
    record = json.loads((logs / "results.json").read_text())
    test = record["results"]["test"]
    confusion = np.array(test["confusion"])
    _, _, *table = out[out.index("Test images by true class (row) and predicted class (column)\n") :].splitlines()
    assert [[int(cell) for cell in row.split()[1:]] for row in table[:10]] == confusion.tolist()
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
    assert set(pictures_shown(logs)) == {"samples", "reconstructions", "mistakes", *LATENT}

    assert len(tiles(logs / "samples.png", 28, rows=10, columns=20, left=EDGE))
    assert len(tiles(logs / "reconstructions.png", 28, rows=10, columns=12, left=EDGE, top=EDGE))
    is_shown = tiles(logs / "mistakes.png", 28, rows=10, columns=10, left=EDGE, top=EDGE).max((2, 3, 4)) > 0
    assert (is_shown == (confusion * (1 - np.eye(10)) > 0)).all()

    code, out, _ = ssvae("--train", 0, "--iw_eval", "1,10")
    assert code == 0
    assert len(re.findall(rf"^Negative IWAE-10?: {NUMBER}$", out, re.M)) == 2
    assert accuracy[0] in out


def test_the_labelled_images_are_chosen_by_the_seed(on_digits, digits, folders):
    flags = ("--gw", 0, "--labels", 30, "--seed", 7, "--iter_max", 5)
    assert on_digits("run_ssvae.py", *flags)[0] == 0
    found, images, away = weights(folders()[0], 5)["cls.net.0.weight"], data.load(digits), {}
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


def test_the_fsvae_trains_and_evaluates(fsvae, folders, tmp_path):
    fsvae = partial(fsvae, "--iter_save", 2)
    code, out, _ = fsvae("--iter_max", 6)
    assert code == 0
    checkpoints, logs = folders()
    assert re.fullmatch(r"model=fsvae_data=digits-[0-9a-f]{8}_batch=50_run=0000", checkpoints.name)
    assert saved(checkpoints) == {"model-00002.pt", "model-00004.pt", "model-00006.pt", *STATES}
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

    model, y = FSVAE(), torch.eye(10)
    model.load_state_dict(weights(checkpoints, 6))
    samples = tiles(logs / "samples.png", 32, rows=10, columns=20, left=EDGE)
    images = tiles(logs / "reconstructions.png", 32, rows=10, columns=12, left=EDGE, top=EDGE)
    with np.load(tmp_path / "digits.npz") as arrays:
        for c in range(10):
            assert any((images[c, 0] == image).all() for image in arrays["x_test"][arrays["y_test"] == c])
    torch.manual_seed(0)  # the styles are the same at every checkpoint
    with torch.no_grad():
        drawn = model.mean_x(model.sample_z(20), y.unsqueeze(1))  # row: digit; column: style
        z = model.posterior(torch.tensor(images[:, 0] / 255).float().permute(0, 3, 1, 2).flatten(1), y)[0]
        changed = torch.stack([model.mean_x(z, y), *(model.mean_x(z, each.expand(10, 10)) for each in y)], dim=1)
    for found, expected in ((samples, drawn), (images[:, 1:], changed)):
        assert np.abs(found - 255 * expected.unflatten(-1, (3, 32, 32)).permute(0, 1, 3, 4, 2).numpy()).max() <= 1
    shown = pictures_shown(logs)
    assert [step for step, _ in shown["samples"]] == [0, 2, 4, 6]
    assert set(shown) == {"samples", "reconstructions", "interpolations", "traversal"}

    code, out, _ = fsvae("--train", 0, "--iw_eval", "1,10")
    assert code == 0
    assert len(re.findall(rf"^Negative IWAE-10?: {NUMBER} \({bits} bits per dimension\)$", out, re.M)) == 2


@pytest.mark.parametrize("name", ["run_ssvae.py", pytest.param("run_fsvae.py", marks=pytest.mark.slow)])
def test_validation(on_digits, folders, name):
    code, out, err = on_digits(name, "--z", 3, "--hidden", 40, "--validation", 40, "--iter_max", 2)
    assert code == 0, err
    assert "260 train, 120 test, 40 validation images" in out
    assert ", validation: 40 images" in out
    _, logs = folders()
    assert "_validation=40_" in logs.name
    found = json.loads((logs / "results.json").read_text())
    assert (found["data"]["train"], found["data"]["validation"]) == (260, 40)
    assert found["results"]["validation"]["nelbo"]["n"] == 40
    assert [step for step, _ in curves(logs)["eval/nelbo_validation"]] == [0, 2]
    if name == "run_ssvae.py":
        assert "validation accuracy, %: " in out
        assert found["results"]["validation"]["accuracy_percent"]["n"] == 40
        assert "validation/accuracy_percent" in curves(logs)
