"""A generative adversarial network of dense layers (Goodfellow et al. 2014)."""

from __future__ import annotations

from minigrad import nn, ops
from minigrad.arguments import checked_shape, integer
from minigrad.models.autoencoder import dense
from minigrad.tensor import Tensor


def binary_cross_entropy(logits: Tensor, label: float) -> Tensor:
    """The mean of -log p(label) for one label in {0, 1}, from logits, without overflow."""
    return ops.mean(ops.softplus(-logits if label else logits))


class GAN(nn.Module):
    """Codes (B, codes) → images in [0, 1]; images → logits of being real (B, 1)."""

    def __init__(self, codes: int, hidden: list[int], pixels: int) -> None:
        hidden = list(checked_shape("GAN", hidden, "hidden"))
        for name, n in (("codes", codes), *(("hidden", n) for n in hidden), ("pixels", pixels)):
            integer("GAN", name, n, 1)
        self.codes = codes
        self.generator = dense([codes, *hidden, pixels], "selu", "sigmoid")
        self.discriminator = dense([pixels, *hidden[::-1], 1], "selu", None)

    def generate(self, codes: Tensor) -> Tensor:
        return self.generator(codes)

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Real images should be called real, generated ones (detached) not."""
        real_loss = binary_cross_entropy(self.discriminator(real), 1.0)
        return (real_loss + binary_cross_entropy(self.discriminator(fake.detach()), 0.0)) * 0.5

    def generator_loss(self, fake: Tensor) -> Tensor:
        """Generated images should be called real (the non-saturating form)."""
        return binary_cross_entropy(self.discriminator(fake), 1.0)
