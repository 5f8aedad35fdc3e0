"""Modules and layers."""

from minigrad.nn.layers import (
    Activation,
    Dropout,
    Embedding,
    KVCache,
    LayerNorm,
    Linear,
    MultiheadAttention,
    RMSNorm,
    normal,
    uniform,
)
from minigrad.nn.module import Module, Sequential

__all__ = [
    "Activation",
    "Dropout",
    "Embedding",
    "KVCache",
    "LayerNorm",
    "Linear",
    "Module",
    "MultiheadAttention",
    "RMSNorm",
    "Sequential",
    "normal",
    "uniform",
]
