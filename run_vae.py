"""Train and evaluate the variational autoencoder on MNIST (homework, Problems 1 and 3).

Commands:
    python run_vae.py                        train 20,000 steps, then report the negative ELBO
    python run_vae.py --train 0              load the newest checkpoint, report the negative IWAE bounds too
    python run_vae.py --train 0 --full 1     the same, the bounds on the whole test set too
    python run_vae.py --run 1                another run, with another seed
    tensorboard --logdir logs                the curves and pictures
"""

from functools import partial

import torch

from codebase import data
from codebase.experiment import draw_samples, open_run, run_main, train_or_load
from codebase.flags import IW, size
from codebase.models.vae import VAE
from codebase.results import report

FLAGS = [  # name, default, type, what it is
    ("z", 10, size, "dimension of the latent z"),
    IW,
]


def main(flags):
    # Data, run.
    images = data.load(flags.dataset, flags.data_dir)
    run = open_run(f"vae_z={flags.z}", flags, images)
    splits = data.binary_splits(images, run.device)

    # Model.
    torch.manual_seed(flags.seed)
    model = VAE(z_dim=flags.z, iw=flags.iw, x_dim=images.x_dim).to(run.device)

    # Train or load, then report.
    batches = partial(data.binary_batches, images.x_train.to(run.device), flags.batch_size, flags.seed)
    train_or_load(run, model, batches, partial(draw_samples, run, model, *splits["subset"]), splits)
    report(run, model, splits)
    return run


if __name__ == "__main__":
    run_main(main, __doc__, FLAGS)
