"""The networks' own operations, against PyTorch's."""

import torch
import torch.nn.functional as F
from torch import nn

from codebase.nns import ELU, MLP, apply
from codebase.precision import Float32Results


def test_elu_and_its_gradient():
    """Of every size: exp(88) is all that float32 holds, and neither value nor gradient may overflow beyond it."""
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([0.0, 1e-8, -1e-8, 1e4, -1e4])])
    ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    h, oracle = ELU()(ours), F.elu(exact)
    torch.testing.assert_close(h.double(), oracle, rtol=2e-7, atol=3e-7)
    gradients = [torch.autograd.grad(each.sum(), at)[0].double() for each, at in ((h, ours), (oracle, exact))]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-7)


def test_under_autocast_factors_are_rounded_to_bfloat16_and_nothing_else():
    """Written out: each product of rounded factors is rounded, and what is between the products is in float32."""
    net, x = MLP(20, 30, 5), torch.randn(4, 20)
    h = x
    for i in (0, 2, 4):
        layer = net.net[i]
        factors = (t.bfloat16().double() for t in (h, layer.weight.T, layer.bias))
        h = (lambda h, w, b: h @ w + b)(*factors).bfloat16().float()
        h = F.elu(h) if i < 4 else h
    with torch.autocast("cpu", torch.bfloat16), Float32Results():
        rounded = net(x)
        each = net(x[:, :15], x[:, None, 15:])  # an image with every one of four labels
    assert rounded.dtype == each.dtype == torch.float32
    torch.testing.assert_close(rounded, h, rtol=1e-2, atol=2e-3)
    assert not rounded.equal(net(x))


def test_under_autocast_the_parts_of_x_and_of_y_are_added_in_float32():
    net = MLP(2, 1, 1)
    torch.nn.init.ones_(net.net[0].weight), torch.nn.init.zeros_(net.net[0].bias)
    sums = []
    net.net[1].register_forward_pre_hook(lambda module, inputs: sums.append(inputs[0].item()))
    with torch.autocast("cpu", torch.bfloat16), Float32Results():
        net(torch.full((1, 1), 256.0), torch.ones(1, 1, 1))
    assert sums == [257]


def test_apply_hands_rows_to_a_network_that_is_no_mlp():
    """Leading dimensions broadcast, are flattened for the network, and are there again, the results flattened."""

    class Outer(nn.Module):
        def forward(self, x, y):
            assert x.shape == (2 * 3 * 4, 5)
            assert y.shape == (2 * 3 * 4, 6)
            return x[:, :, None] * y[:, None]  # (N, 5, 6)

    x, y = torch.randn(2, 1, 4, 5), torch.randn(3, 4, 6)
    expected = (x[..., None] * y[..., None, :]).flatten(-2)
    assert apply(Outer(), x, y).equal(expected)
