"""The precision of matrix products: float32, or for a training with --precision bfloat16 factors rounded to that.

Their sums, and everything between two products, are in float32 (the mixture of the GMVAE in float64) in both.
Evaluation is in float32.
"""

import functools
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode

PRECISIONS = ("float32", "bfloat16")
FLOAT32 = 1e-6  # a product with a smaller relative error has the accuracy of float32


@functools.cache
def relative_error(setting):
    """The relative error of a product of float32 matrices on the CPU, against float64 (Frobenius norm).

    setting: of torch.set_float32_matmul_precision.
    """
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=random) for _ in range(2))
    exact, before = a.double() @ b.double(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        return ((a @ b - exact).norm() / exact.norm()).item()
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def float32_products(device):
    """In the block: products of float32 matrices by PyTorch's fastest library that has the accuracy of float32.

    On a CPU "medium" stands for oneDNN. It computes in float32, faster than MKL, except on CPUs that have a matrix unit
    for bfloat16. So its error is measured.
    """
    exact = device.type == "cpu" and relative_error("medium") < FLOAT32
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if exact else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Float32Results(TorchFunctionMode):
    """In the block: a product that torch.autocast computes in bfloat16 is returned as float32, by whatever layer."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return tuple(map(self.as_float32, result)) if type(result) is tuple else self.as_float32(result)

    @staticmethod
    def as_float32(result):
        return result.float() if getattr(result, "dtype", None) == torch.bfloat16 else result


@contextmanager
def training_precision(model, precision):
    """In the block: model.loss with products in this precision, one of PRECISIONS."""
    device = next(model.parameters()).device
    with float32_products(device):
        if precision == "float32":
            yield
            return
        loss = model.loss

        def loss_in_bfloat16(*batch):
            with torch.autocast(device.type, torch.bfloat16), Float32Results():
                return loss(*batch)

        model.loss = loss_in_bfloat16
        try:
            yield
        finally:
            del model.loss  # uncovers the method of its class
