"""Train and evaluate the fully supervised VAE on SVHN: style and content (homework, bonus problem).

Commands:
    python run_fsvae.py                      train; stop it with Ctrl-C when the digits in samples.png are good enough
    python run_fsvae.py --resume 1           resume it
    python run_fsvae.py --train 0 --full 1   load the newest checkpoint, draw, report the negative IWAE bounds too
    python run_fsvae.py --split train        train on SVHN's 73,257 training images, not on its 531,131 extra ones
    tensorboard --logdir logs --samples_per_plugin images=100       the curves, and the pictures of every checkpoint
"""

from codebase import data, pictures
from codebase.models.fsvae import FSVAE
from codebase.runs import DATASET, HIDDEN, IW, Flag, report, run_main, size, train_or_load

FLAGS = [
    Flag("z", 10, size, "dimension of the latent z"),
    HIDDEN,
    Flag("split", "extra", tuple(data.SVHN_SPLITS), "SVHN's images to train on"),
    DATASET,  # before --iw in the name of a run
    IW,
]


def main(run):
    flags, images = run.flags, run.data
    data.require_labels(images)
    sizes = {"classes": images.classes, "x_dim": images.x_dim, "n_hidden": flags.hidden}
    model = FSVAE(flags.z, flags.iw, **sizes)
    batches = data.labelled_batches(images.x_train, images.y_train, images.classes, flags.batch_size, flags.seed)
    splits = data.labelled_splits(images)

    def look(model):
        shown = pictures.samples_by_class(model, images) | pictures.reconstructions_by_class(model, splits, images)
        return shown | pictures.latent(model, splits, images)

    train_or_load(run, model, batches, splits, look)
    report(run, model, splits, bits=True)


if __name__ == "__main__":
    run_main("fsvae", main, FLAGS, __doc__, usual_data="svhn", iter_max=1_000_000, hidden=500)
