"""Train and evaluate the semi-supervised VAE on MNIST with the labels of 100 images (homework, Problem 4).

Commands:
    python run_ssvae.py                      train 30,000 steps, then report the negative ELBO and the accuracy
    python run_ssvae.py --gw 0               the supervised baseline: only the classifier, on the labelled images
    python run_ssvae.py --train 0            load the newest checkpoint, report the negative IWAE bounds too
    python run_ssvae.py --labels 1000        use 1,000 labelled images, chosen by the seed
    tensorboard --logdir logs                the curves and pictures
"""

from functools import partial

import torch

from codebase import data, evaluate
from codebase.errors import InputError
from codebase.models.ssvae import SSVAE
from codebase.runs.draw import CLASSES, draw_latent, draw_samples_by_class
from codebase.runs.flags import ITER_MAX, Flag, hidden_flag, size, weight, whole
from codebase.runs.main import run_main
from codebase.runs.pictures import save_grid
from codebase.runs.results import confusion_table, report, report_accuracy
from codebase.runs.run import open_run, train_or_load

FLAGS = [
    Flag("gw", 1, weight, "weight of the negative ELBO; 0: the supervised baseline", in_name="gw={:0>3}", always=True),
    Flag("cw", 100, weight, "weight of the classifier's cross-entropy", in_name="cw={:0>3}", always=True),
    Flag("z", 64, size, "dimension of the latent z"),
    hidden_flag(300),
    Flag("labels", None, size, "labelled images, equally many per class (default: ten each; for MNIST the homework's)"),
    Flag("iter_max", 30000, whole(1), ITER_MAX, False),
]


def main(flags):
    if flags.gw == flags.cw == 0:
        raise InputError("--gw 0 --cw 0 leave nothing to train: one of them must be above 0.")
    images = data.load(flags.dataset, flags.data_dir).hold_out(flags.validation)
    data.require_labels(images)
    rows = data.labelled_subset(images, flags.labels or 10 * images.classes, flags.seed)
    with open_run("ssvae", flags, images) as run:
        if run.finished:
            return

        # Model and data.
        torch.manual_seed(flags.seed)
        sizes = {"classes": images.classes, "x_dim": images.x_dim, "n_hidden": flags.hidden}
        model = SSVAE(flags.gw, flags.cw, flags.z, **sizes).to(run.device)
        x, x_labelled = images.x_train.to(run.device), images.x_train[rows].to(run.device)
        y_labelled = data.one_hot(images.y_train[rows], images.classes).to(run.device)
        batches = data.semi_supervised_batches(x, x_labelled, y_labelled, flags.batch_size, flags.seed)
        splits = data.binary_splits(images, run.device) if flags.gw else {}
        classified = {"test": (images.x_test.to(run.device), images.y_test.to(run.device))}
        if images.n_validation:
            classified["validation"] = images.x_validation.to(run.device), images.y_validation.to(run.device)

        # Train or load, then report.
        train_or_load(run, model, batches, partial(draw, run, model, splits, classified), splits)
        report(run, model, splits)
        report_accuracy(run, model, classified)


def draw(run, model, splits, classified, writer, step):
    """samples.png: row = digit, column = style z. mistakes.png: row = true digit, column = predicted digit; each
    tile is the most confident such mistake on the test images, black if there is none. And the pictures of draw_latent.
    Also logs the accuracy."""
    if model.gen_weight:
        draw_samples_by_class(run, model, writer, step)
        draw_latent(run, model, splits, writer, step)
    x_test, y_test = classified["test"]
    log_q = evaluate.classify(model, x_test)
    worst = evaluate.mistakes(log_q, y_test)[:CLASSES, :CLASSES]
    there = (worst.flatten() >= 0).to(run.device)
    tiles = data.scaled(x_test[worst.flatten()]) * there.unsqueeze(1)
    legend = "row = true digit, column = predicted digit; the most confident such mistake, black if there is none"
    save_grid(run, "mistakes", tiles, writer, step, len(worst), legend)
    for name, (x, y) in classified.items():
        percent, confusion = evaluate.accuracy(log_q if name == "test" else evaluate.classify(model, x), y)
        if writer is not None:
            writer.add_scalar(f"{name}/acc", percent.mean / 100, step)
            writer.add_text(f"{name}/confusion", f"accuracy {percent} %\n\n{confusion_table(confusion)}", step)


if __name__ == "__main__":
    run_main(main, __doc__, FLAGS)
