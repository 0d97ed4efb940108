"""The run scripts as a user calls them, on small data."""

import json
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, contents, printed_by, same, save_svhn, saved
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from codebase import content, data, pictures
from codebase.experiment import asked_to_stop, draw_styles
from codebase.models.fsvae import FSVAE
from codebase.models.ssvae import SSVAE
from codebase.models.vae import VAE
from codebase.train import Adam, train

NUMBER = r"-?\d+\.\d\d ± \d+\.\d\d"


@pytest.fixture
def on_digits(script, digits):
    """on_digits('run_vae.py', '--z', 2, ...): small digits, 30 steps, a checkpoint every 20, unless told otherwise."""

    def call(name, *args):
        usual = {"--dataset": digits, "--iter_max": 30, "--iter_save": 20, "--batch_size": 50, "--device": "cpu"}
        if "--train" in args and args[args.index("--train") + 1] == 0:
            del usual["--iter_max"]  # where it would name a checkpoint
        for flag in args:
            usual.pop(flag, None)
        return script(name, *(x for pair in usual.items() for x in pair), *args)

    return call


@pytest.fixture
def vae(on_digits):
    return partial(on_digits, "run_vae.py")


@pytest.fixture
def folders(tmp_path):
    """The one run there is: its folders of checkpoints and of logs."""

    def find():
        (checkpoints,) = (tmp_path / "checkpoints").iterdir()
        return checkpoints, tmp_path / "logs" / checkpoints.name

    return find


STATES = {"training.pt", "training-previous.pt"}
EVAL = {"eval/nelbo_test", "eval/nelbo_train"}  # the curves of every checkpoint


def weights(folder, step):
    return torch.load(folder / f"model-{step:05d}.pt", weights_only=True)


def curves(logs):
    """What TensorBoard shows: {tag: [(step, value), ...]}."""
    events = EventAccumulator(str(logs))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


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
    events = EventAccumulator(str(logs))
    events.Reload()
    assert set(events.Tags()["images"]) == {"samples", "reconstructions"}
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
    assert [step for step, _ in held_out] == [20, 30]
    assert held_out[-1][1] == pytest.approx(results["subset"]["nelbo"]["mean"], rel=1e-6)

    before = contents(checkpoints)
    code, out, _ = vae("--z", 2, "--train", 0)
    assert code == 0
    assert "model-00030.pt" in out
    bounds = [float(x) for x in re.findall(r"^Negative IWAE-\d+: (-?\d+\.\d\d) ± \d+\.\d\d$", out, re.M)]
    assert len(bounds) == 4  # on the subset alone
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

    # An earlier step's numbers and pictures stay apart from the run's.
    before = contents(logs)
    assert vae("--z", 2, "--train", 0, "--iter_max", 20)[0] == 0
    assert contents(logs).items() >= before.items()
    assert json.loads((logs / "step=00020" / "results.json").read_text())["step"] == 20
    assert (logs / "step=00020" / "samples.png").exists()
    assert vae("--z", 2, "--train", 0, "--iter_max", 20, "--iw_eval", 3)[0] == 0
    subset = json.loads((logs / "step=00020" / "results.json").read_text())["results"]["subset"]
    assert {"iwae_3", "iwae_1000"} <= subset.keys()  # a second look adds to the first

    code, out, _ = vae("--z", 2, "--train", 0, "--full", 1)
    assert out.count("Negative IWAE-1000: ") == 2


@pytest.mark.parametrize("iw", [1, 5])
def test_the_gmvae_trains_resumes_and_evaluates(on_digits, folders, iw):
    gmvae = partial(on_digits, "run_gmvae.py", "--z", 2, "--k", 7, "--iw", iw)
    assert gmvae()[0] == 0
    checkpoints, logs = folders()
    name = r"model=gmvae_z=2_k=7_data=digits-[0-9a-f]{8}" + ("_iw=05" if iw == 5 else "") + "_batch=50_run=0000"
    assert re.fullmatch(name, checkpoints.name)
    final = weights(checkpoints, 30)
    assert final["z_pre"].shape == (1, 14, 2)
    assert set(curves(logs)) == {"train/loss", "gen/elbo", "gen/kl_z", "gen/rec", *EVAL}
    assert (logs / "samples.png").exists()
    gmvae("--overwrite", 1, "--iter_max", 20)
    gmvae("--resume", 1)
    assert same(final, weights(checkpoints, 30))
    code, out, _ = gmvae("--train", 0)
    assert code == 0
    assert len(re.findall(rf"^NELBO: {NUMBER}  KL: {NUMBER}  Rec: {NUMBER}$", out, re.M)) == 2
    assert len(re.findall(rf"^Negative IWAE-10*: {NUMBER}$", out, re.M)) == 4
    assert re.search(r"^Active latent units: \d of 2$", out, re.M)


