"""Time and memory of evaluating the IWAE bound, and its share of the machine's speed.

    python benchmarks/evaluation_time.py [--model vae gmvae ssvae fsvae] [--images 200] [--rounds 5]

Times evaluate.iwae with m = 1000 samples of each image, with an untrained model, on the built-in glyphs: the time does
not depend on either. Prints medians over the rounds: images·samples per second; the share of the rate at which this
machine multiplies large float32 matrices, measured in the same rounds; the time that 10,000 images would take; the peak
memory of the process so far (on a GPU, of the tensors).
"""

import argparse
import statistics
import sys
import time

import torch
from step_time import DEVICE, MODELS
from torch.utils.flop_counter import FlopCounterMode

from codebase import data, evaluate
from codebase.precision import float32_products

SAMPLES = 1000


def rate_of_products(size):
    """Floating-point operations per second of products of large float32 matrices, in half a second."""
    a, b = torch.randn(2, size, size, device=DEVICE)
    done, began = 0, time.perf_counter()
    with float32_products(DEVICE):
        while time.perf_counter() - began < 0.5:
            (a @ b)[0, 0].item()
            done += 2 * size**3
    return done / (time.perf_counter() - began)


def peak_memory():
    """The peak memory so far, in bytes."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    print(f"IWAE-{SAMPLES}, {DEVICE}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("model     images·samples/s  share  of GFLOP/s  10,000 images, s  memory, GB")
    for name in flags.model:
        splits = data.labelled_splits if name == "fsvae" else data.binary_splits
        images = data.load("glyphs", usual="svhn" if name == "fsvae" else "mnist").to(DEVICE)
        split = tuple(t[: flags.images] for t in splits(images)["test"])
        torch.manual_seed(0)
        model = MODELS[name]().to(DEVICE)
        few = tuple(t[:20] for t in split)
        with FlopCounterMode(display=False) as counter:
            evaluate.iwae(model, few, (100,))
        flops = counter.get_total_flops() / 2000  # per image and sample
        rates, peaks = [], []
        for _ in range(1 + flags.rounds):
            began = time.perf_counter()
            evaluate.iwae(model, split, (SAMPLES,))
            rates.append(flags.images * SAMPLES / (time.perf_counter() - began))
            peaks.append(rate_of_products(1024 if DEVICE.type == "cpu" else 8192))
        share = statistics.median(flops * a / b for a, b in zip(rates[1:], peaks[1:], strict=True))  # not the first
        rate, peak = statistics.median(rates[1:]), statistics.median(peaks[1:]) / 1e9
        memory = peak_memory() / 1e9
        print(f"{name:8} {rate:17,.0f} {share:6.0%} {peak:11.0f} {1e7 / rate:17.0f} {memory:11.2f}", flush=True)


if __name__ == "__main__":
    main()
