"""How exactly matrix products are computed: as --precision says in training, in float32 in evaluation.

                on a CPU                                             on CUDA
    highest     float32                                              float32
    high        float32, through oneDNN                              TF32: factors of 11 significant bits
    medium      bfloat16 factors (8 bits), where the CPU has         as PyTorch's "medium", today TF32
                instructions for them; elsewhere as "high"

Sums are in float32 in all of them, and so is all that is not a product of matrices.
"""

import functools
from contextlib import contextmanager

import torch

CHOICES = ("highest", "high", "medium")
FLOAT32 = 1e-6  # a product with a smaller relative error has float32 accuracy


@contextmanager
def products(setting):
    """Inside: PyTorch's own setting for products of float32 matrices, one of CHOICES; on a CPU, whose library."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(setting)
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def relative_error(setting):
    """The relative error of a product of float32 matrices on the CPU, against float64 (Frobenius norm)."""
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=random) for _ in range(2))
    exact = a.double() @ b.double()
    with products(setting):
        return ((a @ b - exact).norm() / exact.norm()).item()


def evaluation_setting(device):
    """PyTorch's setting for products with float32 accuracy, the fastest such one.

    On a CPU "medium" takes oneDNN, which works in float32, and faster than MKL, but for CPUs with a matrix unit for
    bfloat16: hence its error is measured.
    """
    return "medium" if device.type == "cpu" and relative_error("medium") < FLOAT32 else "highest"


def training_setting(precision, device):
    """PyTorch's setting for training at a --precision."""
    if device.type == "cpu":
        return "highest" if precision == "highest" else evaluation_setting(device)
    return precision


def in_bfloat16(precision, device):
    """Is training at this --precision to round the factors of the networks' products to bfloat16 itself?"""
    return precision == "medium" and device.type == "cpu" and cpu_has_bfloat16()


@contextmanager
def cast_back(model):
    """Inside: every module of the model returns float32 where torch.autocast lets it return bfloat16.

    So, in any network, only the factors of products are rounded; what is between two products is in float32.
    """

    def hook(module, inputs, output):
        return output.float() if getattr(output, "dtype", None) == torch.bfloat16 else None

    hooks = [module.register_forward_hook(hook) for module in model.modules()]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def cpu_has_bfloat16():
    """Has the CPU instructions for products of bfloat16 numbers? Without, they take longer than those of float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
