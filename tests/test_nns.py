"""The networks' own operations, against PyTorch's."""

import torch
import torch.nn.functional as F
from torch import nn

from codebase.nns import ELU, MLP


def test_elu_and_its_gradient():
    """Of every size: exp(88) is all that float32 holds, and neither value nor gradient may overflow beyond it."""
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([0.0, 1e-8, -1e-8, 1e4, -1e4])])
    ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    h, oracle = ELU()(ours), F.elu(exact)
    torch.testing.assert_close(h.double(), oracle, rtol=2e-7, atol=3e-7)
    gradients = [torch.autograd.grad(each.sum(), at)[0].double() for each, at in ((h, ours), (oracle, exact))]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-7)


def test_mlp_under_autocast_rounds_factors_to_bfloat16_and_nothing_else():
    """Written out: each product of rounded factors is rounded, and what is between the products is in float32."""
    torch.manual_seed(0)
    net, x = MLP(20, 30, 5), torch.randn(4, 20)
    h = x
    for i in (0, 2, 4):
        layer = net.net[i]
        factors = (t.bfloat16().double() for t in (h, layer.weight.T, layer.bias))
        h = (lambda h, w, b: h @ w + b)(*factors).bfloat16().float()
        h = F.elu(h) if i < 4 else h
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(x)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, h, rtol=1e-2, atol=2e-3)
    assert not rounded.equal(net(x))


def test_linear_is_torchs():
    """The same initial weights from a seed, the same names, the same products."""
    torch.manual_seed(0)
    net = MLP(20, 30, 5)
    torch.manual_seed(0)
    layers = [nn.Linear(20, 30), nn.Linear(30, 30), nn.Linear(30, 5)]
    for i, layer in zip((0, 2, 4), layers, strict=True):
        assert net.net[i].weight.equal(layer.weight)
        x = torch.randn(3, layer.in_features)
        assert net.net[i](x).equal(layer(x))
        assert net.double().net[i](x.double()).dtype == torch.float64
        net.float()
