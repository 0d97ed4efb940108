"""Accuracy and time of three ways to compute log p(z) of a mixture of 500 Gaussians. codebase.utils uses the third.

    python benchmarks/log_normal_mixture.py

differences: z - m for all pairs, float32. expanded, float32: the square as a matrix product. expanded, float64: that
in float64, as in log_normal_mixture. Errors are the largest over rows, in nats, against the differences in float64.
Times are of forward and backward with 100 rows, the median of interleaved rounds, next to a training step of the GMVAE.
"""

import math
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from codebase.models.gmvae import GMVAE
from codebase.train import Adam
from codebase.utils import LOG_2PI, log_mean_exp, log_normal, log_normal_mixture


def differences(z, m, v):
    return log_mean_exp(log_normal(z.unsqueeze(-2), m, v), dim=-1)


def expanded_float32(z, m, v):
    weights = torch.cat([-0.5 / v, m / v], -1)
    constant = -0.5 * (m.square() / v + v.log() + LOG_2PI).sum(-1)
    return log_mean_exp(torch.cat([z.square(), z], -1) @ weights.mT + constant, dim=-1)


FORMS = {"differences": differences, "expanded, float32": expanded_float32, "expanded, float64": log_normal_mixture}


def draw(smallest, largest, far, rows=1000, k=500, d=10):
    """Rows z, half of them near a component, and components (m, v) with log-uniform variances and |m| up to far."""
    m = far * (2 * torch.rand(k, d) - 1)
    v = torch.empty(k, d).uniform_(math.log(smallest), math.log(largest)).exp()
    z = 10 * (2 * torch.rand(rows, d) - 1)
    near = torch.randint(k, (rows // 2,))
    z[: rows // 2] = m[near] + v[near].sqrt() * torch.randn(rows // 2, d)
    return z, m, v


def main():
    torch.manual_seed(0)
    cases = {"as in training": (1e-3, 10, 10), "extreme": (1e-6, 1e3, 500)}
    print(f"{'largest error, nats (relative)':34}" + "".join(f"{case:>26}" for case in cases))
    for name, form in FORMS.items():
        line = f"{name:34}"
        for parameters in cases.values():
            z, m, v = draw(*parameters)
            exact = differences(z.double(), m.double(), v.double())
            error = (form(z, m, v) - exact).abs()
            line += f"{f'{error.max():.1e} ({(error / exact.abs()).max():.0e})':>26}"
        print(line)

    model = GMVAE()
    optimizer = Adam(model.parameters(), 1e-3)
    x = torch.randint(0, 2, (100, 784)).float()

    def step():
        optimizer.zero_grad()
        model.loss(x)[0].backward()
        optimizer.step()

    z = torch.randn(100, 10, requires_grad=True)
    calls = {name: lambda form=form: form(z, *model.prior()).sum().backward() for name, form in FORMS.items()}
    calls["a training step (with the third)"] = step
    times = {name: [] for name in calls}
    for round_ in range(12):
        for name, call in calls.items():
            began = time.perf_counter()
            for _ in range(50):
                call()
            if round_ > 1:
                times[name].append((time.perf_counter() - began) / 50 * 1e3)
    print(f"\nms, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, values in times.items():
        print(f"{name:34}{statistics.median(values):8.2f}   ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
