"""Does the content of generated images follow the label? Asked of a classifier that was trained on the real images."""

from pathlib import Path

import torch

from codebase import InputError, checkpoints, evaluate
from codebase.data import CLASSES, labelled_batches, one_hot
from codebase.models.classifier import Classifier
from codebase.train import adam, train

STEPS = 2000  # of the classifier's training, with batches of 100
GENERATED = 200  # images of each class


def judge(data, device):
    """The classifier of a data set, trained on its training images the first time, and its accuracy on the test images.

    Returns (Classifier, Estimate in percent). Its weights are kept in checkpoints/classifier_data=..., and raise
    InputError where they are not a Classifier's.
    """
    path = Path("checkpoints", f"classifier_data={data.name}_train={len(data.x_train)}.pt")
    torch.manual_seed(0)
    classifier = Classifier().to(device)
    if path.exists():
        try:
            checkpoints.load_weights(classifier, path)
        except InputError as error:
            raise InputError(f"{error} Delete that file, and the classifier is trained again.") from error
    else:
        print(
            f"\ntraining a classifier on the real images, to judge the generated ones with; kept in {path}", flush=True
        )
        x, y = data.x_train.to(device), data.y_train.to(device)
        train(
            classifier,
            labelled_batches(x, y, min(100, len(x)), seed=0),
            adam(classifier, 1e-3),
            iter_max=STEPS,
            iter_save=STEPS,
            save=lambda step: None,
            log=lambda step, values: None,
        )
        path.parent.mkdir(exist_ok=True)
        checkpoints.write_atomically(path, lambda file: torch.save(classifier.state_dict(), file))
    percent, _ = evaluate.accuracy(evaluate.classify(classifier, data.x_test.to(device)), data.y_test.to(device))
    return classifier, percent


def generated_accuracy(model, classifier):
    """How often the classifier finds the label in clip(mu(y, z)), z ~ p(z), for GENERATED images of each label y.

    Returns an Estimate in percent and the counts (C, C): row = label, column = what the classifier sees.
    """
    y = torch.arange(CLASSES, device=next(model.parameters()).device).repeat_interleave(GENERATED)
    with evaluate.evaluating(model):
        x = model.sample_x(one_hot(y))
    return evaluate.accuracy(evaluate.classify(classifier, x), y)
