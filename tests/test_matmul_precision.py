"""The precision of matrix products in training and in evaluation."""

import contextlib

import pytest
import torch

from codebase import matmul_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_products_for_evaluation_are_of_float32_accuracy():
    assert matmul_precision.relative_error("highest") < matmul_precision.FLOAT32
    assert matmul_precision.relative_error(matmul_precision.evaluation_setting(CPU)) < matmul_precision.FLOAT32
    assert matmul_precision.evaluation_setting(CUDA) == "highest"


def test_a_library_that_rounds_to_bfloat16_is_found_out(monkeypatch):
    """The error that a product of rounded factors has is far above the limit, and such a setting is not taken."""
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    rounded = (a.bfloat16().float() @ b.bfloat16().float() - a @ b).norm() / (a @ b).norm()
    assert rounded > 1000 * matmul_precision.FLOAT32
    monkeypatch.setattr(
        matmul_precision, "relative_error", lambda setting: {"highest": 2e-7, "medium": rounded}[setting]
    )
    assert matmul_precision.evaluation_setting(CPU) == "highest"
    with matmul_precision.training(torch.nn.Linear(2, 2), "high", CPU):
        assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("precision", matmul_precision.PRECISIONS)
@pytest.mark.parametrize("capable", [False, True])
def test_settings_for_training(precision, capable, monkeypatch):
    monkeypatch.setattr(matmul_precision, "relative_error", lambda setting: 4e-7)
    monkeypatch.setattr(matmul_precision, "cpu_has_bfloat16", lambda: capable)
    with matmul_precision.training(torch.nn.Linear(2, 2), precision, CUDA) as bfloat16:
        assert torch.get_float32_matmul_precision() == precision
        assert not bfloat16
    with matmul_precision.training(torch.nn.Linear(2, 2), precision, CPU) as bfloat16:
        assert torch.get_float32_matmul_precision() == ("highest" if precision == "highest" else "medium")
        assert bfloat16 == (capable and precision == "medium")


def test_the_setting_is_put_back():
    before = torch.get_float32_matmul_precision()
    with contextlib.suppress(ZeroDivisionError), matmul_precision.matmul_precision("high"):
        assert torch.get_float32_matmul_precision() == "high"
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == before