def test_the_ssvae_trains_resumes_and_evaluates(on_digits, folders):
    ssvae = partial(on_digits, "run_ssvae.py", "--z", 2, "--labels", 50)
    code, out, _ = ssvae()
    assert code == 0
    checkpoints, logs = folders()
    name = r"model=ssvae_gw=001_cw=100_z=2_labels=50_data=digits-[0-9a-f]{8}_batch=50_run=0000"
    assert re.fullmatch(name, checkpoints.name)
    terms = rf"^NELBO: {NUMBER}  KL_z: {NUMBER}  KL_y: {NUMBER}  Rec: {NUMBER}$"
    assert len(re.findall(terms, out, re.M)) == 2
    accuracy = re.fullmatch(r"Test set classification accuracy: (\d+\.\d\d) ± (\d+\.\d\d) %", out.splitlines()[-1])
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
    assert len(record["results"]["subset"]["latent_units"]["kl"]) == 2

    # The curves: what is trained on at every logged step, the test accuracy at every checkpoint.
    shown = curves(logs)
    generative, classifier = {"gen/elbo", "gen/kl_z", "gen/kl_y", "gen/rec", *EVAL}, {"class/ce", "class/acc"}
    assert set(shown) == {"train/loss", "test/acc"} | generative | classifier
    assert [step for step, _ in shown["test/acc"]] == [20, 30]
    assert shown["test/acc"][-1][1] == pytest.approx(p)
    events = EventAccumulator(str(logs))
    events.Reload()
    assert set(events.Tags()["images"]) == {"samples", "mistakes"}
    assert "test/confusion/text_summary" in events.Tags()["tensors"]

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

    final = weights(checkpoints, 30)
    before = {tag: points[-1:] for tag, points in shown.items()}
    ssvae("--overwrite", 1, "--iter_max", 20)
    ssvae("--resume", 1)
    assert same(final, weights(checkpoints, 30))
    assert {tag: curves(logs)[tag][-1:] for tag in before} == before
    code, out, _ = ssvae("--train", 0, "--iw_eval", "1,10")
    assert code == 0
    assert len(re.findall(rf"^Negative IWAE-10?: {NUMBER}$", out, re.M)) == 2
    assert out.splitlines()[-1] == accuracy[0]


def test_the_labelled_images_are_chosen_by_the_seed(on_digits, folders, monkeypatch):
    asked = []
    chosen = data.labelled_subset
    monkeypatch.setattr(data, "labelled_subset", lambda *args: asked.append(args[1:]) or chosen(*args))
    assert on_digits("run_ssvae.py", "--gw", 0, "--labels", 30, "--seed", 7, "--iter_max", 1)[0] == 0
    assert asked == [(30, 7)]


def test_the_supervised_baseline(on_digits, folders):
    """--gw 0 trains the classifier alone, and says nothing of the generative model, which has learned nothing."""
    code, out, _ = on_digits("run_ssvae.py", "--gw", 0, "--iter_max", 100)
    assert code == 0
    assert "nats" not in out
    assert "NELBO" not in out
    assert float(re.search(r"accuracy: (\d+\.\d\d)", out)[1]) > 95
    checkpoints, logs = folders()
    assert checkpoints.name.startswith("model=ssvae_gw=000_cw=100_data=digits-")
    assert set(curves(logs)) == {"train/loss", "class/ce", "class/acc", "test/acc"}
    assert not (logs / "samples.png").exists()
    torch.manual_seed(0)
    assert weights(checkpoints, 100)["dec.net.0.weight"].equal(SSVAE().dec.net[0].weight)
    assert set(json.loads((logs / "results.json").read_text())["results"]) == {"test"}


@pytest.mark.parametrize(
    ("gw", "cw", "name"),
    [("0.5", "100", "gw=0.5_cw=100"), ("2.0", "1e3", "gw=002_cw=1000"), ("1", "0", "gw=001_cw=000")],
)
def test_weights_of_the_loss_are_any_numbers_from_0_on(on_digits, folders, gw, cw, name):
    assert on_digits("run_ssvae.py", "--gw", gw, "--cw", cw, "--iter_max", 2)[0] == 0
    assert folders()[0].name.startswith(f"model=ssvae_{name}_data=digits-")


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


@pytest.fixture
def fsvae(script, colour_digits, monkeypatch):
    """As `vae`, on small colour digits, judged by a classifier of 60 steps."""
    monkeypatch.setattr(content, "STEPS", 60)

    def call(*args):
        usual = {"--dataset": colour_digits, "--iter_max": 30, "--iter_save": 10, "--batch_size": 50, "--device": "cpu"}
        if "--train" in args and args[args.index("--train") + 1] == 0:
            del usual["--iter_max"]
        usual = {flag: value for flag, value in usual.items() if flag not in args}
        return script("run_fsvae.py", *(x for pair in usual.items() for x in pair), *args)

    return call


