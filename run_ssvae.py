"""Train and evaluate the semi-supervised VAE on MNIST with the labels of 100 images (homework, Problem 4).

Commands:
    python run_ssvae.py                      train 30,000 steps, then report the negative ELBO and the accuracy
    python run_ssvae.py --gw 0               the supervised baseline: only the classifier, on the labelled images
    python run_ssvae.py --train 0            load the newest checkpoint, report the negative IWAE bounds too
    python run_ssvae.py --labels 1000        use 1,000 labelled images, chosen by the seed
    python run_ssvae.py --lw 0.00167 --cw 10    the objective of Kingma et al. (2014), docs/writeup.md
    tensorboard --logdir logs                the curves and pictures
"""

import torch

from codebase import data, evaluate, pictures
from codebase.errors import InputError
from codebase.models.ssvae import SSVAE
from codebase.runs import HIDDEN, Flag, report, report_confusion, run_main, size, train_or_load, weight

FLAGS = [
    Flag("gw", 1, weight, "weight of the negative ELBO; 0: the supervised baseline", in_name="gw={:0>3}", always=True),
    Flag("cw", 100, weight, "weight of the classifier's cross-entropy", in_name="cw={:0>3}", always=True),
    Flag("lw", 0, weight, "weight of the negative ELBO(x, y) of labelled images; above 0, --gw is of the others only"),
    Flag("z", 64, size, "dimension of the latent z"),
    HIDDEN,
    Flag("labels", None, size, "labelled images, equally many per class (default: ten each; for MNIST the homework's)"),
]


def main(run):
    flags, images = run.flags, run.data
    if flags.gw == flags.cw == flags.lw == 0:
        raise InputError("--gw 0 --cw 0 leave nothing to train: one of them, or --lw, must be above 0.")
    data.require_labels(images)
    sizes = {"classes": images.classes, "x_dim": images.x_dim, "n_hidden": flags.hidden}
    model = SSVAE(flags.gw, flags.cw, flags.z, labelled_weight=flags.lw, **sizes)
    rows = data.labelled_subset(images, flags.labels or 10 * images.classes, flags.seed)
    x_labelled, y_labelled = images.x_train[rows], data.one_hot(images.y_train[rows], images.classes)
    x = images.x_train
    if flags.lw:  # the labelled images have their own bound
        x = x[torch.isin(torch.arange(len(x)), rows, invert=True)]
    batches = data.semi_supervised_batches(x, x_labelled, y_labelled, flags.batch_size, flags.seed)
    generative = flags.gw or flags.lw
    splits = data.binary_splits(images) if generative else {}
    classified = {"test": (images.x_test, images.y_test)}
    if images.n_validation:
        classified["validation"] = images.x_validation, images.y_validation

    def look(model):
        shown = {}
        if generative:
            shown = pictures.samples_by_class(model, images)
            shown |= pictures.reconstructions_by_class(model, splits, images) | pictures.latent(model, splits, images)
        for name, (x, y) in classified.items():
            log_q = evaluate.classify(model, x)
            shown[f"{name}/accuracy_percent"], _ = evaluate.accuracy(log_q, y)
            if name == "test":
                shown |= pictures.mistakes(log_q, images)
        return shown

    train_or_load(run, model, batches, splits, look)
    report(run, model, splits)
    report_confusion(run, model)


if __name__ == "__main__":
    run_main("ssvae", main, FLAGS, __doc__, iter_max=30000)
