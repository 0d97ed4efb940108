"""What a run looks at: numbers and pictures at step 0 and at each checkpoint, after it is saved."""

import copy
import json

import numpy as np
import pytest
from conftest import contents, curves, pictures_shown, saved

from codebase import pictures
from codebase.evaluate import Estimate
from codebase.models.vae import VAE

BLACK = pictures.Picture(np.zeros((4, 6, 3), np.uint8), "All black.")


@pytest.fixture
def look(monkeypatch):
    """look(function): the run scripts' look is function(model)."""
    return lambda function: monkeypatch.setattr(pictures, "unlabelled", lambda model, splits, images: function(model))


def test_a_number_is_a_curve_and_is_in_the_report_the_results_and_the_tables(vae, look, folders, script):
    def numbers(model):
        assert not model.training
        step = int(model.step) + 1 if model.step else 0
        return {"mi": 3.25 + step, "test/bits": Estimate(1.5, 0.25, 7), "black": BLACK}

    look(numbers)
    code, out, _ = vae("--z", 2)
    assert code == 0
    assert "\nmi: 33.25\ntest bits: 1.50 ± 0.25\n" in out
    _, logs = folders()
    shown = curves(logs)
    assert shown["mi"] == [(0, 3.25), (20, 23.25), (30, 33.25)]
    assert shown["test/bits"] == [(0, 1.5), (20, 1.5), (30, 1.5)]
    assert [step for step, _ in pictures_shown(logs)["black"]] == [0, 20, 30]
    assert {path.name for path in logs.glob("*.png")} == {"black.png", "curves.png"}
    results = json.loads((logs / "results.json").read_text())["results"]
    assert results[""]["mi"] == {"mean": 33.25, "se": None, "n": 1}
    assert results["test"]["bits"] == {"mean": 1.5, "se": 0.25, "n": 7}
    table = script("report.py")[1]
    assert "| mi | 33.25 |" in table
    assert "| test bits | 1.50 |" in table


def test_a_number_that_is_not_finite_is_a_sentence_before_the_first_step(vae, look, tmp_path):
    look(lambda model: {"mi": float("nan")})
    code, _, err = vae("--z", 2)
    assert code == 1
    assert "mi of `look` is nan." in err
    assert {path.name for path in tmp_path.iterdir()} == {"digits.npz"}


def test_an_error_at_step_0_comes_before_anything_is_deleted(vae, folders):
    assert vae("--iter_max", 5)[0] == 0
    before = contents(folders()[0]), contents(folders()[1])

    def mistake(*args):
        raise ValueError("my mistake")

    wrong = [(VAE, name) for name in ("elbo_terms", "mean_z")]
    for place, name in ((pictures, "unlabelled"), *wrong):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, name, mistake)
            with pytest.raises(ValueError, match="my mistake"):
                vae("--overwrite", 1)
        assert (contents(folders()[0]), contents(folders()[1])) == before


def test_an_error_at_a_checkpoint_comes_after_saving_and_a_resumed_run_looks_again(vae, look, folders, monkeypatch):
    """Then all curves and pictures are those of a run without the error, also the points of the checkpoint's step."""
    monkeypatch.setattr("codebase.runs.course.LOG_EVERY", 10)
    drawn, looked = [], []
    monkeypatch.setattr(pictures, "curves", lambda history: drawn.append(copy.deepcopy(history)) or BLACK)

    def looking(model):
        looked.append(float(model.dec.net[4].bias.sum()))
        if len(looked) == fails_at:
            raise ValueError("my mistake")
        return {"bias": looked[-1], "black": BLACK}

    look(looking)
    fails_at = None
    assert vae("--iter_save", 10, "--run", 1, "--seed", 0)[0] == 0
    (whole,) = folders()[1].parent.iterdir()
    expected, history = curves(whole), drawn[-1]
    assert list(history["train/loss"]) == [10, 20, 30]

    looked.clear()
    fails_at = 3
    with pytest.raises(ValueError, match="my mistake"):
        vae("--iter_save", 10)
    (parts,) = set(whole.parent.iterdir()) - {whole}
    assert saved(whole.parent.parent / "checkpoints" / parts.name) == {
        "model-00010.pt",
        "model-00020.pt",
        "training.pt",
    }
    assert vae("--train", 0, "--iw_eval", 2)[0] == 0  # which writes results.json, too
    assert vae("--iter_save", 10, "--resume", 1)[0] == 0
    assert curves(parts) == expected
    assert [step for step, _ in expected["bias"]] == [0, 10, 20, 30]
    assert [step for step, _ in pictures_shown(parts)["black"]] == [0, 10, 20, 30]
    assert drawn[-1] == history
    record = json.loads((parts / "results.json").read_text())
    assert record["complete"] is True
    assert record["results"][""]["bias"]["mean"] == looked[-1]
