"""Train and evaluate the VAE with a mixture of Gaussians as its prior, on MNIST (homework, Problems 2 and 3).

Commands:
    python run_gmvae.py                      train 20,000 steps, then report the negative ELBO
    python run_gmvae.py --train 0            load the newest checkpoint, report the negative IWAE bounds too
    python run_gmvae.py --k 50               with fifty components instead of 500
    tensorboard --logdir logs                the curves and pictures
"""

from functools import partial

import torch

from codebase import data
from codebase.experiment import draw_samples, open_run, run_main, train_or_load
from codebase.flags import IW, size
from codebase.models.gmvae import GMVAE
from codebase.results import report

FLAGS = [  # name, default, type, what it is
    ("z", 10, size, "dimension of the latent z"),
    ("k", 500, size, "components of the prior"),
    IW,
]


def main(flags):
    # Data, run.
    images = data.load(flags.dataset, flags.data_dir)
    run = open_run(f"gmvae_z={flags.z}_k={flags.k}", flags, images)
    splits = data.binary_splits(images, run.device)

    # Model.
    torch.manual_seed(flags.seed)
    model = GMVAE(z_dim=flags.z, k=flags.k, iw=flags.iw, x_dim=images.x_dim).to(run.device)

    # Train or load, then report.
    batches = partial(data.binary_batches, images.x_train.to(run.device), flags.batch_size, flags.seed)
    train_or_load(run, model, batches, partial(draw_samples, run, model, *splits["subset"]), splits)
    report(run, model, splits)
    return run


if __name__ == "__main__":
    run_main(main, __doc__, FLAGS)
