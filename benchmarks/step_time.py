"""Steps a second of a model's training: our loop against the textbook one, interleaved in one run.

    python benchmarks/step_time.py [--model vae|gmvae|ssvae] [--data_dir DIR] [--steps 300] [--rounds 7]

The textbook loop: a DataLoader over torchvision's MNIST with ToTensor() for every image, torch.bernoulli, Adam as it
comes, and loss.item() at every step; for the SSVAE, ten copies of each image and style, each concatenated with a label.
Ours: codebase.train on resident data. Same model, batch size, device and threads. A round times `steps` steps of each,
after as many unmeasured ones; printed are medians over the rounds, and the ratio.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from codebase import data
from codebase.models.gmvae import GMVAE
from codebase.models.ssvae import SSVAE
from codebase.models.vae import VAE
from codebase.train import adam, train
from codebase.utils import duplicate, gaussian_parameters, log_bernoulli_with_logits


class ConcatenatingSSVAE(SSVAE):
    """The same model with every image copied for each label, and the label concatenated to it."""

    def every_label(self, n):
        return self.every_y.expand(-1, n, -1).flatten(0, 1)  # row c * B + b: label c

    def posterior(self, x, y=None):
        x_y = torch.cat([duplicate(x, self.classes), self.every_label(len(x))], 1)
        return (each.unflatten(0, (self.classes, len(x))) for each in gaussian_parameters(self.enc.net(x_y)))

    def log_likelihood(self, x, z, y=None):
        z_y = torch.cat([z.flatten(0, 1), self.every_label(len(x))], 1)
        return log_bernoulli_with_logits(duplicate(x, self.classes), self.dec.net(z_y)).unflatten(0, z.shape[:2])


class ImagesOneByOne(MNIST):
    """torchvision's MNIST, whatever the images: its __getitem__ on tensors that are here already."""

    def __init__(self, x, y):
        self.data, self.targets, self.transform, self.target_transform = x.reshape(-1, 28, 28), y, ToTensor(), None


def textbook_loop(model, x, y, labelled, device):
    """Endless: trains one step at each next(). labelled: further images and one-hot labels of every batch, or None."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(ImagesOneByOne(x, y), batch_size=100, shuffle=True)
    while True:
        for images, _ in loader:
            batch = [torch.bernoulli(images.to(device).reshape(-1, 784))]
            if labelled:
                batch += [torch.bernoulli(labelled[0].to(device)), labelled[1].to(device)]
            optimizer.zero_grad()
            loss, _ = model.loss(*batch)
            loss.backward()
            optimizer.step()
            loss.item()
            yield


def our_loop(model, batches):
    """Returns step_many(n)."""
    optimizer = adam(model, 1e-3)

    def step_many(n):
        train(
            model,
            batches,
            optimizer,
            iter_max=n,
            iter_save=n + 1,
            save=lambda step: None,
            log=lambda step, values: None,
        )

    return step_many


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("vae", "gmvae", "ssvae"), default="vae")
    parser.add_argument("--data_dir", help="folder of MNIST; without it the built-in glyphs are used")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    flags = parser.parse_args()
    images = data.load("mnist" if flags.data_dir else "glyphs", flags.data_dir)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    # The two loops.
    x, labelled = images.x_train.to(device), None
    if flags.model == "ssvae":
        rows = data.labelled_subset(images, 100, seed=0)
        x_labelled, y_labelled = images.x_train[rows], images.y_train[rows]
        labelled = (x_labelled / 255, data.one_hot(y_labelled))
        batches = data.semi_supervised_batches(x, x_labelled.to(device), y_labelled.to(device), 100, seed=0)
    else:
        batches = data.binary_batches(x, 100, seed=0)
    ours = {"vae": VAE, "gmvae": GMVAE, "ssvae": SSVAE}[flags.model]
    theirs = ConcatenatingSSVAE if ours is SSVAE else ours
    textbook = textbook_loop(theirs().to(device), images.x_train, images.y_train, labelled, device)
    loops = {
        "textbook": lambda n: [next(textbook) for _ in range(n)],
        "ours": our_loop(ours().to(device), batches),
    }

    seconds = {name: [] for name in loops}
    for round_ in range(flags.rounds + 1):  # the first is not counted
        for name, loop in loops.items():
            began = time.perf_counter()
            loop(flags.steps)
            if round_:
                seconds[name].append(time.perf_counter() - began)
    threads = torch.get_num_threads()
    print(f"{flags.model}, batch 100, {images.name}, {device}, {threads} threads, torch {torch.__version__}")
    for name, values in seconds.items():
        rates = sorted(flags.steps / s for s in values)
        print(f"{name:10} {statistics.median(rates):7.0f} steps/s   ({rates[0]:.0f} to {rates[-1]:.0f})")
    ratios = sorted(a / b for a, b in zip(seconds["textbook"], seconds["ours"], strict=True))
    print(f"ratio      {statistics.median(ratios):7.2f}           ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
