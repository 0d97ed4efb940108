"""A small convolutional classifier q(y|x) of colour images: a judge of what generated images show, no model of ours."""

import torch.nn.functional as F
from torch import nn


class Classifier(nn.Module):
    """Three convolutions, each halving the image, and a linear layer: x in [0, 1]^3072, channel first, to C classes.

    Each image is first brought to mean 0 and, but for the faintest, variance 1: a faint digit is still a digit.
    """

    def __init__(self, classes=10):
        super().__init__()
        layers = [nn.LayerNorm(3072, eps=4e-4, elementwise_affine=False), nn.Unflatten(-1, (3, 32, 32))]
        for channels_in, channels_out in ((3, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, classes))

    def log_q_y(self, x):
        """log q(y|x) of every y, in nats. x: (B, X). Returns (B, C)."""
        return self.net(x).log_softmax(-1)

    def loss(self, x, y):
        """The cross-entropy -log q(y|x), averaged over the batch, in nats, and no curves. y: (B, C), one-hot."""
        return F.cross_entropy(self.net(x), y), {}
