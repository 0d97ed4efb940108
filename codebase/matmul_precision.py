"""The precision of matrix products: that of --precision in training, float32 in evaluation.

                on a CPU                                             on CUDA
    highest     float32                                              float32
    high        float32, through oneDNN                              TF32: factors of 11 significant bits
    medium      bfloat16 factors (8 bits), if the CPU has            as PyTorch's "medium", today TF32
                instructions for them; otherwise as "high"

In all of them, sums and everything that is not a matrix product are in float32.
"""

import functools
from contextlib import contextmanager, nullcontext

import torch

PRECISIONS = ("highest", "high", "medium")
FLOAT32 = 1e-6  # a product with a smaller relative error has float32 accuracy


@contextmanager
def matmul_precision(setting):
    """In the block: PyTorch's setting for products of float32 matrices, one of PRECISIONS. On a CPU: the library."""
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
    with matmul_precision(setting):
        return ((a @ b - exact).norm() / exact.norm()).item()


def evaluation_setting(device):
    """PyTorch's fastest setting for products with float32 accuracy.

    On a CPU "medium" uses oneDNN. It computes in float32, faster than MKL, except on CPUs that have a matrix unit for
    bfloat16. So its error is measured.
    """
    return "medium" if device.type == "cpu" and relative_error("medium") < FLOAT32 else "highest"


def cpu_has_bfloat16():
    """Does the CPU have instructions for products of bfloat16? Without them, these take longer than in float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@contextmanager
def float32_outputs(model):
    """In the block: every module of the model returns float32, even if torch.autocast would return bfloat16.

    So only the factors of products are rounded; everything between two products is in float32, in any network.
    """

    def hook(module, inputs, output):
        return output.float() if getattr(output, "dtype", None) == torch.bfloat16 else None

    hooks = [module.register_forward_hook(hook) for module in model.modules()]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


@contextmanager
def training(model, precision, device):
    """In the block: products with --precision. Yields whether training_step should round their factors to bfloat16."""
    on_cpu = device.type == "cpu"
    bfloat16 = on_cpu and precision == "medium" and cpu_has_bfloat16()
    setting = precision if not on_cpu or precision == "highest" else evaluation_setting(device)
    with matmul_precision(setting), float32_outputs(model) if bfloat16 else nullcontext():
        yield bfloat16