def test_the_fsvae_trains_resumes_and_evaluates(fsvae, tmp_path):
    code, out, _ = fsvae("--keep", 2)
    assert code == 0
    checkpoints = next(path for path in (tmp_path / "checkpoints").iterdir() if path.is_dir())
    logs = tmp_path / "logs" / checkpoints.name
    assert re.fullmatch(r"model=fsvae_data=digits-[0-9a-f]{8}_batch=50_run=0000", checkpoints.name)
    assert saved(checkpoints) == {"model-00020.pt", "model-00030.pt", *STATES}
    bits = r"\d+\.\d{4} ± \d+\.\d{4}"
    assert len(re.findall(rf"^NELBO: {NUMBER}  KL: {NUMBER}  Rec: {NUMBER}$", out, re.M)) == 2
    assert len(re.findall(rf"^Bits per dimension: NELBO: {bits}  KL: {bits}  Rec: {bits}$", out, re.M)) == 2
    generated = re.search(r"^Generated digits that show their label: (\d+\.\d\d) ± \d+\.\d\d % of 2,000", out, re.M)
    own = re.search(r"^whose accuracy on the 120 real test images is (\d+\.\d\d) ± \d+\.\d\d %$", out, re.M)
    record = json.loads((logs / "results.json").read_text())["results"]
    assert float(generated[1]) == pytest.approx(record["generated"]["accuracy_percent"]["mean"], abs=0.006)
    assert float(own[1]) == pytest.approx(record["generated"]["classifier_percent"]["mean"], abs=0.006)
    test = record["test"]
    assert test["nelbo_bits"]["mean"] == pytest.approx(
        (test["nelbo"]["mean"] / 3072 + np.log(255)) / np.log(2), rel=1e-6
    )
    assert test["kl_bits"]["mean"] + test["rec_bits"]["mean"] == pytest.approx(test["nelbo_bits"]["mean"])
    assert test["kl_bits"]["mean"] == pytest.approx(test["kl"]["mean"] / 3072 / np.log(2))
    assert set(curves(logs)) == {"train/loss", "gen/elbo", "gen/kl_z", "gen/rec", *EVAL}

    # The pictures: 10 x 20 tiles of 32 pixels; an image of each class, its reconstruction, its style in ten digits.
    events = EventAccumulator(str(logs), size_guidance={"images": 0})
    events.Reload()
    for name, columns in (("samples", 20), ("reconstructions", 12)):
        with Image.open(logs / f"{name}.png") as picture:
            assert picture.size == (columns * 33 + 1, 10 * 33 + 1)
        assert [image.step for image in events.Images(name)] == [10, 20, 30]
    with np.load(tmp_path / "digits.npz") as arrays, Image.open(logs / "reconstructions.png") as picture:
        x, y, pixels = arrays["x_test"], arrays["y_test"], np.asarray(picture)
    final = weights(checkpoints, 30)
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

    fsvae("--overwrite", 1, "--iter_max", 20)
    fsvae("--resume", 1)
    assert same(final, weights(checkpoints, 30))
    code, out, _ = fsvae("--train", 0, "--iw_eval", "1,10")
    assert code == 0
    assert len(re.findall(rf"^Negative IWAE-10?: {NUMBER} \({bits} bits per dimension\)$", out, re.M)) == 2
    assert "training a classifier" not in out
    assert generated[0] in out


def test_the_twenty_styles_are_the_same_throughout_training(fsvae, tmp_path, monkeypatch):
    """With a learning rate of next to nothing the model stays as it is, and so does its picture."""
    monkeypatch.setattr(content, "STEPS", 1)
    fsvae("--lr", 1e-30, "--iter_max", 3, "--iter_save", 1)
    (logs,) = (tmp_path / "logs").iterdir()
    events = EventAccumulator(str(logs), size_guidance={"images": 0})
    events.Reload()
    pictures = [image.encoded_image_string for image in events.Images("samples")]
    assert len(pictures) == 3
    assert len(set(pictures)) == 1


def test_flags_of_the_fsvae_reach_its_model_its_checkpoints_and_its_name(fsvae, tmp_path, monkeypatch):
    monkeypatch.setattr(content, "STEPS", 1)
    assert fsvae("--z", 2, "--iw", 5, "--iter_max", 25, "--iter_save", 5)[0] == 0
    (folder,) = (path for path in (tmp_path / "checkpoints").iterdir() if path.is_dir())
    assert re.fullmatch(r"model=fsvae_z=2_data=digits-\w+_iw=05_batch=50_run=0000", folder.name)
    assert {path.name for path in folder.glob("model-*")} == {"model-00015.pt", "model-00020.pt", "model-00025.pt"}
    assert weights(folder, 25)["dec.net.0.weight"].shape == (500, 12)
    torch.manual_seed(0)
    model = FSVAE(z_dim=2, iw=5)
    images = data.load(tmp_path / "digits.npz")
    run_steps(model, data.labelled_batches(images.x_train, images.y_train, 10, 50, 0), 25)
    torch.testing.assert_close(weights(folder, 25), model.state_dict())


def run_steps(model, batches, n):
    train(
        model,
        batches,
        Adam(model.parameters(), 1e-3),
        iter_max=n,
        iter_save=n,
        save=lambda _: None,
        log=lambda *_: None,
    )


@pytest.mark.parametrize(("split", "name"), [("train", "fsvae_split=train"), ("extra", "fsvae")])
def test_the_fsvae_on_files_of_svhn(script, tmp_path, monkeypatch, split, name):
    """Each split is an experiment of its own; SVHN goes without saying."""
    folder = save_svhn(tmp_path / "data", monkeypatch)
    monkeypatch.setattr(content, "STEPS", 1)
    args = ["--split", split, "--batch_size", 10, "--iter_max", 1, "--device", "cpu"]
    code, out, _ = script("run_fsvae.py", "--data_dir", folder, *args)
    assert code == 0
    assert f"SVHN, {split}, from " in out
    assert (tmp_path / "logs" / f"model={name}_batch=10_run=0000").is_dir()


