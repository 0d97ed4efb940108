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
from step_time import MODELS, products
from torch.utils.flop_counter import FlopCounterMode

from codebase import data, evaluate

SAMPLES = 1000


def peak_memory(device):
    """The peak memory so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"IWAE-{SAMPLES}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("model     images·samples/s  share  of GFLOP/s  10,000 images, s  memory, GB")
    for name in flags.model:
        splits = data.labelled_splits if name == "fsvae" else data.binary_splits
        images = data.load("glyphs", usual="svhn" if name == "fsvae" else "mnist")
        split = tuple(t[: flags.images] for t in splits(images, device)["test"])
        torch.manual_seed(0)
        model = MODELS[name]().to(device)
        few = tuple(t[:20] for t in split)
        evaluate.iwae(model, few, (100,))
        with FlopCounterMode(display=False) as counter:
            evaluate.iwae(model, few, (100,))
        flops = counter.get_total_flops() / 2000  # per image and sample
        multiply = products(device)
        seconds, peaks = [], []
        for round_ in range(-1, flags.rounds):  # the first is not counted
            began = time.perf_counter()
            evaluate.iwae(model, split, (SAMPLES,))
            if round_ >= 0:
                seconds.append(time.perf_counter() - began)
            done, began = 0, time.perf_counter()
            while time.perf_counter() - began < 0.5:
                done += next(multiply)
            if round_ >= 0:
                peaks.append(done / (time.perf_counter() - began))
        rate = flags.images * SAMPLES / statistics.median(seconds)
        share = statistics.median(
            flags.images * SAMPLES * flops / s / peak for s, peak in zip(seconds, peaks, strict=True)
        )
        peak, memory = statistics.median(peaks) / 1e9, peak_memory(device) / 1e9
        print(f"{name:8} {rate:17,.0f} {share:6.0%} {peak:11.0f} {1e7 / rate:17.0f} {memory:11.2f}", flush=True)


if __name__ == "__main__":
    main()
