"""The networks' own operations, against PyTorch's."""

import torch
import torch.nn.functional as F

from codebase.nns import ELU


def test_elu_and_its_gradient():
    """Of every size: exp(88) is all that float32 holds, and neither value nor gradient may overflow beyond it."""
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([0.0, 1e-8, -1e-8, 1e4, -1e4])])
    ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    h, oracle = ELU()(ours), F.elu(exact)
    torch.testing.assert_close(h.double(), oracle, rtol=2e-7, atol=3e-7)
    gradients = [torch.autograd.grad(each.sum(), at)[0].double() for each, at in ((h, ours), (oracle, exact))]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-7)