def test_split_where_the_glyphs_stand_in(script, tmp_path, monkeypatch, colour_digits):
    """The docstring's --split train without network: glyphs, said loudly, and their name without a split."""
    save_svhn(tmp_path / "elsewhere", monkeypatch)
    glyphs = data.load(colour_digits)._replace(name="glyphs")
    monkeypatch.setattr(data, "draw_glyphs", lambda shape: glyphs)
    monkeypatch.setattr(content, "STEPS", 1)
    code, out, _ = script("run_fsvae.py", "--split", "train", "--iter_max", 1, "--device", "cpu")
    assert code == 0
    assert "USING THE BUILT-IN GLYPHS INSTEAD" in out
    assert (tmp_path / "logs" / "model=fsvae_data=glyphs_run=0000").is_dir()


def test_rows_are_digits_and_columns_are_styles(tmp_path):
    """A decoder that shows 0.1 y + 0.01 j for the j-th of the twenty z."""
    seen = []

    class Model:
        classes = 10

        def sample_z(self, n):
            return torch.arange(n)[:, None] / 100

        def mean_x(self, z, y):
            seen.append((z.shape, y.shape))
            return (y.argmax(-1, keepdim=True) / 10 + z).expand(10, 20, 3072)

    run = SimpleNamespace(data=SimpleNamespace(shape=(3, 32, 32)), logs=tmp_path, device="cpu")
    assert draw_styles(run, Model(), None, None).equal(torch.eye(10))
    with Image.open(tmp_path / "samples.png") as picture:
        pixels = np.asarray(picture)[1::33, 1::33, 0]
    expected = 255 * (np.arange(10)[:, None] / 10 + np.arange(20) / 100)
    assert np.abs(pixels[:10, :20] - expected.clip(0, 255)).max() <= 1


def test_a_file_of_the_homeworks_fsvae_is_evaluated(fsvae, tmp_path):
    torch.save(FSVAE().state_dict() | {"x_v": torch.full((1,), 0.1)}, tmp_path / "theirs.pt")
    code, out, _ = fsvae("--train", 0, "--checkpoint", "theirs.pt", "--iw_eval", 2)
    assert code == 0
    assert "Negative IWAE-2: " in out


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("--split", "test"), "--split: invalid choice: 'test'"),
        (("--split", "train"), "--split train chooses among SVHN's files: it does not go with --dataset "),
        (("--keep", -1), "--keep: '-1' is not a whole number from 0 on"),
        (("--dataset", "minst"), "the choices are auto, mnist, svhn, glyphs"),
    ],
)
def test_complaints_of_the_fsvae(fsvae, tmp_path, args, complaint):
    code, _, err = fsvae(*args)
    assert code == 2
    assert complaint in err
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == {"digits.npz"}


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("--gw", -1), "--gw: '-1' is not a number from 0 to"),
        (("--cw", "1e10"), "--cw: '1e10' is not a number from 0 to 1,000,000,000"),
        (("--cw", "inf"), "--cw: 'inf' is not a number from 0 to"),
        (("--cw", "much"), "--cw: 'much' is not a number from 0 to"),
        (("--gw", 0, "--cw", 0), "--gw 0 --cw 0 leave nothing to train"),
        (("--labels", 15), "--labels 15 is not a multiple of 10: each class"),
        (("--labels", 310), "but class 0 has 30"),
        (("--iw", 5), "unrecognized arguments: --iw"),
        (("--train", 0, "--checkpoint", "x.pt", "--replicates", 2), "it has no --replicates"),
        (("--run", 2**63 - 1, "--replicates", 2), "the last run's number or seed would not be below 2^63"),
        (("--batch_size", 301), "--batch_size 301 is more than the 300 training images"),
    ],
)
def test_complaints_of_the_ssvae(on_digits, tmp_path, args, complaint):
    code, _, err = on_digits("run_ssvae.py", *args)
    assert code == 2
    assert complaint in err
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == {"digits.npz"}


def test_iw_eval_chooses_the_bounds_and_says_how_far_to_trust_them(vae, folders):
    code, out, _ = vae("--z", 2, "--train", 2, "--iw_eval", "30,1,7,7")
    assert code == 0
    assert re.findall(r"Negative IWAE-(\d+)", out) == ["1", "7", "30"]
    assert re.search(r"^Relative effective sample size of 30 importance weights: \d+\.\d\d% ± \d+\.\d\d%$", out, re.M)
    assert re.search(r"^Active latent units: \d of 2; KL of each: \d+\.\d\d \d+\.\d\d$", out, re.M)
    subset = json.loads((folders()[1] / "results.json").read_text())["results"]["subset"]
    assert {"iwae_1", "iwae_7", "iwae_30"} <= subset.keys()
    assert subset["ess"]["samples"] == 30
    assert 1 / 30 <= subset["ess"]["mean"] <= 1
    assert sum(subset["latent_units"]["kl"]) == pytest.approx(subset["kl"]["mean"], rel=1e-4)


