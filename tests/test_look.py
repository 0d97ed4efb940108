"""What a run looks at: numbers and pictures at step 0 and at each checkpoint, after it is saved."""

import csv
import io
import json

import numpy as np
import pytest
from conftest import contents, curves, pictures_shown, saved

from codebase import pictures
from codebase.evaluate import Estimate
from codebase.models.vae import VAE


@pytest.fixture
def look(monkeypatch):
    """look(function): the run scripts' look is function(model)."""
    return lambda function: monkeypatch.setattr(pictures, "unlabelled", lambda model, splits, images: function(model))


def test_a_number_is_a_curve_and_is_in_the_report_the_results_the_tables_and_the_csv(vae, look, folders, script):
    def numbers(model):
        assert not model.training
        step = int(model.step) + 1 if model.step else 0
        return {
            "mi": 3.25 + step,
            "test/bits": Estimate(1.5, 0.25, 7),
            "black": pictures.Picture(np.zeros((4, 6, 3), np.uint8), "All black."),
        }

    look(numbers)
    code, out, _ = vae("--z", 2)
    assert code == 0
    assert "\nmi: 33.25\ntest bits: 1.50 ± 0.25\n" in out
    _, logs = folders()
    shown = curves(logs)
    assert shown["mi"] == [(0, 3.25), (20, 23.25), (30, 33.25)]
    assert shown["test/bits"] == [(0, 1.5), (20, 1.5), (30, 1.5)]
    assert [step for step, _ in pictures_shown(logs)["black"]] == [0, 20, 30]
    results = json.loads((logs / "results.json").read_text())["results"]
    assert results[""]["mi"] == {"mean": 33.25, "se": None, "n": 1}
    assert results["test"]["bits"] == {"mean": 1.5, "se": 0.25, "n": 7}
    table = script("report.py")[1]
    assert "| mi | 33.25 |" in table
    assert "| test bits | 1.50 |" in table
    rows = list(csv.DictReader(io.StringIO(script("report.py", "--csv", "-")[1])))
    found = {(row["split"], row["number"]): float(row["value"]) for row in rows}
    assert found["", "mi"] == 33.25
    assert found["test", "bits"] == 1.5
    assert "--by" in script("report.py", "--help")[1]
    assert script("report.py", "--by", "mi")[0] == 0


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({"mi": "three"}, "mi of `look` is str; it must be a Picture, a number or an Estimate."),
        ({"mi": float("nan")}, "mi of `look` is nan."),
        (
            {"test/nelbo": 2.0},
            "`look` needs another name than 'test/nelbo', which the report or the training uses itself.",
        ),
        ({"train/loss": 2.0}, "needs another name than 'train/loss'"),
        ({"a/b": pictures.Picture(np.zeros((4, 6, 3), np.uint8), "")}, "needs another name than 'a/b'"),
        ({3: 1.0}, "needs another name than 3"),
        (None, "`look` must return a dict, {name: Picture or number}; it returned NoneType."),
    ],
)
def test_what_cannot_be_shown_is_a_sentence_before_the_first_step(vae, look, tmp_path, value, complaint):
    look(lambda model: value)
    code, _, err = vae("--z", 2)
    assert code in (1, 2)
    assert complaint in err
    assert {path.name for path in tmp_path.iterdir()} == {"digits.npz"}


@pytest.mark.parametrize("wrong", ["look", "elbo_terms", "loss", "log_weights", "mean_z"])
def test_an_error_at_step_0_comes_before_anything_is_deleted(vae, look, folders, monkeypatch, wrong):
    assert vae("--z", 2)[0] == 0
    before = contents(folders()[0]), contents(folders()[1])

    def mistake(*args):
        raise ValueError("my mistake")

    look(mistake) if wrong == "look" else monkeypatch.setattr(VAE, wrong, mistake)
    with pytest.raises(ValueError, match="my mistake"):
        vae("--z", 2, "--overwrite", 1)
    assert (contents(folders()[0]), contents(folders()[1])) == before


def test_an_error_at_a_checkpoint_comes_after_it_is_saved_and_a_resumed_run_looks_again(vae, look, folders):
    """Curves, pictures and results are then those of a run without the error; each step is shown once."""
    looked, original = [], pictures.unlabelled

    def failing(model):
        looked.append(int(model.step))
        if len(looked) == 2:
            raise ValueError("my mistake")
        return {"mi": 1.0 + len(looked)}

    look(failing)
    with pytest.raises(ValueError, match="my mistake"):
        vae("--z", 2, "--iter_save", 10, "--iter_max", 30)
    checkpoints, logs = folders()
    assert saved(checkpoints) == {"model-00010.pt", "training.pt"}
    assert vae("--z", 2, "--iter_save", 10, "--iter_max", 30, "--resume", 1)[0] == 0
    assert original is not pictures.unlabelled
    shown = curves(logs)
    assert shown["mi"] == [(0, 2.0), (10, 4.0), (20, 5.0), (30, 6.0)]
    assert [step for step, _ in shown["train/loss"]] == [30]
    assert json.loads((logs / "results.json").read_text())["complete"] is True


def test_the_curves_of_a_step_that_was_saved_but_not_shown_are_kept(vae, look, folders, monkeypatch):
    """The point of the loss at the checkpoint is in training.pt, and is logged when the run is resumed."""
    monkeypatch.setattr("codebase.runs.course.LOG_EVERY", 10)
    assert vae("--z", 2, "--iter_save", 10, "--run", 1, "--seed", 0)[0] == 0
    (whole,) = folders()[1].parent.iterdir()
    expected = curves(whole)
    looked = []

    def failing(model):
        looked.append(None)
        if len(looked) == 3:
            raise ValueError("my mistake")
        return {}

    look(failing)
    with pytest.raises(ValueError, match="my mistake"):
        vae("--z", 2, "--iter_save", 10)
    assert vae("--z", 2, "--train", 0, "--iw_eval", 2)[0] == 0  # which writes results.json, too
    assert vae("--z", 2, "--iter_save", 10, "--resume", 1)[0] == 0
    (parts,) = set(whole.parent.iterdir()) - {whole}
    assert curves(parts) == expected
