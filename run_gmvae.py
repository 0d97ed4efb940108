"""Train and evaluate the VAE with a mixture of Gaussians as its prior, on MNIST (homework, Problems 2 and 3).

Commands:
    python run_gmvae.py                      train 20,000 steps, then report the negative ELBO
    python run_gmvae.py --train 0            load the newest checkpoint, report the negative IWAE bounds too
    python run_gmvae.py --k 50               use 50 components instead of 500
    tensorboard --logdir logs                the curves and pictures
"""

from codebase import data, pictures
from codebase.models.gmvae import GMVAE
from codebase.runs import HIDDEN, IW, Flag, report, run_main, size, train_or_load

FLAGS = [
    Flag("z", 10, size, "dimension of the latent z", always=True),
    Flag("k", 500, size, "number of components of the prior", always=True),
    IW,
    HIDDEN,
]


def main(run):
    flags, images = run.flags, run.data
    model = GMVAE(z_dim=flags.z, k=flags.k, iw=flags.iw, x_dim=images.x_dim, n_hidden=flags.hidden)
    batches = data.binary_batches(images.x_train, flags.batch_size, flags.seed)
    splits = data.binary_splits(images)
    train_or_load(run, model, batches, splits, lambda model: pictures.unlabelled(model, splits, images))
    report(run, model, splits)


if __name__ == "__main__":
    run_main("gmvae", main, FLAGS, __doc__)
