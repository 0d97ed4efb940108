"""How much do the numbers on the homework's subset depend on how its 100 images were binarised?

    python benchmarks/binarisation.py --data_dir DIR

Computes a trained VAE's negative ELBO on the subset (checkpoints/model=vae_z=10_run=0000, or --checkpoint FILE) for 200
binarisations of the same images, and prints mean, standard deviation and range, in nats. In a comparison with another
binarisation of the subset, averaging over more runs does not remove this difference.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from codebase import data, evaluate
from codebase.models.vae import VAE
from codebase.runs import checkpoints


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--checkpoint", default="checkpoints/model=vae_z=10_run=0000/model-20000.pt")
    flags = parser.parse_args()
    images = data.load("mnist", flags.data_dir)
    model = VAE()
    checkpoints.load_weights(model, flags.checkpoint)
    grey = images.x_test[data.test_subset(images)]
    torch.manual_seed(0)
    nelbos = [evaluate.elbo(model, (data.binarise(grey),))["nelbo"].mean for _ in range(200)]
    usual = evaluate.elbo(model, data.binary_splits(images)["subset"])["nelbo"].mean
    print(f"negative ELBO on the subset, {len(nelbos)} binarisations: {statistics.mean(nelbos):.2f}, ", end="")
    print(f"standard deviation {statistics.stdev(nelbos):.2f}, {min(nelbos):.2f} to {max(nelbos):.2f}; ", end="")
    print(f"the one used here {usual:.2f}")


if __name__ == "__main__":
    main()
