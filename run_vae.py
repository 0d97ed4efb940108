"""Train and evaluate the variational autoencoder on MNIST (homework, Problems 1 and 3).

Commands:
    python run_vae.py                        train 20,000 steps, then report the negative ELBO
    python run_vae.py --train 0              load the newest checkpoint, report the negative IWAE bounds too
    python run_vae.py --train 0 --full 1     the same, with the bounds on the whole test set too
    python run_vae.py --run 1                train another run, with another seed
    tensorboard --logdir logs                the curves and pictures
"""

from codebase import data, pictures
from codebase.models.vae import VAE
from codebase.runs import HIDDEN, IW, Flag, report, run_main, size, train_or_load

FLAGS = [Flag("z", 10, size, "dimension of the latent z", always=True), IW, HIDDEN]


def main(run):
    flags, images = run.flags, run.data
    model = VAE(z_dim=flags.z, iw=flags.iw, x_dim=images.x_dim, n_hidden=flags.hidden)
    batches = data.binary_batches(images.x_train, flags.batch_size, flags.seed)
    splits = data.binary_splits(images)
    train_or_load(run, model, batches, splits, lambda model: pictures.unlabelled(model, splits, images))
    report(run, model, splits)


if __name__ == "__main__":
    run_main("vae", main, FLAGS, __doc__)
