"""The update rules: which kernel steps, and what it reads of a step's settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from minigrad.optim.optimizer import Optimizer
from minigrad.optim.updates import (
    APART,
    BETA1,
    BETA2,
    CORRECT1,
    CORRECT2,
    DAMPENING,
    EPS,
    NESTEROV,
    OWN,
)
from minigrad.tensor import Tensor


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and Nesterov's form of it."""

    kernel = "sgd"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("SGD: nesterov needs a momentum and no dampening")
        self.slots = 1 if momentum else 0
        self.momentum, self.nesterov, self.dampening = momentum, nesterov, dampening
        super().__init__(params, lr=lr, weight_decay=weight_decay)

    def settings(
        self, group: dict[str, Any], hyper: list[float], used: list[Tensor], t: int
    ) -> None:
        # PyTorch starts the momentum at the first gradient: no dampening in step one.
        hyper[BETA1], hyper[NESTEROV] = self.momentum, float(self.nesterov)
        hyper[DAMPENING] = 0.0 if t == 1 else self.dampening


class Adam(Optimizer):
    """Adam (Kingma and Ba 2014); the decay is added to the gradient."""

    kernel = "adam"
    slots = 2
    apart = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
    ) -> None:
        self.bias_correction = bias_correction
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def settings(
        self, group: dict[str, Any], hyper: list[float], used: list[Tensor], t: int
    ) -> None:
        beta1, beta2 = group["betas"]
        hyper[BETA1], hyper[BETA2], hyper[EPS] = beta1, beta2, group["eps"]
        hyper[APART] = float(self.apart)
        if self.bias_correction:
            hyper[CORRECT1], hyper[CORRECT2] = 1 - beta1**t, 1 - beta2**t


class AdamW(Adam):
    """Adam with the decay apart from the gradient (Loshchilov and Hutter 2017)."""

    apart = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        bias_correction: bool = True,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, bias_correction)


class Nadam(Adam):
    """Adam with Nesterov momentum (Dozat 2016)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
        self.momentum_decay = momentum_decay
        self._products: dict[int, float] = {}  # of a parameter's momenta so far

    def settings(
        self, group: dict[str, Any], hyper: list[float], used: list[Tensor], t: int
    ) -> None:
        super().settings(group, hyper, used, t)
        beta1, decay = group["betas"][0], self.momentum_decay
        now, following = (beta1 * (1 - 0.5 * 0.96 ** (i * decay)) for i in (t, t + 1))
        product = self._products.get(id(used[0]), 1.0) * now  # all of `used` took the same steps
        for p in used:
            self._products[id(p)] = product
        hyper[OWN] = group["lr"] * (1 - now) / (1 - product)
        hyper[CORRECT1] = (1 - product * following) / following

    def _extra_state(self) -> dict[str, Any]:
        return {"momentum_products": [self._products.get(id(p), 1.0) for p in self.params]}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        saved = zip(self.params, state["momentum_products"], strict=True)
        self._products = {id(p): float(product) for p, product in saved}


class RMSprop(Optimizer):
    """Steps divided by a running root mean square (Tieleman and Hinton 2012)."""

    kernel = "rmsprop"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        self.slots = 2 if momentum else 1
        self.alpha, self.momentum = alpha, momentum
        super().__init__(params, lr=lr, eps=eps, weight_decay=weight_decay)

    def settings(
        self, group: dict[str, Any], hyper: list[float], used: list[Tensor], t: int
    ) -> None:
        hyper[BETA1], hyper[BETA2], hyper[EPS] = self.momentum, self.alpha, group["eps"]


class Adagrad(Optimizer):
    """Steps divided by the root of the sum of squares so far (Duchi et al. 2011)."""

    kernel = "adagrad"
    slots = 1

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        initial_accumulator: float = 0.0,
    ) -> None:
        self.initial_accumulator = initial_accumulator
        super().__init__(params, lr=lr, eps=eps, weight_decay=weight_decay)

    def initial_moment(self) -> float:
        return self.initial_accumulator

    def settings(
        self, group: dict[str, Any], hyper: list[float], used: list[Tensor], t: int
    ) -> None:
        hyper[EPS] = group["eps"]
