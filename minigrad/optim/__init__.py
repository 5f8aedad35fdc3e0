"""Optimizers over parameter groups, gradient clipping, and learning-rate schedules. Formulas are
PyTorch's."""

from minigrad.optim import clipping, updates
from minigrad.optim.clipping import clip_scale, grad_norm
from minigrad.optim.methods import SGD, Adagrad, Adam, AdamW, Nadam, RMSprop
from minigrad.optim.optimizer import Optimizer
from minigrad.optim.schedules import (
    PlateauSchedule,
    Schedule,
    cosine_schedule,
    inverse_sqrt_schedule,
    linear_schedule,
    slanted_triangular_schedule,
)

# Where dispatch looks for a kernel's reference and cost.
MODULES = [updates, clipping]

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Nadam",
    "Optimizer",
    "PlateauSchedule",
    "RMSprop",
    "Schedule",
    "clip_scale",
    "cosine_schedule",
    "grad_norm",
    "inverse_sqrt_schedule",
    "linear_schedule",
    "slanted_triangular_schedule",
]
