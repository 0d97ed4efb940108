"""Steps a second of the VAE's training: our loop against the textbook one, interleaved in one run.

    python benchmarks/step_time.py [--data_dir DIR] [--steps 300] [--rounds 7]

The textbook loop: a DataLoader over torchvision's MNIST with ToTensor() for every image, torch.bernoulli, Adam as it
comes, and loss.item() at every step. Ours: codebase.train on resident data. Same model, batch size, device and threads.
A round times `steps` steps of each, after as many unmeasured ones; printed are medians over the rounds, and the ratio.
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
from codebase.models.vae import VAE
from codebase.train import adam, train


class ImagesOneByOne(MNIST):
    """torchvision's MNIST, whatever the images: its __getitem__ on tensors that are here already."""

    def __init__(self, x, y):
        self.data, self.targets, self.transform, self.target_transform = x.reshape(-1, 28, 28), y, ToTensor(), None


def textbook_loop(x, y, device):
    """Endless: trains one step at each next()."""
    model = VAE().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(ImagesOneByOne(x, y), batch_size=100, shuffle=True)
    while True:
        for images, _ in loader:
            optimizer.zero_grad()
            loss, _, _ = model.negative_elbo_bound(torch.bernoulli(images.to(device).reshape(-1, 784)))
            loss.backward()
            optimizer.step()
            loss.item()
            yield


def our_loop(x, device):
    """Returns step_many(n)."""
    model = VAE().to(device)
    optimizer = adam(model, 1e-3)
    batches = data.binary_batches(x.to(device), 100, seed=0)

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
    parser.add_argument("--data_dir", help="folder of MNIST; without it the built-in glyphs are used")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    flags = parser.parse_args()
    images = data.load("mnist" if flags.data_dir else "glyphs", flags.data_dir)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    textbook, ours = textbook_loop(images.x_train, images.y_train, device), our_loop(images.x_train, device)
    loops = {"textbook": lambda n: [next(textbook) for _ in range(n)], "ours": ours}

    seconds = {name: [] for name in loops}
    for round_ in range(flags.rounds + 1):  # the first is not counted
        for name, loop in loops.items():
            began = time.perf_counter()
            loop(flags.steps)
            if round_:
                seconds[name].append(time.perf_counter() - began)
    print(f"VAE, batch 100, {images.name}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, values in seconds.items():
        rates = sorted(flags.steps / s for s in values)
        print(f"{name:10} {statistics.median(rates):7.0f} steps/s   ({rates[0]:.0f} to {rates[-1]:.0f})")
    ratios = sorted(a / b for a, b in zip(seconds["textbook"], seconds["ours"], strict=True))
    print(f"ratio      {statistics.median(ratios):7.2f}           ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