def test_train_2_does_both(vae):
    code, out, _ = vae("--train", 2, "--iter_max", 3)
    assert code == 0
    assert "trained 3 steps" in out
    assert "Negative IWAE-1000: " in out


def test_train_0_takes_the_newest_checkpoint_or_that_of_iter_max(vae):
    vae()
    assert "model-00030.pt" in vae("--train", 0)[1].replace("--iter_max", "")
    assert "model-00020.pt" in vae("--train", 0, "--iter_max", 20)[1]
    code, _, err = vae("--train", 0, "--iter_max", 25)
    assert code == 2
    assert "there is no model-00025.pt in checkpoints/model=vae" in err
    assert "there are steps 20, 30" in err


def test_same_seed_same_weights_bit_for_bit(vae, folders, tmp_path):
    vae()
    first, _ = folders()
    a = weights(first, 30)
    vae("--overwrite", 1)
    assert same(a, weights(first, 30))
    vae("--run", 1)
    assert not same(a, weights(tmp_path / "checkpoints" / first.name.replace("run=0000", "run=0001"), 30))


def test_resume_gives_what_an_uninterrupted_run_gives(vae, folders):
    """300 steps, against 150 that are gone on with to 300: weights, training state, curves, and numbers."""
    vae("--iter_max", 300, "--iter_save", 1000)
    checkpoints, logs = folders()
    a, state, curve = (
        weights(checkpoints, 300),
        torch.load(checkpoints / "training.pt", weights_only=True),
        curves(logs),
    )
    record = json.loads((logs / "results.json").read_text())
    vae("--iter_max", 150, "--iter_save", 1000, "--overwrite", 1)
    assert not (checkpoints / "model-00300.pt").exists()
    code, out, _ = vae("--iter_max", 300, "--iter_save", 1000, "--resume", 1)
    assert code == 0
    assert "resuming after step 150" in out
    assert same(a, weights(checkpoints, 300))
    again = torch.load(checkpoints / "training.pt", weights_only=True)
    assert again["random"]["cpu"].equal(state["random"]["cpu"])
    for p, q in zip(state["optimizer"]["state"].values(), again["optimizer"]["state"].values(), strict=True):
        assert same(p, q)
    assert same(state["optimizer"]["param_groups"][0], again["optimizer"]["param_groups"][0])
    after = json.loads((logs / "results.json").read_text())
    assert after["results"] == record["results"]
    assert (after["step"], after["trained"]["steps"]) == (300, 300)
    resumed = curves(logs)
    assert {tag: [point for point in points if point[0] != 150] for tag, points in resumed.items()} == curve


def test_resume_forgets_the_points_that_were_logged_after_the_last_save(vae, folders):
    """A process that died at step 250, with its last checkpoint at 150: each step is shown once in the end."""
    vae("--iter_max", 250, "--iter_save", 150)
    checkpoints, logs = folders()
    state = torch.load(checkpoints / "training.pt", weights_only=True)
    (checkpoints / "model-00250.pt").unlink()
    (checkpoints / "training-previous.pt").replace(checkpoints / "training.pt")
    vae("--iter_max", 250, "--iter_save", 150, "--resume", 1)
    assert [step for step, _ in curves(logs)["train/loss"]] == [100, 200, 250]
    assert torch.load(checkpoints / "training.pt", weights_only=True)["random"]["cpu"].equal(state["random"]["cpu"])


def test_resume_with_nothing_to_do_and_with_nothing_there(vae, folders):
    code, out, _ = vae("--resume", 1)
    assert code == 0
    assert "nothing to resume" in out
    vae("--train", 0, "--iw_eval", 3)
    checkpoints, logs = folders()
    before = contents(checkpoints)
    code, out, _ = vae("--resume", 1)
    assert code == 0
    assert "at step 30 already" in out
    assert contents(checkpoints) == before
    record = json.loads((logs / "results.json").read_text())
    assert record["trained"]["steps"] == 30
    assert "iwae_3" in record["results"]["subset"]


def test_a_second_run_touches_nothing_of_the_first(vae, folders):
    vae()
    checkpoints, logs = folders()
    before = contents(checkpoints) | contents(logs)
    code, _, err = vae()
    assert code == 2
    assert all(hint in err for hint in ("--resume 1", "--overwrite 1", "--run 1", "--train 0"))
    assert "Traceback" not in err
    assert contents(checkpoints) | contents(logs) == before


