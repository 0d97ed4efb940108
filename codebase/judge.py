"""Judging generated images: a classifier trained on the real images says whether they show their labels."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from codebase import evaluate, processes
from codebase.data import labelled_batches, one_hot
from codebase.errors import InputError
from codebase.runs import checkpoints
from codebase.runs.files import write_atomically
from codebase.runs.results import add_results, confusion_table
from codebase.train import train

TRAINING_STEPS = 2000  # of the classifier's training, with batches of 100
GENERATED = 200  # generated images of each class


class Classifier(nn.Module):
    """A small convolutional q(y|x): three convolutions, each halving the image, and a linear layer.

    x in [0, 1]^X, images of `shape` (channels, height, width), channel first; C classes. Each image is first scaled to
    mean 0 and variance 1 (less for the faintest), so that faint digits are recognised, too.
    """

    def __init__(self, shape=(3, 32, 32), classes=10):
        super().__init__()
        channels, height, width = shape
        layers = [nn.LayerNorm(math.prod(shape), eps=4e-4, elementwise_affine=False), nn.Unflatten(-1, shape)]
        for channels_in, channels_out in ((channels, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
        n = 64 * math.ceil(height / 8) * math.ceil(width / 8)
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(n, classes))

    def log_q_y(self, x):
        """log q(y|x) of every y, in nats. x: (B, X). Returns (B, C)."""
        return self.net(x).log_softmax(-1)

    def loss(self, x, y):
        """The cross-entropy -log q(y|x), averaged over the batch, in nats, and {}: no curves. y: (B, C), one-hot."""
        return F.cross_entropy(self.net(x), y), {}


def judge(data, device):
    """The classifier of a data set, and its accuracy on the test images: (Classifier, Estimate in percent).

    The first time, it is trained on the training images; its weights are saved in checkpoints/classifier_data=...
    """
    path = Path("checkpoints", f"classifier_data={data.name}_train={len(data.x_train)}.pt")
    torch.manual_seed(0)
    classifier = Classifier(data.shape, data.classes).to(device)
    if processes.maximum(int(not path.exists())):  # if any process misses the file, all of them train
        print(f"\ntraining a classifier on the real images, to judge generated ones; saved as {path}", flush=True)
        x, y = data.x_train.to(device), data.y_train.to(device)
        batches = labelled_batches(x, y, data.classes, min(100, len(x)), seed=0)
        train(classifier, batches, TRAINING_STEPS)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lambda file: torch.save(classifier.state_dict(), file))
    else:
        try:
            checkpoints.load_weights(classifier, path)
        except InputError as error:
            raise InputError(f"{error} Delete that file; the classifier is then trained again.") from error
    percent, _ = evaluate.accuracy(evaluate.classify(classifier, data.x_test.to(device)), data.y_test.to(device))
    return classifier, percent


def generated_accuracy(model, classifier, y):
    """How often the classifier predicts the label y for x ~ p(x|y), GENERATED images of each y. y: (n,) int64.

    Of an FSVAE, x is clip(mu(y, z)). Returns an Estimate in percent and the counts (C, C): row = label, column = class.
    """
    with evaluate.evaluating(model):  # one class at a time, because there may be a thousand
        seen = [evaluate.classify(classifier, model.sample_x(GENERATED, each)) for each in one_hot(y, model.classes)]
    return evaluate.accuracy(torch.cat(seen), y.repeat_interleave(GENERATED))


def report_generated(run, model):
    """Print how often the classifier finds the label in generated images, and add it to results.json."""
    classifier, own = judge(run.data, run.device)
    trained = run.data.y_train.unique()  # other labels mean nothing to the model
    percent, confusion = generated_accuracy(model, classifier, trained.to(run.device))
    print(f"\nGenerated images by label (row) and class seen by a classifier (column)\n{confusion_table(confusion)}")
    print(f"Generated digits that show their label: {percent} % of {percent.n:,}, by that classifier,")
    print(f"whose accuracy on the {own.n:,} real test images is {own} %", flush=True)
    numbers = {"accuracy_percent": percent.record(), "classifier_percent": own.record()}
    add_results(run, "generated", **numbers, confusion=confusion.tolist())
