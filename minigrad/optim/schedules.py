"""Schedules: the learning rate's factor at step t = 0, 1, …"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def cosine_schedule(warmup: int, total: int, final: float = 0.0) -> Schedule:
    """Linear warm-up to 1, then half a cosine down to `final` at step `total`."""

    def factor(t: int) -> float:
        if t < warmup:
            return (t + 1) / warmup
        done = min(1.0, (t - warmup) / max(1, total - warmup))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))

    return factor


def inverse_sqrt_schedule(warmup: int) -> Schedule:
    """Linear warm-up to 1, then sqrt(warmup / t) (Vaswani et al. 2017, scaled to a peak of 1)."""
    return lambda t: min((t + 1) / warmup, math.sqrt(warmup / (t + 1)))


def linear_schedule(warmup: int, total: int, final: float = 0.0) -> Schedule:
    """Linear warm-up to 1, then linear down to `final` at step `total`."""

    def factor(t: int) -> float:
        if t < warmup:
            return (t + 1) / warmup
        return 1 + (final - 1) * min(1.0, (t - warmup) / max(1, total - warmup))

    return factor


def slanted_triangular_schedule(total: int, cut: float = 0.1, ratio: float = 32.0) -> Schedule:
    """A short linear rise and a long linear fall (Howard and Ruder 2018); lowest 1 / ratio."""
    peak = max(1, math.floor(total * cut))

    def factor(t: int) -> float:
        p = t / peak if t < peak else 1 - (t - peak) / (peak * (1 / cut - 1))
        return (1 + max(p, 0.0) * (ratio - 1)) / ratio

    return factor


class PlateauSchedule:
    """Multiplies the factor by `decay` whenever the loss has not improved for `patience`
    reports."""

    def __init__(self, decay: float = 0.5, patience: int = 2, threshold: float = 1e-4) -> None:
        self.decay, self.patience, self.threshold = decay, patience, threshold
        self.factor, self.best, self.waited = 1.0, math.inf, 0

    def report(self, loss: float) -> float:
        """Takes the newest loss; returns the factor from now on."""
        if loss < self.best * (1 - self.threshold):
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
            if self.waited > self.patience:
                self.factor, self.waited = self.factor * self.decay, 0
        return self.factor
