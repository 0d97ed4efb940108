"""The run scripts on images of other sizes, with other numbers of classes, or without labels."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from codebase.pictures import EDGE


@pytest.fixture
def images(tmp_path):
    """images(shape, classes): the path of an .npz with a bright bar, whose place is the label; classes 0: no labels."""

    def write(shape, classes, n_train=104, n_test=78):
        arrays = {}
        for split, n in (("train", n_train), ("test", n_test)):
            x = np.random.RandomState(n).randint(0, 60, (n, *shape))
            y = np.arange(n) % max(1, classes)
            for i, label in enumerate(y):
                x[i, :, 2 * label : 2 * label + 2] += 190
            arrays |= {f"x_{split}": x.astype(np.uint8)} | ({f"y_{split}": y} if classes else {})
        np.savez(tmp_path / "own.npz", **arrays)
        return tmp_path / "own.npz"

    return write


@pytest.fixture
def run(script, tmp_path, monkeypatch):
    """run(name, path, ...): 6 steps, resumed at 4, evaluated. Returns what was printed, results, and the logs."""

    def call(name, path, *args):
        usual = ["--dataset", path, "--batch_size", 26, "--device", "cpu", *args]
        printed, bounds = "", ("--iw_eval", "1,3")
        for more in (
            ("--iter_max", 4),
            ("--iter_max", 6, "--resume", 1, "--train", 2, *bounds),
            ("--train", 0, *bounds),
        ):
            code, out, err = script(name, *usual, *more)
            assert code == 0, err
            printed += out
        assert "resuming after step 4" in printed
        (logs,) = (tmp_path / "logs").iterdir()
        return printed, json.loads((logs / "results.json").read_text()), logs

    return call


def size(path):
    """Of a picture before it is doubled."""
    with Image.open(path) as picture:
        return tuple(n // 2 for n in picture.size)


COLOUR = pytest.mark.parametrize(
    ("height", "width", "classes"), [(9, 12, 6), pytest.param(64, 64, 26, marks=pytest.mark.slow)]
)


@COLOUR
def test_colour_images_of_any_size_and_number_of_classes_in_the_fsvae(run, images, tmp_path, height, width, classes):
    _, record, logs = run("run_fsvae.py", images((height, width, 3), classes), "--hidden", 50)
    assert record["data"]["shape"] == [3, height, width]
    assert record["data"]["classes"] == classes
    results = record["results"]
    assert results["subset"]["nelbo"]["n"] == 78
    assert size(logs / "samples.png") == (EDGE + 20 * (width + 1) + 1, classes * (height + 1) + 1)
    assert size(logs / "reconstructions.png") == (
        EDGE + (classes + 2) * (width + 1) + 1,
        EDGE + classes * (height + 1) + 1,
    )
    (folder,) = (path for path in (tmp_path / "checkpoints").iterdir() if path.is_dir())
    weights = torch.load(folder / "model-00006.pt")
    assert weights["enc.net.0.weight"].shape == (50, 3 * height * width + classes)


@COLOUR
def test_colour_images_of_any_size_and_number_of_classes_in_the_ssvae(run, images, height, width, classes):
    _, record, logs = run(
        "run_ssvae.py", images((height, width, 3), classes, n_train=10 * classes), "--z", 3, "--hidden", 50
    )
    assert np.shape(record["results"]["test"]["confusion"]) == (classes, classes)
    assert set(record["results"]["subset"]) >= {"nelbo", "kl_z", "kl_y", "rec", "iwae_1", "iwae_3"}
    assert record["results"]["subset"]["kl_y"]["mean"] < np.log(classes)
    assert size(logs / "samples.png") == (EDGE + 20 * (width + 1) + 1, classes * (height + 1) + 1)
    assert size(logs / "mistakes.png") == (EDGE + classes * (width + 1) + 1, EDGE + classes * (height + 1) + 1)


def test_32_x_32_colour_images_without_labels(run, images):
    """Bernoulli on the values of each colour: binarised ones, of which the reconstructions are."""
    out, record, logs = run("run_vae.py", images((32, 32, 3), 0), "--z", 3, "--hidden", 50)
    assert record["data"]["classes"] == 0
    assert record["results"]["subset"]["nelbo"]["n"] == 78
    assert record["results"]["test"]["nelbo"]["mean"] < 3072 * np.log(2) + 50
    assert size(logs / "samples.png") == (20 * 33 + 1, 10 * 33 + 1)
    assert re.search(r"^Negative IWAE-3: ", out, re.M)
    with Image.open(logs / "reconstructions.png") as picture:
        tile = np.asarray(picture)[2:66, 2:66]
    assert set(np.unique(tile)) == {0, 255}
    assert (tile[..., 0] != tile[..., 1]).any()  # in colour


@pytest.mark.slow
def test_small_grey_images_of_two_classes(run, images):
    _, record, _ = run("run_fsvae.py", images((5, 4), 2))
    assert record["data"]["shape"] == [1, 5, 4]
    assert record["results"]["test"]["nelbo"]["n"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width", "picture", "columns", "top"),
    [("run_ssvae.py", 13, "samples.png", 20, 0), ("run_fsvae.py", 130, "reconstructions.png", 52, EDGE)],
)
def test_many_classes(run, images, name, width, picture, columns, top):
    _, record, logs = run(name, images((3, width), 60, n_train=600, n_test=60), "--z", 3)
    assert size(logs / picture) == (EDGE + columns * (width + 1) + 1, top + 50 * 4 + 1)
    if name == "run_ssvae.py":
        assert np.shape(record["results"]["test"]["confusion"]) == (60, 60)


@pytest.mark.parametrize("name", ["run_ssvae.py", "run_fsvae.py"])
def test_models_of_labels_ask_for_them(script, images, name):
    code, _, err = script(name, "--dataset", images((8, 8), 0))
    assert code == 2
    assert "own.npz has no labels; this model needs labels of at least two classes, " in err
