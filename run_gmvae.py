"""Train and evaluate the VAE with a mixture of Gaussians as its prior, on MNIST (homework, Problems 2 and 3).

Commands:
    python run_gmvae.py                      train 20,000 steps, then report the negative ELBO
    python run_gmvae.py --train 0            load the newest checkpoint, report the negative IWAE bounds too
    python run_gmvae.py --k 50               use 50 components instead of 500
    tensorboard --logdir logs                the curves and pictures
"""

from functools import partial

import torch

from codebase import data
from codebase.models.gmvae import GMVAE
from codebase.runs.draw import draw_samples
from codebase.runs.flags import IW, Flag, hidden_flag, size
from codebase.runs.main import run_main
from codebase.runs.results import report
from codebase.runs.run import open_run, train_or_load

FLAGS = [
    Flag("z", 10, size, "dimension of the latent z", always=True),
    Flag("k", 500, size, "number of components of the prior", always=True),
    IW,
    hidden_flag(300),
]


def main(flags):
    images = data.load(flags.dataset, flags.data_dir).hold_out(flags.validation)
    with open_run("gmvae", flags, images) as run:
        if run.finished:
            return

        # Model and data.
        torch.manual_seed(flags.seed)
        model = GMVAE(z_dim=flags.z, k=flags.k, iw=flags.iw, x_dim=images.x_dim, n_hidden=flags.hidden).to(run.device)
        batches = data.binary_batches(images.x_train.to(run.device), flags.batch_size, flags.seed)
        splits = data.binary_splits(images, run.device)

        # Train or load, then report.
        train_or_load(run, model, batches, partial(draw_samples, run, model, splits), splits)
        report(run, model, splits)


if __name__ == "__main__":
    run_main(main, __doc__, FLAGS)
