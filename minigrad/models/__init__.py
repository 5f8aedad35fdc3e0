"""Models."""

from minigrad.models.autoencoder import Autoencoder
from minigrad.models.gan import GAN
from minigrad.models.gpt import GPT, GPTConfig

__all__ = ["GAN", "GPT", "Autoencoder", "GPTConfig"]
