"""Training steps per second of several loops, timed in turn in one run, and their share of the machine's speed.

    python benchmarks/step_time.py [--model vae gmvae ssvae fsvae] [--data_dir DIR] [--seconds 3] [--rounds 5]

textbook        a DataLoader over torchvision's MNIST or SVHN with ToTensor() for every image, torch.bernoulli, nn.ELU,
                PyTorch's cross-entropy and Adam with its defaults, loss.item() at every step, and concatenated labels:
                for the SSVAE, to ten copies of each image and style
plain           the loop of codebase/train.py, with all data on the device
compiled        the same with the compiled step of codebase/fast.py; its preparation is not counted
bfloat16        compiled, with --precision bfloat16
JAX             benchmarks/jax_scan.py, if jax is installed (pip install jax); the VAE and the GMVAE only

All loops have the same model, batch size, device and threads. A round times each for some seconds. Prints medians over
the rounds, the lowest and highest, the ratio to the textbook loop (the median of the ratios of each round), the seconds
that the model's default number of steps would take, and the share of the rate at which this machine multiplies large
float32 matrices, measured in the same rounds. A step is a new batch, a forward and a backward pass, a step of Adam.
"""

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import MNIST, SVHN
from torchvision.transforms import ToTensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from codebase import data, fast
from codebase.models.fsvae import FSVAE
from codebase.models.gmvae import GMVAE
from codebase.models.ssvae import SSVAE
from codebase.models.vae import VAE
from codebase.precision import float32_products, training_precision
from codebase.train import Adam, training_step, updates, values_of

# Several models are compiled in this process; without this, the compiler would make shapes dynamic after the first.
torch._dynamo.config.automatic_dynamic_shapes = False

MODELS = {"vae": VAE, "gmvae": GMVAE, "ssvae": SSVAE, "fsvae": FSVAE}
# Steps of a default run; for the FSVAE, of a short one.
DEFAULT_STEPS = {"vae": 20_000, "gmvae": 20_000, "ssvae": 30_000, "fsvae": 10_000}


class GreyOneByOne(MNIST):
    """torchvision's MNIST with any images: its __getitem__ on given tensors."""

    def __init__(self, x, y):
        self.data, self.targets, self.transform, self.target_transform = x.reshape(-1, 28, 28), y, ToTensor(), None


class ColourOneByOne(SVHN):
    """The same for torchvision's SVHN."""

    def __init__(self, x, y):
        self.data, self.labels = x.reshape(-1, 3, 32, 32).numpy(), y.numpy()
        self.transform, self.target_transform = ToTensor(), None


class Textbook:
    """Makes our model the textbook's: labels concatenated to copies of x, PyTorch's ELU and cross-entropy."""

    def __init__(self, model):
        for net in (model.enc, model.dec):
            net.forward = partial(self.mlp, net)
            for i in (1, 3):
                net.net[i] = nn.ELU()
        if not isinstance(model, FSVAE):
            model.log_likelihood = partial(self.log_likelihood, model)

    def mlp(self, net, x, y=None):
        if y is None:
            return net.net(x)
        shape = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
        return net.net(torch.cat([x.expand(*shape, -1), y.expand(*shape, -1)], -1))

    def log_likelihood(self, model, x, z, *y):
        logits = model.dec(z, *y)
        return -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


