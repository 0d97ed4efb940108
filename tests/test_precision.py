"""The precision of matrix products in training and in evaluation."""

import contextlib

import pytest
import torch
from conftest import run_steps
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from codebase import data, precision
from codebase.models.gmvae import GMVAE
from codebase.models.vae import VAE
from codebase.precision import float32_products, training_precision
from codebase.train import Adam, training_step

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
X = (torch.rand(20, 784, generator=torch.Generator().manual_seed(0)) > 0.5).float()
setting = torch.get_float32_matmul_precision


def test_products_are_of_float32_accuracy():
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    exact = a.double() @ b.double()
    with float32_products(CPU):
        assert (a @ b - exact).norm() < 1e-6 * exact.norm()
    with float32_products(CUDA):
        assert setting() == "highest"


class OneDNNRounds(TorchFunctionMode):
    """Inside: oneDNN rounds the factors of products to bfloat16, as on a CPU with a matrix unit for that."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if "matmul" in function.__name__ and args[0].dtype == torch.float32 and setting() == "medium":
            args = [factor.bfloat16().float() for factor in args]
        return function(*args, **(kwargs or {}))


def test_a_library_that_rounds_to_bfloat16_is_found_out(monkeypatch):
    with OneDNNRounds():
        assert not precision.one_dnn_is_float32.__wrapped__()
    for is_float32, expected in ((False, "highest"), (True, "medium")):
        monkeypatch.setattr(precision, "one_dnn_is_float32", lambda found=is_float32: found)
        with float32_products(CPU):
            assert setting() == expected


def test_a_layer_with_several_results():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(3, 4, 8)
    with torch.autocast("cpu", torch.bfloat16), precision.Float32Results():
        assert {result.dtype for result in attention(x, x, x)} == {torch.float32}


def test_the_setting_and_the_loss_are_put_back():
    before, model = setting(), VAE(z_dim=2)
    with contextlib.suppress(ZeroDivisionError), training_precision(model, "bfloat16"):
        assert "loss" in vars(model)
        raise ZeroDivisionError
    assert setting() == before
    assert "loss" not in vars(model)


class Dtypes(TorchDispatchMode):
    """Inside: the operations that are computed, and the types of their results, {name: {types}}."""

    def __init__(self):
        super().__init__()
        self.of = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        for each in results if isinstance(results, (tuple, list)) else [results]:
            self.of.setdefault(operation.overloadpacket.__name__, set()).add(each.dtype)
        return results


class Own(nn.Module):
    """A network of one's own: a product that is no layer, between two functions that round visibly."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.w = nn.Parameter(torch.randn(n_in, n_out) / n_in)

    def forward(self, x):
        return (x.sin() @ self.w).tanh()


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_bfloat16_rounds_the_factors_of_products_and_nothing_else(kind, own):
    """The networks' products are in bfloat16, in any layer; all else, the mixture's product too, is not."""
    model = GMVAE(z_dim=3, k=20, **({"enc": Own(784, 6), "dec": Own(3, 784)} if own else {}))
    loss, seen = model.loss, Dtypes()

    def watched(*batch):
        with seen:
            return loss(*batch)

    optimizer, before = Adam(model.parameters(), 1e-9), model.enc
    model.loss = watched
    with training_precision(model, kind):
        point = training_step(model, optimizer, (X,))
    assert model.enc is before
    products = {torch.bfloat16 if kind == "bfloat16" else torch.float32}
    assert seen.of["mm"] == ({torch.float64} | products if own else {torch.float64})  # the mixture's, and Own's
    assert own or seen.of["addmm"] == products
    rounded = {name for name, types in seen.of.items() if torch.bfloat16 in types}
    assert rounded <= {"addmm", "mm", "_to_copy", "t", "view"}  # factors are copied, weights transposed
    assert bool(rounded) == (kind == "bfloat16")
    assert all(value.dtype == torch.float32 for value in point.values())


def test_bfloat16_sees_the_weights_of_each_step():
    """Each loss is that of the present weights, whose rounded copies are not kept from an earlier step."""
    model = VAE(z_dim=3)
    for _ in range(3):
        with training_precision(model, "bfloat16"):
            torch.manual_seed(1)
            first = model.loss(X)[0]
            with torch.no_grad():
                model.dec.net[4].bias.add_(0.5)
                model.dec.net[4].weight.mul_(1.5)
            torch.manual_seed(1)
            assert abs(model.loss(X)[0] - first) > 1


def test_a_run_in_each_precision(vae, digits):
    images, ended = data.load(str(digits), ""), {}
    for choice, name in (("bfloat16", "_precision=bfloat16"), ("float32", "")):
        assert vae("--precision", choice, "--iter_max", 5, "--z", 2)[0] == 0
        (path,) = digits.parent.glob(f"checkpoints/*_batch=50{name}_run=0000/model-00005.pt")
        torch.manual_seed(0)
        model = VAE(z_dim=2)
        with training_precision(model, choice):
            run_steps(model, data.binary_batches(images.x_train, 50, 0), 5)
        ended[choice] = torch.load(path)
        torch.testing.assert_close(ended[choice], model.state_dict(), rtol=1e-4, atol=1e-5)
    assert not ended["bfloat16"]["dec.net.2.weight"].equal(ended["float32"]["dec.net.2.weight"])
    torch.testing.assert_close(ended["bfloat16"], ended["float32"], rtol=0, atol=0.011)