def test_replicates_are_the_runs_that_they_would_be_alone(vae, tmp_path):
    """Those of numbers 1 and 2, bit for bit, and then their table."""
    usual = ["--train", 2, "--iw_eval", "1,3", "--z", 2]
    code, out, _ = vae(*usual, "--run", 1, "--replicates", 2)
    assert code == 0
    together = {path.name: weights(path, 30) for path in (tmp_path / "checkpoints").iterdir()}
    assert sorted(name[-8:] for name in together) == ["run=0001", "run=0002"]
    means = [json.loads(path.read_text())["results"]["test"]["nelbo"]["mean"] for path in results_of(tmp_path)]
    table = out[out.index("### vae") :]
    assert "| runs | 2 |\n| seeds | 1 to 2 |\n| steps | 30 |" in table
    assert f"| test NELBO | {np.mean(means):.2f} ± {abs(means[0] - means[1]) / 2:.2f} |" in table
    assert "### Left out" not in table

    for name, there in together.items():
        vae(*usual, "--run", int(name[-1]), "--overwrite", 1)
        assert same(weights(tmp_path / "checkpoints" / name, 30), there)
    assert [json.loads(path.read_text())["results"]["test"]["nelbo"]["mean"] for path in results_of(tmp_path)] == means


def results_of(folder):
    return sorted(folder.glob("logs/*/results.json"))


def test_a_series_goes_on_where_it_was_interrupted(vae, tmp_path, monkeypatch):
    """The first run finished, the second stopped after step 20 of 30, the third not begun: as if never interrupted."""
    usual = ["--z", 2, "--replicates", 3]
    vae(*usual)
    expected = {path: weights(path, 30) for path in (tmp_path / "checkpoints").iterdir()}
    for each in ("checkpoints", "logs"):
        shutil.rmtree(tmp_path / each)

    vae("--z", 2)
    vae("--z", 2, "--run", 1, "--iter_max", 20)
    first = contents(min(tmp_path.glob("checkpoints/*"))) | contents(min(tmp_path.glob("logs/*")))
    code, out, _ = vae(*usual)
    assert code == 0
    assert out.count("finished before") == 1
    assert "resuming after step 20" in out
    assert "| runs | 3 |" in out
    assert all(path.read_bytes() == content for path, content in first.items())
    assert all(same(weights(path, 30), there) for path, there in expected.items())

    # All are finished; then more is asked of them than they have; then they are evaluated; then begun anew.
    everything = contents(tmp_path)
    _, again, _ = vae(*usual)
    assert again.count("finished before") == 3
    assert contents(tmp_path) == everything
    for _ in range(2):
        _, bounds, _ = vae(*usual, "--train", 2, "--iw_eval", 7)
        assert "| subset IWAE-7 |" in bounds
    assert bounds.count("finished before") == 3
    code, evaluated, _ = vae("--z", 2, "--replicates", 2, "--train", 0, "--iw_eval", 5)
    assert code == 0
    assert "| runs | 2 |" in evaluated
    assert "| subset IWAE-5 |" in evaluated
    code, anew, _ = vae(*usual, "--overwrite", 1)
    assert anew.count("trained 30 steps") == 3
    assert all(same(weights(path, 30), there) for path, there in expected.items())


def test_a_run_that_is_no_longer_whole_is_not_finished(vae, tmp_path):
    """Its training went on: until the new weights are evaluated, results.json does not call itself complete."""
    vae("--z", 2)
    (path,) = results_of(tmp_path)
    assert json.loads(path.read_text())["complete"] is True
    record = json.loads(path.read_text())
    del record["complete"]
    path.write_text(json.dumps(record))
    _, out, _ = vae("--z", 2, "--replicates", 2)
    assert "finished before" not in out
    assert json.loads(path.read_text())["complete"] is True


def test_the_supervised_baseline_has_replicates_though_it_has_no_bounds(on_digits):
    usual = ["--gw", 0, "--labels", 20, "--replicates", 2, "--train", 2]
    on_digits("run_ssvae.py", *usual)
    code, out, _ = on_digits("run_ssvae.py", *usual)
    assert code == 0
    assert out.count("finished before") == 2
    assert "| test accuracy, % |" in out


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


def test_a_file_of_the_homeworks_weights_is_evaluated(vae, tmp_path):
    """A bare state_dict of the homework's keys, in another order; results land apart from any run's."""
    state = VAE(z_dim=10).state_dict()
    torch.save(dict(sorted(state.items())), tmp_path / "theirs.pt")
    code, out, _ = vae("--train", 0, "--checkpoint", "theirs.pt")
    assert code == 0
    assert "Negative IWAE-1000: " in out
    (logs,) = (tmp_path / "logs").iterdir()
    assert re.fullmatch(r"model=vae_z=10_data=digits-\w+_batch=50_checkpoint=theirs-[0-9a-f]{8}", logs.name)
    assert (logs / "samples.png").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_a_diverging_run_stops_and_keeps_the_last_checkpoint(vae, tmp_path):
    code, _, err = vae("--lr", 1e30)
    assert code == 1
    assert re.search(r"error: the loss of step \d+ is (inf|nan)", err)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert saved(folder) == {"training.pt"}  # of step 0