def textbook_loop(model, images, prepare, device):
    """Endless: trains one step at each next(). prepare(x, y) makes the model's batch of grey values and labels."""
    Textbook(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(images, batch_size=100, shuffle=True)
    while True:
        for x, y in loader:
            optimizer.zero_grad()
            loss, _ = model.loss(*prepare(x.to(device).flatten(1), y.to(device)))
            loss.backward()
            optimizer.step()
            loss.item()
            yield 1


def our_loop(model, batches, faster, precision="float32"):
    """Endless: trains a hundred steps at each next()."""
    optimizer, step = Adam(model.parameters(), 1e-3), training_step
    if faster:
        with training_precision(model, precision):
            step, how = fast.faster(step, model, optimizer, batches[0])
        print(f"{precision}: {how}", flush=True)
    while True:
        with training_precision(model, precision):
            points = [point for _, point in updates(model, batches, range(100), optimizer, step)]
            values_of(points, 100)
        yield 100


def products(device):
    """Endless: multiplies large float32 matrices by PyTorch's fastest way; yields the number of operations."""
    n = 1024 if device.type == "cpu" else 8192
    a, b = torch.randn(2, n, n, device=device)
    while True:
        with float32_products(device):
            c = a @ b
            c[0, 0].item()
        yield 2 * n**3


def time_model(name, flags, device):
    if name == "fsvae":
        images = data.load("svhn" if flags.data_dir and flags.svhn else "glyphs", flags.data_dir, "svhn", "train")
    else:
        images = data.load("mnist" if flags.data_dir else "glyphs", flags.data_dir)

    # The batches, of the textbook loop and of ours.
    x, y = images.x_train.to(device), images.y_train.to(device)
    one_by_one = GreyOneByOne
    if name in ("vae", "gmvae"):
        batches = data.binary_batches(x, 100, 0)

        def prepare(x, y):
            return (torch.bernoulli(x),)

    elif name == "ssvae":
        rows = data.labelled_subset(images, 100, seed=0)
        x_labelled, y_labelled = data.scaled(x[rows]), data.one_hot(y[rows], 10)
        batches = data.semi_supervised_batches(x, x[rows], y_labelled, 100, 0)

        def prepare(x, y):
            return torch.bernoulli(x), torch.bernoulli(x_labelled), y_labelled

    else:
        one_by_one = ColourOneByOne
        batches = data.labelled_batches(x, y, 10, 100, 0)

        def prepare(x, y):
            return x, data.one_hot(y, 10)

    # The loops.
    def ours(**how):
        torch.manual_seed(0)
        return our_loop(MODELS[name]().to(device), batches, **how)

    print(f"\n{name}, batch 100, {images.name}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    torch.manual_seed(0)
    model = MODELS[name]().to(device)
    loops = {
        "textbook": textbook_loop(model, one_by_one(images.x_train, images.y_train), prepare, device),
        "plain": ours(faster=False),
        "compiled": ours(faster=True),
        "bfloat16": ours(faster=True, precision="bfloat16"),
    }
    if name in ("vae", "gmvae"):
        try:
            import jax_scan

            loops["JAX"] = jax_scan.epochs(images.x_train.numpy(), mixture=name == "gmvae")
        except ImportError:
            print("jax is not installed")
    loops["products"] = products(device)
    model = MODELS[name]().to(device)
    with FlopCounterMode(display=False) as counter:
        training_step(model, Adam(model.parameters(), 1e-3), batches[0])
    flops = counter.get_total_flops()

    # The rounds.
    rates = {loop: [] for loop in loops}
    for round_ in range(-2, flags.rounds):  # the first two are not counted: compilation
        for loop, steps in loops.items():
            done, began = 0, time.perf_counter()
            while time.perf_counter() - began < (flags.seconds if round_ >= 0 else 0.5):
                done += next(steps)
            if round_ >= 0:
                rates[loop].append(done / (time.perf_counter() - began))
    peak = statistics.median(rates.pop("products"))
    print(f"{flops / 1e9:.2f} GFLOP a step; large products of float32 at {peak / 1e9:.0f} GFLOP/s")
    print(f"{'loop':10} {'steps/s':>8} {'from to':>14} {'× textbook':>11} {'default run, s':>15} {'share':>6}")
    for loop, values in rates.items():
        rate = statistics.median(values)
        ratio = statistics.median(a / b for a, b in zip(values, rates["textbook"], strict=True))
        spread = f"{min(values):.0f} to {max(values):.0f}"
        run, share = DEFAULT_STEPS[name] / rate, rate * flops / peak
        print(f"{loop:10} {rate:8.0f} {spread:>14} {ratio:11.2f} {run:15.0f} {share:6.0%}")
    if "JAX" in rates:
        for loop in ("compiled", "bfloat16"):
            ratio = statistics.median(a / b for a, b in zip(rates[loop], rates["JAX"], strict=True))
            print(f"{loop} / JAX  {ratio:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--data_dir", help="folder of MNIST; default: use the built-in glyphs")
    parser.add_argument("--svhn", action="store_true", help="SVHN's train split is in --data_dir, too")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in flags.model:
        time_model(name, flags, device)


if __name__ == "__main__":
    main()
