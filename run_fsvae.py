"""Train and evaluate the fully supervised VAE on SVHN: style and content (homework, bonus problem).

Commands:
    python run_fsvae.py                      train; Ctrl-C stops it when the digits in samples.png please you
    python run_fsvae.py --resume 1           go on from there
    python run_fsvae.py --train 0 --full 1   load the newest checkpoint, draw, report the negative IWAE bounds too
    python run_fsvae.py --split train        on SVHN's 73,257 images for training instead of its 531,131 extra ones
    tensorboard --logdir logs --samples_per_plugin images=100       the curves, and the pictures of every checkpoint
"""

from functools import partial

import torch

from codebase import content, data, pictures
from codebase.errors import InputError
from codebase.experiment import draw_styles, open_run, run_main, train_or_load
from codebase.flags import IW, precision, size, text, whole
from codebase.models.fsvae import FSVAE
from codebase.results import report, report_content

FLAGS = [  # name, default, type or choices, what it is
    ("dataset", "auto", text, "auto, svhn, glyphs, or FILE.npz with x_train, y_train, x_test, y_test"),
    ("split", "extra", tuple(data.SVHN_SPLITS), "SVHN's training images: extra, train, or train+extra"),
    ("z", 10, size, "dimension of the latent z"),
    ("iter_max", 1_000_000, whole(1), "training steps in all; with --train 0: the step of the checkpoint to load"),
    ("keep", 3, whole(0), "checkpoints to keep, the newest, beside that of the last step; 0: all"),
    IW,
    precision("highest"),  # "medium" is the default of the models for which docs/speed.md compares them over seeds
]


def main(flags):
    # Data, run.
    if "split" in flags.off_default and flags.dataset not in ("auto", "svhn"):
        raise InputError(
            f"--split {flags.split} chooses among SVHN's files: it does not go with --dataset {flags.dataset}."
        )
    images = data.load(flags.dataset, flags.data_dir, "svhn", flags.split)
    data.require_labels(images)
    if images.name != "svhn":
        flags.split = None  # there is none, in the name as in the results
        flags.off_default.discard("split")
    run = open_run("fsvae", flags, images, own=("z", "split"), usual_data="svhn")
    splits = data.labelled_splits(images, run.device)

    # Model.
    torch.manual_seed(flags.seed)
    model = FSVAE(z_dim=flags.z, iw=flags.iw, classes=images.classes, x_dim=images.x_dim).to(run.device)

    # Train or load, then report.
    x, y = images.x_train.to(run.device), images.y_train.to(run.device)
    batches = partial(data.labelled_batches, x, y, images.classes, flags.batch_size, flags.seed)
    train_or_load(run, model, batches, partial(draw, run, model, *splits["subset"]), splits)
    report(run, model, splits, bits=True)
    report_content(run, model, content.judge(images, run.device))
    return run


def draw(run, model, x, y, writer, step):
    """samples.png: twenty styles in every digit. reconstructions.png: an image of each class, what the model makes of
    it, and its style in every digit. Of many classes the first pictures.CLASSES."""
    every_y = draw_styles(run, model, writer, step)  # (C, C)
    label = y.argmax(-1)
    shown = label.unique()[: pictures.CLASSES]  # an image of each class there is
    rows = torch.stack([(label == c).nonzero()[0, 0] for c in shown])
    x, y = data.scaled(x[rows]), y[rows]
    z = model.posterior(x, y)[0]  # (n, D)
    styles = model.mean_x(z.unsqueeze(1), every_y)  # (n, C, X)
    tiles = torch.cat([x.unsqueeze(1), model.reconstruct(x, y).unsqueeze(1), styles], dim=1)  # (n, 2 + C, X)
    pictures.show("reconstructions", pictures.grid(tiles, run.data.shape, tiles.shape[1]), run.logs, writer, step)


if __name__ == "__main__":
    run_main(main, __doc__, FLAGS)