def test_learning_rate_schedules(vae, tmp_path):
    """They join the run's name and change its weights; that of the cosine depends on --iter_max, which must stay."""
    ended = {}
    for schedule, name in (("constant", "batch=50"), ("20,10", "schedule=10,20"), ("cosine", "schedule=cosine")):
        assert vae("--lr_schedule", schedule)[0] == 0
        (path,) = tmp_path.glob(f"checkpoints/*{name}_run=0000/model-00030.pt")
        ended[schedule] = weights(path.parent, 30)
    assert not same(ended["constant"], ended["20,10"])
    assert not same(ended["constant"], ended["cosine"])
    assert vae("--lr_schedule", "10,20", "--iter_max", 40, "--resume", 1)[0] == 0
    code, _, err = vae("--lr_schedule", "cosine", "--iter_max", 40, "--resume", 1)
    assert code == 2
    assert "--iter_max was 30 and is 40" in err


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("--z", 0), "--z: '0' is not a whole number from 1 to 1,000,000"),
        (("--z", "ten"), "--z: 'ten' is not a whole number from 1 to"),
        (("--iter_max", 0), "--iter_max: '0' is not a whole number from 1 on"),
        (("--iter_save", "-5"), "--iter_save: '-5' is not a whole number from 1 on"),
        (("--run", -1), "--run: '-1' is not a whole number from 0 on"),
        (("--seed", 1.5), "--seed: '1.5' is not a whole number from 0 on"),
        (("--lr", "nan"), "--lr: 'nan' is not a number above 0"),
        (("--lr", "-1"), "--lr: '-1' is not a number above 0"),
        (("--lr_schedule", "linear"), "--lr_schedule: 'linear' is none of constant, cosine, and a list of steps"),
        (("--lr_schedule", "100,0"), "--lr_schedule: '100,0' is none of"),
        (("--iw_eval", "10,0"), "--iw_eval: '10,0' is not a list of whole numbers from 1 to 5000"),
        (("--iw_eval", "5001"), "--iw_eval: '5001' is not a list"),
        (("--iw_eval", ""), "--iw_eval: '' is not a list"),
        (("--iw", 0), "--iw: '0' is not a whole number from 1 to"),
        (("--train", 3), "--train: invalid choice: 3"),
        (("--full", "yes"), "--full: invalid int value: 'yes'"),
        (("--full", 2), "--full: invalid choice: 2"),
        (("--device", "tpu"), "--device: invalid choice: 'tpu'"),
        (("--zz", 1), "unrecognized arguments"),
        (("--seed", 2**63), "is not a whole number from 0 on, below 2^63"),
        (("--full", 1), "add --train 0 or 2"),
        (("--train", 0, "--checkpoint", "x.pt", "--iter_max", 5), "both say which weights to load"),
        (("--train", 0, "--checkpoint", ""), "there is no such file"),
        (("--resume", 1, "--overwrite", 1), "give one of them"),
        (("--train", 0, "--resume", 1), "--train 0 only evaluates"),
        (("--checkpoint", "x.pt"), "add --train 0"),
        (("--train", 0, "--checkpoint", "x.pt"), "--checkpoint x.pt: there is no such file"),
        (("--train", 0), "train first, or give --checkpoint FILE"),
        (("--train", 0, "--checkpoint", "x.pt", "--replicates", 2), "it has no --replicates"),
        (("--run", 2**63 - 1, "--replicates", 2), "the last run's number or seed would not be below 2^63"),
        (("--batch_size", 301), "--batch_size 301 is more than the 300 training images"),
        (("--dataset", "absent.npz"), "absent.npz does not exist"),
        (("--dataset", "cifar"), "--dataset cifar: the choices are"),
    ],
)
def test_complaints_are_a_sentence_and_code_2_and_nothing_is_written(vae, tmp_path, args, complaint):
    code, _, err = vae(*args)
    assert code == 2
    assert complaint in err
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == {"digits.npz"}


