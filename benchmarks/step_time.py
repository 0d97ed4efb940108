"""Steps a second of a model's training: our loop against the textbook one, interleaved in one run.

    python benchmarks/step_time.py [--model vae|gmvae|ssvae|fsvae] [--data_dir DIR] [--steps 300] [--rounds 7]

The textbook loop: a DataLoader over torchvision's MNIST or SVHN with ToTensor() for every image, torch.bernoulli, Adam
as it comes, loss.item() at every step, and labels concatenated: for the SSVAE, to ten copies of each image and style.
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
from torchvision.datasets import MNIST, SVHN
from torchvision.transforms import ToTensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from codebase import data
from codebase.models.fsvae import FSVAE
from codebase.models.gmvae import GMVAE
from codebase.models.ssvae import SSVAE
from codebase.models.vae import VAE
from codebase.train import adam, train

MODELS = {"vae": VAE, "gmvae": GMVAE, "ssvae": SSVAE, "fsvae": FSVAE}


class GreyOneByOne(MNIST):
    """torchvision's MNIST, whatever the images: its __getitem__ on tensors that are here already."""

    def __init__(self, x, y):
        self.data, self.targets, self.transform, self.target_transform = x.reshape(-1, 28, 28), y, ToTensor(), None


class ColourOneByOne(SVHN):
    """The same of torchvision's SVHN."""

    def __init__(self, x, y):
        self.data, self.labels = x.reshape(-1, 3, 32, 32).numpy(), y.numpy()
        self.transform, self.target_transform = ToTensor(), None


def concatenate_labels(net):
    """Make an MLP take every x with a label as a copy of x with the label concatenated."""

    def forward(x, y):
        shape = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
        return net.net(torch.cat([x.expand(*shape, -1), y.expand(*shape, -1)], -1))

    net.forward = forward


def textbook_loop(model, images, prepare, device):
    """Endless: trains one step at each next(). prepare(x, y) makes the model's batch of grey values and labels."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(images, batch_size=100, shuffle=True)
    while True:
        for x, y in loader:
            optimizer.zero_grad()
            loss, _ = model.loss(*prepare(x.to(device).flatten(1), y.to(device)))
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
    parser.add_argument("--model", choices=MODELS, default="vae")
    parser.add_argument("--data_dir", help="folder of MNIST or SVHN; without it the built-in glyphs are used")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    flags = parser.parse_args()
    dataset = None if flags.data_dir else "glyphs"
    if flags.model == "fsvae":
        images = data.load_svhn(dataset or "svhn", flags.data_dir, "train")
    else:
        images = data.load(dataset or "mnist", flags.data_dir)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    # What a batch is, in the textbook and here.
    x, y = images.x_train.to(device), images.y_train.to(device)
    one_by_one = GreyOneByOne
    if flags.model in ("vae", "gmvae"):
        batches = data.binary_batches(x, 100, seed=0)

        def prepare(x, y):
            return (torch.bernoulli(x),)

    elif flags.model == "ssvae":
        rows = data.labelled_subset(images, 100, seed=0)
        x_labelled, y_labelled = data.scaled(x[rows]), data.one_hot(y[rows])
        batches = data.semi_supervised_batches(x, x[rows], y[rows], 100, seed=0)

        def prepare(x, y):
            return torch.bernoulli(x), torch.bernoulli(x_labelled), y_labelled

    else:
        one_by_one = ColourOneByOne
        batches = data.labelled_batches(x, y, 100, seed=0)

        def prepare(x, y):
            return x, data.one_hot(y)

    # The two loops.
    theirs, ours = (MODELS[flags.model]().to(device) for _ in range(2))
    if flags.model in ("ssvae", "fsvae"):
        concatenate_labels(theirs.enc)
        concatenate_labels(theirs.dec)
    textbook = textbook_loop(theirs, one_by_one(images.x_train, images.y_train), prepare, device)
    loops = {"textbook": lambda n: [next(textbook) for _ in range(n)], "ours": our_loop(ours, batches)}

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
