"""minigrad: a small numerical engine with its own kernels.

import minigrad as mg
x = mg.randn((4, 8)); w = mg.randn((3, 8)); w.requires_grad_()
loss = mg.cross_entropy(mg.linear(x, w), mg.tensor([0, 1, 2, 0]))
loss.backward()
w.grad
"""

from minigrad.tensor import Tensor  # first: the tape and the operations need it

# isort: split
from minigrad import nn, ops, optim
from minigrad.autograd import (
    Function,
    detect_anomaly,
    enable_grad,
    grad,
    is_grad_enabled,
    no_grad,
)
from minigrad.capture import capture
from minigrad.dispatch import KernelNotFound, device, levels, use_kernels, use_level
from minigrad.dtypes import bfloat16, bool_, float16, float32, float64, int32, int64, uint8
from minigrad.memory import empty_cache, memory_statistics
from minigrad.ops import *  # noqa: F403
from minigrad.precision import precision
from minigrad.profile import profile
from minigrad.random import Generator, manual_seed
from minigrad.recompute import checkpoint_activations
from minigrad.threads import num_threads, set_num_threads

__version__ = "0.1.0"

__all__ = [
    "Function",
    "Generator",
    "KernelNotFound",
    "Tensor",
    "bfloat16",
    "bool_",
    "capture",
    "checkpoint_activations",
    "detect_anomaly",
    "device",
    "empty_cache",
    "enable_grad",
    "float16",
    "float32",
    "float64",
    "grad",
    "int32",
    "int64",
    "is_grad_enabled",
    "levels",
    "manual_seed",
    "memory_statistics",
    "nn",
    "no_grad",
    "num_threads",
    "optim",
    "precision",
    "profile",
    "set_num_threads",
    "uint8",
    "use_kernels",
    "use_level",
    *ops.__all__,
]
