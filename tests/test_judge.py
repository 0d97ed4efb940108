"""The classifier that judges generated images."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import save_digits

from codebase import data, evaluate, judge
from codebase.errors import InputError
from codebase.judge import Classifier
from codebase.models.fsvae import FSVAE


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judge, "TRAINING_STEPS", 60)
    return data.load(save_digits(tmp_path / "digits.npz", colour=True))


def test_the_judge_is_trained_once_and_kept(images, tmp_path, capsys, monkeypatch):
    classifier, percent = judge.judge(images, torch.device("cpu"))
    assert percent.mean > 95
    assert percent == evaluate.accuracy(evaluate.classify(classifier, images.x_test), images.y_test)[0]
    assert "training a classifier" in capsys.readouterr().out
    monkeypatch.setattr(judge, "train", None)
    again, _ = judge.judge(images, torch.device("cpu"))
    assert "training a classifier" not in capsys.readouterr().out
    assert all(a.equal(b) for a, b in zip(classifier.parameters(), again.parameters(), strict=True))
    (path,) = (tmp_path / "checkpoints").iterdir()
    assert path.name == f"classifier_data={images.name}_train=300.pt"


def test_the_judge_learns_from_the_training_images_alone(images):
    """Trained with every label shifted by one, it predicts shifted labels on the test images."""
    _, percent = judge.judge(images._replace(y_train=(images.y_train + 1) % 10), torch.device("cpu"))
    assert percent.mean < 5


def test_a_damaged_file_of_the_judge_is_named(images, tmp_path):
    path = tmp_path / "checkpoints" / f"classifier_data={images.name}_train=300.pt"
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"classifier_data=.*Delete that file; the classifier is then trained again"):
        judge.judge(images, torch.device("cpu"))


def test_generated_accuracy(images):
    """A model that draws the real images of the label is right as often as they are; one that draws those of the
    next label is so for no image, and the confusion matrix says by how much it is off."""
    classifier, percent = judge.judge(images, torch.device("cpu"))

    class Copies(Classifier):
        def __init__(self, shift):
            super().__init__()
            self.shift, self.classes = shift, 10

        def sample_x(self, n, y):
            first = [int((images.y_test == c).nonzero()[0]) for c in range(10)]
            return data.scaled(images.x_test[first])[[(y.argmax(-1) + self.shift) % 10] * n]

    exact, confusion = judge.generated_accuracy(Copies(0), classifier, torch.arange(10))
    assert exact.n == 2000
    assert exact.mean == pytest.approx(percent.mean, abs=15)
    assert confusion.sum(1).tolist() == [200] * 10
    shifted, confusion = judge.generated_accuracy(Copies(1), classifier, torch.arange(10))
    assert shifted.mean < 15
    assert sum(confusion[c, (c + 1) % 10] for c in range(10)) == 20 * exact.mean


def test_labels_that_the_training_images_lack_are_not_judged(images, capsys):
    """Of labels 0, 3 and 9 among ten classes, only these three are generated, counted and printed."""
    present = torch.tensor([0, 3, 9])
    some = torch.isin(images.y_train, present)
    images = images._replace(x_train=images.x_train[some], y_train=images.y_train[some])
    run = SimpleNamespace(data=images, device=torch.device("cpu"), record={"results": {}}, logs=Path("logs"))
    judge.report_generated(run, FSVAE(n_hidden=5))
    confusion = torch.tensor(run.record["results"]["generated"]["confusion"])
    assert confusion.sum(1).nonzero().ravel().equal(present)
    assert run.record["results"]["generated"]["accuracy_percent"]["n"] == 3 * judge.GENERATED
    rows = re.findall(r"^\| \*\*(\d)\*\*", capsys.readouterr().out, re.MULTILINE)
    assert rows == ["0", "3", "9"]


def test_the_classifier_is_of_log_probabilities_that_its_loss_is_made_of():
    model = Classifier()
    x, y = torch.rand(5, 3072), torch.eye(10)[[3, 1, 4, 1, 5]]
    log_q = model.log_q_y(x)
    torch.testing.assert_close(log_q.exp().sum(-1), torch.ones(5))
    torch.testing.assert_close(model.loss(x, y)[0], -(y * log_q).sum(-1).mean())
