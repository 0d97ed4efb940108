"""Train and evaluate the semi-supervised VAE on MNIST with the labels of 100 images (homework, Problem 4).

Commands:
    python run_ssvae.py                      train 30,000 steps, then report the ELBO and the test accuracy
    python run_ssvae.py --gw 0               the supervised baseline: the classifier alone, on the labelled images
    python run_ssvae.py --train 0            load the newest checkpoint, report the negative IWAE bounds too
    python run_ssvae.py --labels 1000        with 1,000 labelled images, chosen by the seed
    tensorboard --logdir logs                the curves and pictures
"""

from functools import partial

import torch

from codebase import data, evaluate, pictures
from codebase.errors import InputError
from codebase.experiment import draw_styles, open_run, run_main, train_or_load
from codebase.flags import size, weight, whole
from codebase.models.ssvae import SSVAE
from codebase.results import confusion_table, report, report_accuracy

FLAGS = [  # name, default, type, what it is
    ("gw", 1, weight, "weight of the negative ELBO of all images in the loss; 0: the supervised baseline"),
    ("cw", 100, weight, "weight of the classifier's cross-entropy on the labelled images in the loss"),
    ("z", 64, size, "dimension of the latent z"),
    ("labels", None, size, "labelled images, as many of each class (default: ten of each; of MNIST the homework's)"),
    ("iter_max", 30000, whole(1), "training steps in all; with --train 0: the step of the checkpoint to load"),
]


def main(flags):
    # Data, run.
    if flags.gw == flags.cw == 0:
        raise InputError("--gw 0 --cw 0 leave nothing to train: give one of them a weight.")
    images = data.load(flags.dataset, flags.data_dir)
    data.require_labels(images)
    if flags.labels in (None, 10 * images.classes):
        flags.labels = 10 * images.classes
        flags.off_default.discard("labels")
    labelled = data.labelled_subset(images, flags.labels, flags.seed)
    run = open_run(f"ssvae_gw={flags.gw:0>3}_cw={flags.cw:0>3}", flags, images, own=("z", "labels"))
    splits = data.binary_splits(images, run.device) if flags.gw else {}
    x_test, y_test = images.x_test.to(run.device), images.y_test.to(run.device)

    # Model.
    torch.manual_seed(flags.seed)
    model = SSVAE(flags.gw, flags.cw, flags.z, classes=images.classes, x_dim=images.x_dim).to(run.device)

    # Train or load, then report.
    x, x_labelled = images.x_train.to(run.device), images.x_train[labelled].to(run.device)
    y_labelled = data.one_hot(images.y_train[labelled], images.classes).to(run.device)
    batches = partial(data.semi_supervised_batches, x, x_labelled, y_labelled, flags.batch_size, flags.seed)
    train_or_load(run, model, batches, partial(draw, run, model, x_test, y_test), splits)
    report(run, model, splits)
    report_accuracy(run, model, x_test, y_test)
    return run


def draw(run, model, x_test, y_test, writer, step):
    """Twenty styles in every digit; the test images that are taken most confidently for another digit; the accuracy.

    samples.png: row = digit, column = style z. mistakes.png: row = true digit, column = predicted digit, one of each.
    """
    if model.gen_weight:
        draw_styles(run, model, writer, step)
    log_q = evaluate.classify(model, x_test)
    worst = evaluate.mistakes(log_q, y_test)[: pictures.CLASSES, : pictures.CLASSES]
    there = (worst.flatten() >= 0).to(run.device)
    tiles = data.scaled(x_test[worst.flatten()]) * there.unsqueeze(1)  # black where there is no mistake
    pictures.show("mistakes", pictures.grid(tiles, run.data.shape, columns=len(worst)), run.logs, writer, step)
    if writer is not None:
        percent, confusion = evaluate.accuracy(log_q, y_test)
        writer.add_scalar("test/acc", percent.mean / 100, step)
        writer.add_text("test/confusion", f"accuracy {percent} %\n\n{confusion_table(confusion)}", step)


if __name__ == "__main__":
    run_main(main, __doc__, FLAGS)
