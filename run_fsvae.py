"""Train and evaluate the fully supervised VAE on SVHN: style and content (homework, bonus problem).

Commands:
    python run_fsvae.py                      train; stop it with Ctrl-C when the digits in samples.png are good enough
    python run_fsvae.py --resume 1           resume it
    python run_fsvae.py --train 0 --full 1   load the newest checkpoint, draw, report the negative IWAE bounds too
    python run_fsvae.py --split train        train on SVHN's 73,257 training images, not on its 531,131 extra ones
    tensorboard --logdir logs --samples_per_plugin images=100       the curves, and the pictures of every checkpoint
"""

from functools import partial

import torch

from codebase import data
from codebase.errors import InputError
from codebase.judge import report_generated
from codebase.models.fsvae import FSVAE
from codebase.runs.draw import CLASSES, draw_latent, draw_samples_by_class
from codebase.runs.flags import DATASET, ITER_MAX, IW, Flag, hidden_flag, precision_flag, size, whole
from codebase.runs.main import run_main
from codebase.runs.pictures import save_grid
from codebase.runs.results import report
from codebase.runs.run import open_run, train_or_load

FLAGS = [
    Flag("z", 10, size, "dimension of the latent z"),
    hidden_flag(500),
    Flag("split", "extra", tuple(data.SVHN_SPLITS), "SVHN's images to train on"),
    Flag("dataset", "auto", str, DATASET.format("svhn"), True, "data={}"),
    IW,
    Flag("iter_max", 1_000_000, whole(1), ITER_MAX, False),
    Flag("keep", 3, whole(0), "keep only this many newest checkpoints, and that of the last step; 0: keep all", False),
    precision_flag("highest"),  # not compared with "medium" for this model (docs/speed.md)
]


def main(flags):
    if flags.split != "extra" and flags.dataset not in ("auto", "svhn"):
        raise InputError(f"--split {flags.split} is for SVHN: it cannot be used with --dataset {flags.dataset}.")
    images = data.load(flags.dataset, flags.data_dir, "svhn", flags.split).hold_out(flags.validation)
    data.require_labels(images)
    if images.name != "svhn":
        flags.split = None
    with open_run("fsvae", flags, images, usual_data="svhn") as run:
        if run.finished:
            return

        # Model and data.
        torch.manual_seed(flags.seed)
        sizes = {"classes": images.classes, "x_dim": images.x_dim, "n_hidden": flags.hidden}
        model = FSVAE(flags.z, flags.iw, **sizes).to(run.device)
        x, y = images.x_train.to(run.device), images.y_train.to(run.device)
        batches = data.labelled_batches(x, y, images.classes, flags.batch_size, flags.seed)
        splits = data.labelled_splits(images, run.device)

        # Train or load, then report.
        train_or_load(run, model, batches, partial(draw, run, model, splits), splits)
        report(run, model, splits, bits=True)
        report_generated(run, model)


def draw(run, model, splits, writer, step):
    """samples.png: every digit in twenty styles. reconstructions.png: for each class an image, its reconstruction, and
    every digit in its style. And the pictures of draw_latent. At most CLASSES classes are shown."""
    every_y = draw_samples_by_class(run, model, writer, step)  # (C, C)
    x, y = splits["subset"]
    label = y.argmax(-1)
    shown = label.unique()[:CLASSES]
    rows = torch.stack([(label == c).nonzero()[0, 0] for c in shown])
    x, y = data.scaled(x[rows]), y[rows]
    z = model.mean_z(x, y)  # (n, D)
    styles = model.mean_x(z.unsqueeze(1), every_y)  # (n, C, X)
    tiles = torch.cat([x.unsqueeze(1), model.reconstruct(x, y).unsqueeze(1), styles], dim=1)  # (n, 2 + C, X)
    legend = "each row: a test image, its reconstruction, and every digit in its style"
    save_grid(run, "reconstructions", tiles, writer, step, tiles.shape[1], legend)
    draw_latent(run, model, splits, writer, step)


if __name__ == "__main__":
    run_main(main, __doc__, FLAGS)
