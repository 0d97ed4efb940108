"""The precision of matrix products: float32, or in a training with --precision bfloat16 factors rounded to that.

Their sums, and everything between two products, are in float32 (the mixture of the GMVAE in float64) in both.
"""

import functools
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def library(setting):
    """In the block: the setting of torch.set_float32_matmul_precision, which on a CPU chooses the library."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def one_dnn_is_float32():
    """Is the relative error of oneDNN's products of float32 matrices below 1e-6? (Frobenius norm, against float64.)"""
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=random) for _ in range(2))
    exact = a.double() @ b.double()
    with library("medium"):
        return ((a @ b - exact).norm() / exact.norm()).item() < 1e-6


def float32_products(device):
    """In the block: products of float32 matrices by PyTorch's fastest library that has the accuracy of float32.

    On a CPU "medium" stands for oneDNN. It computes in float32, faster than MKL, except on CPUs that have a matrix unit
    for bfloat16. So its error is measured.
    """
    return library("medium" if device.type == "cpu" and one_dnn_is_float32() else "highest")


class Float32Results(TorchFunctionMode):
    """In the block: a product that torch.autocast computes in bfloat16 is returned as float32, by whatever layer."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        several = result if type(result) is tuple else (result,)
        several = tuple(r.float() if getattr(r, "dtype", None) == torch.bfloat16 else r for r in several)
        return several if type(result) is tuple else several[0]


@contextmanager
def training_precision(model, precision):
    """In the block: model.loss with products in this precision, 'float32' or 'bfloat16'."""
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
