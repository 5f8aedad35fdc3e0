"""A stacked dense autoencoder (Hinton and Salakhutdinov 2006): ReLU layers narrowing to a code and
back."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

from minigrad import nn, ops
from minigrad.arguments import checked_shape, integer
from minigrad.tensor import Tensor


def dense(sizes: list[int], activation: str, last: str | None) -> nn.Sequential:
    """Linear layers through `sizes`, an activation after each, `last` (or none) after the last.

    Weights are Glorot and Bengio's (2010) U(±√(6 / (in + out))), biases zero: with less variance a
    GAN's generator starts out ignoring its codes and stays that way.
    """
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        init = partial(nn.uniform, bound=math.sqrt(6 / (n_in + n_out)))
        layers.append(nn.Linear(n_in, n_out, init=init))
        name = last if i == len(sizes) - 2 else activation
        if name:
            layers.append(nn.Activation(name))
    return nn.Sequential(*layers)


class Autoencoder(nn.Module):
    """Images (B, sizes[0]) in [0, 1] → codes (B, sizes[-1]) → reconstructions in [0, 1]."""

    def __init__(self, sizes: list[int]) -> None:
        sizes = [
            integer("Autoencoder", "a size", n, 1)
            for n in checked_shape("Autoencoder", sizes, "sizes")
        ]
        if len(sizes) < 2:
            raise ValueError(f"Autoencoder: expected at least two sizes, got {sizes}")
        self.encoder = dense(sizes, "relu", None)
        self.decoder = dense(sizes[::-1], "relu", "sigmoid")

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))

    def loss(self, images: Tensor) -> Tensor:
        """The mean squared error."""
        difference = self(images) - images
        return ops.mean(difference * difference)