def test_a_folder_that_cannot_be_written_is_named_before_training(vae, tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    code, out, err = vae()
    assert code == 2
    assert "error: " in err
    assert "checkpoints" in err
    assert "trained" not in out
    assert "Traceback" not in err


def test_a_test_set_of_one_image(vae, digits, folders):
    with np.load(digits) as file:
        arrays = dict(file)
    np.savez(digits, **arrays | {"x_test": arrays["x_test"][:1], "y_test": arrays["y_test"][:1]})
    code, out, _ = vae("--train", 2, "--iw_eval", 2)
    assert code == 0
    assert "± nan" in out
    text = (folders()[1] / "results.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["results"]["test"]["nelbo"]["se"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none(vae):
    code, _, err = vae("--device", "cuda")
    assert code == 2
    assert "--device cuda: PyTorch" in err


def test_help_shows_every_flag_with_its_default(script):
    code, out, _ = script("run_vae.py", "--help")
    assert code == 0
    for flag in ("--z", "--iter_max", "--seed", "--checkpoint", "--dataset", "--overwrite"):
        assert flag in out
    assert "(default: 20000)" in out


@pytest.fixture
def sigint():
    """sigint(handler) sets the handler of SIGINT, which a shell's background jobs begin with as ignored."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_stops_at_once(sigint, capsys):
    sigint(signal.default_int_handler)
    with asked_to_stop() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals == [signal.SIGINT]
        assert "once more stops at once" in capsys.readouterr().out
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_in_the_last_step_is_obeyed(vae, monkeypatch):
    """Nothing is left to train, but the report must not begin."""
    show = pictures.show

    def interrupted(*args):
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.setattr(pictures, "show", show)
        show(*args)

    monkeypatch.setattr(pictures, "show", interrupted)
    code, out, _ = vae("--iter_max", 5)
    assert code == 143
    assert "stopped after step 5, which is saved" in out
    assert "NELBO" not in out


def test_an_ignored_signal_stays_ignored(sigint):
    sigint(signal.SIG_IGN)
    with asked_to_stop() as signals:
        signal.raise_signal(signal.SIGINT)
    assert signals == []
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_keep(vae, folders):
    """The newest two of every five steps, and the last step's; from all that an earlier process left, too."""
    vae("--iter_save", 5, "--iter_max", 17)
    assert vae("--iter_save", 5, "--iter_max", 28, "--keep", 2, "--resume", 1)[0] == 0
    assert saved(folders()[0]) == {"model-00020.pt", "model-00025.pt", "model-00028.pt", *STATES}
    assert vae("--iter_save", 5, "--iter_max", 40, "--keep", 2, "--resume", 1)[0] == 0
    assert saved(folders()[0]) == {"model-00035.pt", "model-00040.pt", *STATES}


@pytest.mark.slow
def test_peak_memory_of_evaluating(tmp_path, digits):
    """--train 0 stays under 1.5 GB."""
    program = (
        "import resource, runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"  # Linux counts KiB
    )
    command = [ROOT / "run_vae.py", "--dataset", "glyphs", "--device", "cpu", "--iter_max", "2"]
    printed_by(program, *command, cwd=tmp_path)
    *report, peak = printed_by(program, *command, "--train", "0", cwd=tmp_path).splitlines()
    assert any(line.startswith("Negative IWAE-1000") for line in report)
    assert int(peak) < 1.5e9


def assert_as_stored(results, configuration, *names):
    """A run's numbers are within four standard deviations of single runs around the means in docs/results.json."""
    stored = json.loads((ROOT / "docs" / "results.json").read_text())["configurations"]
    of = max((of for of in stored if of["configuration"] == configuration), key=lambda of: of["step"])
    numbers = of["results"]
    for name in names:
        split, quantity = name.split()
        value, values = results[split][quantity]["mean"], numbers[name]["values"]
        assert abs(value - np.mean(values)) < 4 * np.std(values, ddof=1), (name, value)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "configuration"), [("run_vae.py", "vae_z=10"), ("run_gmvae.py", "gmvae_z=10_k=500")])
def test_the_homeworks_numbers_on_mnist(mnist_dir, tmp_path, name, configuration):
    command = [sys.executable, str(ROOT / name), "--data_dir", str(mnist_dir), "--train", "2"]
    subprocess.run(command, cwd=tmp_path, check=True)
    (path,) = tmp_path.glob("logs/*/results.json")
    results = json.loads(path.read_text())["results"]
    subset = {name: results["subset"][name]["mean"] for name in results["subset"] if name != "latent_units"}
    assert_as_stored(results, configuration, "test nelbo", "subset nelbo", "subset kl", "subset iwae_1000")
    assert abs(subset["iwae_1"] - subset["nelbo"]) < 0.3
    assert subset["iwae_1"] > subset["iwae_10"] > subset["iwae_100"] > subset["iwae_1000"]
    assert results["test"]["latent_units"]["active"] == 10


@pytest.mark.slow
def test_the_supervised_baseline_on_mnist(mnist_dir, tmp_path):
    command = [sys.executable, str(ROOT / "run_ssvae.py"), "--data_dir", str(mnist_dir), "--gw", "0"]
    subprocess.run(command, cwd=tmp_path, check=True)
    (path,) = tmp_path.glob("logs/*/results.json")
    assert_as_stored(json.loads(path.read_text())["results"], "ssvae_gw=000_cw=100", "test accuracy_percent")


@pytest.mark.slow
def test_the_ssvae_on_mnist(mnist_dir, tmp_path):
    """The first sixth of the semi-supervised training, which is well above the baseline by then."""
    command = [sys.executable, str(ROOT / "run_ssvae.py"), "--data_dir", str(mnist_dir), "--iter_max", "5000"]
    subprocess.run(command, cwd=tmp_path, check=True)
    (path,) = tmp_path.glob("logs/*/results.json")
    results = json.loads(path.read_text())["results"]
    assert 79.3 < results["test"]["accuracy_percent"]["mean"] < 90.5
    assert results["test"]["nelbo"]["mean"] < 104


@pytest.mark.slow
def test_the_fsvae_on_glyphs(tmp_path):
    """2,000 steps: one run reached -546 nats, and 36 % of its digits showed their label; by chance it is 10 %."""
    command = [sys.executable, str(ROOT / "run_fsvae.py"), "--dataset", "glyphs", "--iter_max", "2000"]
    subprocess.run(command, cwd=tmp_path, check=True)
    (path,) = tmp_path.glob("logs/*/results.json")
    results = json.loads(path.read_text())["results"]
    assert -560 < results["test"]["nelbo"]["mean"] < -530
    assert results["generated"]["classifier_percent"]["mean"] > 99.5
    assert results["generated"]["accuracy_percent"]["mean"] > 20
