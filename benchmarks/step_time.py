"""Training steps per second of four loops, timed in turn.

    python benchmarks/step_time.py [--model vae gmvae ssvae fsvae] [--data_dir DIR] [--seconds 3] [--rounds 5]

textbook    a DataLoader whose every image goes through PIL and ToTensor(), torch.bernoulli, nn.ELU, PyTorch's
            cross-entropy and Adam, loss.item() at every step, and labels concatenated to copies of x
plain       training_step of codebase/train.py, with all data on the device
float32     the same step, compiled by codebase/fast.py; its preparation is not counted
bfloat16    the same with --precision bfloat16

All loops have the same model, batch size, device and threads. Prints medians over the rounds, the lowest and highest,
and the ratio to the textbook loop (the median of the ratios of each round). A step is a new batch, a forward and a
backward pass, a step of Adam. The data are MNIST in --data_dir, or the built-in glyphs; the FSVAE's always the glyphs.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import ToTensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from codebase import data, fast
from codebase.models.fsvae import FSVAE
from codebase.models.gmvae import GMVAE
from codebase.models.ssvae import SSVAE
from codebase.models.vae import VAE
from codebase.precision import training_precision
from codebase.train import Adam, training_step

# Several models are compiled in this process; without this, the compiler would make shapes dynamic after the first.
torch._dynamo.config.automatic_dynamic_shapes = False

MODELS = {"vae": VAE, "gmvae": GMVAE, "ssvae": SSVAE, "fsvae": FSVAE}
LOOPS = ("textbook", "plain", "float32", "bfloat16")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_textbook(model):
    """Give the model PyTorch's ELU and cross-entropy, and networks of x and y concatenated."""

    def of_concatenated(net):
        def forward(x, y=None):
            if y is None:
                return net.net(x)
            shape = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
            return net.net(torch.cat([x.expand(*shape, -1), y.expand(*shape, -1)], -1))

        return forward

    def log_likelihood(x, z, *y):
        logits = model.dec(z, *y)
        return -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)

    for net in (model.enc, model.dec):
        net.forward = of_concatenated(net)
        net.net[1], net.net[3] = nn.ELU(), nn.ELU()
    if not isinstance(model, FSVAE):
        model.log_likelihood = log_likelihood


def textbook_loop(model, images, prepare):
    """Endless: trains one step at each next(). prepare(x, y) makes the model's batch of grey values and labels."""
    make_textbook(model)
    optimizer, to_tensor = torch.optim.Adam(model.parameters(), lr=1e-3), ToTensor()
    pixels = images.x_train.reshape(-1, *images.shape).movedim(1, -1).squeeze(-1).numpy()  # as PIL takes them

    class OneByOne:
        def __len__(self):
            return len(pixels)

        def __getitem__(self, i):
            return to_tensor(Image.fromarray(pixels[i])), int(images.y_train[i])

    while True:
        for x, y in DataLoader(OneByOne(), batch_size=100, shuffle=True):
            optimizer.zero_grad()
            loss, _ = model.loss(*prepare(x.to(DEVICE).flatten(1), y.to(DEVICE)))
            loss.backward()
            optimizer.step()
            loss.item()
            yield 1


def our_loop(model, batches, loop):
    """Endless: trains a hundred steps at each next()."""
    optimizer, step = Adam(model.parameters(), 1e-3), training_step
    precision = "bfloat16" if loop == "bfloat16" else "float32"
    if loop != "plain":
        with training_precision(model, precision):
            step, how = fast.faster(step, model, optimizer, batches[0])
        print(f"{loop}: {how}", flush=True)
    while True:
        with training_precision(model, precision):
            points = [step(model, optimizer, batches[t]) for t in range(100)]
            torch.stack([point["train/loss"] for point in points]).tolist()  # waits for a GPU
        yield 100


def batches_of(name, images):
    """The batches of our loops, and the function `prepare` of the textbook loop."""
    x, y = images.x_train.to(DEVICE), images.y_train.to(DEVICE)
    if name == "fsvae":
        return data.labelled_batches(x, y, 10, 100, 0), lambda x, y: (x, data.one_hot(y, 10))
    if name == "ssvae":
        rows = data.labelled_subset(images, 100, seed=0)
        few, labels = data.scaled(x[rows]), data.one_hot(y[rows], 10)
        batches = data.semi_supervised_batches(x, x[rows], labels, 100, 0)
        return batches, lambda x, y: (torch.bernoulli(x), torch.bernoulli(few), labels)
    return data.binary_batches(x, 100, 0), lambda x, y: (torch.bernoulli(x),)


def time_model(name, flags):
    usual = "svhn" if name == "fsvae" else "mnist"
    images = data.load("mnist" if flags.data_dir and name != "fsvae" else "glyphs", flags.data_dir, usual)
    print(f"\n{name}, batch 100, {images.name}, {DEVICE}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    batches, prepare = batches_of(name, images)
    loops = {}
    for loop in LOOPS:
        torch.manual_seed(0)
        model = MODELS[name]().to(DEVICE)
        loops[loop] = textbook_loop(model, images, prepare) if loop == "textbook" else our_loop(model, batches, loop)
    rates = {loop: [] for loop in LOOPS}
    for round_ in range(-2, flags.rounds):  # the first two are not counted: compilation
        for loop, steps in loops.items():
            done, began = 0, time.perf_counter()
            while time.perf_counter() - began < (flags.seconds if round_ >= 0 else 0.5):
                done += next(steps)
            if round_ >= 0:
                rates[loop].append(done / (time.perf_counter() - began))
    print(f"{'loop':10} {'steps/s':>8} {'from to':>14} {'× textbook':>11}")
    for loop, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates["textbook"], strict=True))
        spread = f"{min(values):.0f} to {max(values):.0f}"
        print(f"{loop:10} {statistics.median(values):8.0f} {spread:>14} {ratio:11.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--data_dir", help="folder of MNIST; default: use the built-in glyphs")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    for name in flags.model:
        time_model(name, flags)


if __name__ == "__main__":
    main()
