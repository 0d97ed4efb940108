"""Networks only: no distribution, no loss."""

import torch.nn.functional as F
from torch import nn


class MLP(nn.Module):
    """Linear, activation, Linear, activation, Linear: the homework's encoder and decoder (ELU) and classifier (ReLU).

    (..., n_in) -> (..., n_out), with two hidden layers of width n_hidden and PyTorch's default initialisation. The
    layers are net.0, net.2 and net.4, as in the homework's weight files.
    """

    def __init__(self, n_in, n_hidden, n_out, activation=nn.ELU):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(n_in, n_hidden),
            activation(),
            nn.Linear(n_hidden, n_hidden),
            activation(),
            nn.Linear(n_hidden, n_out),
        )

    def forward(self, x, y=None):
        """The network of x, or of x and y concatenated: (..., n_x), (..., n_y), n_x + n_y = n_in -> (..., n_out).

        x and y broadcast against each other, and each meets its own columns of the first layer before that, since
        W [x, y] = W_x x + W_y y: an image that comes with every label is multiplied once.
        """
        if y is None:
            return self.net(x)
        first, *others = self.net
        w_x, w_y = first.weight.split([x.shape[-1], y.shape[-1]], dim=1)
        h = F.linear(x, w_x, first.bias) + F.linear(y, w_y)
        for layer in others:
            h = layer(h)
        return h
