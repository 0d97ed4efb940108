"""Networks only: no distribution, no loss."""

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

    def forward(self, x):
        return self.net(x)
