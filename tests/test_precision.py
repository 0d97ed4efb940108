"""Which products are how exact."""

import contextlib

import pytest
import torch

from codebase import precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_products_for_evaluation_are_of_float32_accuracy():
    assert precision.relative_error("highest") < precision.FLOAT32
    assert precision.relative_error(precision.evaluation_setting(CPU)) < precision.FLOAT32
    assert precision.evaluation_setting(CUDA) == "highest"


def test_a_library_that_rounds_to_bfloat16_is_found_out(monkeypatch):
    """The error that a product of rounded factors has is far above the limit, and such a setting is not taken."""
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    rounded = (a.bfloat16().float() @ b.bfloat16().float() - a @ b).norm() / (a @ b).norm()
    assert rounded > 1000 * precision.FLOAT32
    monkeypatch.setattr(precision, "relative_error", lambda setting: {"highest": 2e-7, "medium": rounded}[setting])
    assert precision.evaluation_setting(CPU) == "highest"
    assert precision.training_setting("high", CPU) == "highest"


@pytest.mark.parametrize("choice", precision.CHOICES)
def test_settings_for_training(choice, monkeypatch):
    monkeypatch.setattr(precision, "relative_error", lambda setting: 4e-7)
    assert precision.training_setting(choice, CUDA) == choice
    assert precision.training_setting(choice, CPU) == ("highest" if choice == "highest" else "medium")
    for capable in (False, True):
        monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda capable=capable: capable)
        assert precision.in_bfloat16(choice, CPU) == (capable and choice == "medium")
        assert not precision.in_bfloat16(choice, CUDA)


def test_the_setting_is_put_back():
    before = torch.get_float32_matmul_precision()
    with contextlib.suppress(ZeroDivisionError), precision.products("high"):
        assert torch.get_float32_matmul_precision() == "high"
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == before
