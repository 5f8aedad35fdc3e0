"""Optimizers over parameter groups, gradient clipping, and learning-rate schedules.

A step is one launch a group: every parameter, gradient and moment goes to one kernel
(`csrc/optim.cpp`), which reads its hyperparameters from an array. Formulas are PyTorch's. With a
weight the kernel writes the packed copies of it that mixed precision multiplies.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from minigrad import dispatch, dtypes, recording
from minigrad.autograd import device_away
from minigrad.cost import Cost, nbytes
from minigrad.dispatch import empty, launch
from minigrad.ops.creation import copied
from minigrad.ops.linear_bf16 import PackedCopy, current_copies, pack_reference
from minigrad.tensor import Tensor

# Places in the hyperparameter array; csrc/optim.cpp says what each means.
RATE, DECAY, APART, SCALE, EPS, BETA1, BETA2, CORRECT1, CORRECT2, NESTEROV, DAMPENING, OWN = range(
    12
)

Arrays = list[np.ndarray]


class Optimizer:
    """Groups of parameters with their settings, moments, and a count of steps.

    `params` is tensors, or groups: dictionaries with "params" and settings that override the
    defaults. Parameters without a gradient are left alone; what depends on the step (bias
    corrections) counts the steps that a parameter took part in, as PyTorch's does.
    """

    kernel = ""
    slots = 0  # moments a parameter

    def __init__(self, params: Iterable[Any], **defaults: Any) -> None:
        if isinstance(params, Tensor):
            raise TypeError(f"{type(self).__name__}: expected a list of parameters; write [p]")
        listed = list(params)
        if not listed:
            raise ValueError(f"{type(self).__name__}: no parameters to optimize")
        groups = listed if isinstance(listed[0], dict) else [{"params": listed}]
        self.groups: list[dict[str, Any]] = [defaults | group for group in groups]
        for group in self.groups:
            self._check_settings(group)
            group["params"] = list(group["params"])
            for p in group["params"]:
                if not p.is_leaf or p.dtype not in (dtypes.float32, dtypes.float64):
                    raise TypeError(
                        f"{type(self).__name__}: parameters must be float32 or float64 leaves, got "
                        f"{p.dtype.name} {p.shape}"
                    )
        self.steps = 0
        self._own_steps: dict[int, int] = {}
        self._moments: dict[int, list[np.ndarray]] = {}

    def _check_settings(self, group: dict[str, Any]) -> None:
        name = type(self).__name__
        for setting in ("lr", "eps", "weight_decay"):
            value = group.get(setting, 0.0)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}: {setting} {value}: expected a number of at least 0")
        for beta in group.get("betas", ()):
            if not 0 <= beta < 1:
                raise ValueError(f"{name}: betas {group['betas']}: expected numbers in [0, 1)")

    @property
    def params(self) -> list[Tensor]:
        return [p for group in self.groups for p in group["params"]]

    @property
    def lr(self) -> float:
        return self.groups[0]["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        recording.refuse("optimizer.lr = …", "set it before the captured step")
        for group in self.groups:
            group["lr"] = value * group.get("lr_scale", 1.0)

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    def moments(self, p: Tensor) -> list[np.ndarray]:
        found = self._moments.get(id(p))
        if found is None:
            found = self._moments[id(p)] = [empty(p.shape, p.dtype) for _ in range(self.slots)]
            for m in found:
                launch("fill", m, self.initial_moment())
        return found

    def initial_moment(self) -> float:
        return 0.0

    def settings(
        self, group: dict[str, Any], hyper: list[float], used: list[Tensor], t: int
    ) -> None:
        """Fills in what the kernel reads besides rate, decay and scale, for the t-th step of the
        parameters in `used`."""

    def _together(self, params: list[Tensor]) -> Iterable[list[Tensor]]:
        """The parameters that have a gradient by the number of steps behind them: mostly one list,
        so mostly one launch."""
        found: dict[int, list[Tensor]] = {}
        for p in params:
            if p.grad is not None:
                found.setdefault(self._own_steps.get(id(p), 0), []).append(p)
        return found.values()

    def step(self, grad_scale: float | np.ndarray = 1.0) -> None:
        """One update from the gradients, each multiplied by `grad_scale` (a number, or what
        `clip_scale` gave) on the way."""
        recording.repeat(self._count)
        for group in self.groups:
            for used in self._together(group["params"]):
                device = device_away(f"{type(self).__name__}.step", *used)
                with dispatch.device(device) if device else contextlib.nullcontext():
                    self._launch(group, used, grad_scale)

    def _count(self) -> None:
        self.steps += 1

    def _fill(
        self,
        group: dict[str, Any],
        used: list[Tensor],
        copies: list[PackedCopy],
        cell: np.ndarray,
    ) -> None:
        """Counts a step of the parameters in `used`, which writes those packed copies, too, and
        writes its hyperparameters."""
        t = self._own_steps.get(id(used[0]), 0) + 1
        for p in used:
            self._own_steps[id(p)] = t
            p.storage.changed()
        for copy in copies:
            copy.written()
        hyper = [0.0] * cell.size
        hyper[CORRECT1] = hyper[CORRECT2] = hyper[SCALE] = 1.0
        hyper[RATE], hyper[DECAY] = group["lr"], group["weight_decay"]
        self.settings(group, hyper, used, t)
        cell[:] = hyper

    def _launch(
        self, group: dict[str, Any], used: list[Tensor], grad_scale: float | np.ndarray
    ) -> None:
        table = self._moments  # another one after a state was loaded
        recording.guard(lambda: self._moments is table)
        # One count serves them all: a step of some of them, taken elsewhere, parts them.
        recording.guard(lambda: len({self._own_steps.get(id(p), 0) for p in used}) == 1)
        moments = [self.moments(p) for p in used]
        copies = [copy for p in used for copy in current_copies(p)]
        kept = [copy for copy in copies if copy is not None]
        hyper = recording.cell(np.empty(12))
        recording.repeat(partial(self._fill, group, used, kept, hyper))
        scale = hyper[SCALE, ...]
        if isinstance(grad_scale, np.ndarray):
            launch("copy", grad_scale, scale)
        else:
            launch("fill", scale, grad_scale)
        launch(
            self.kernel,
            [p._array for p in used],
            [_contiguous(p.grad) for p in used],
            *[[m[slot] for m in moments] for slot in range(self.slots)],
            *[[] for _ in range(_LISTS[self.kernel] - self.slots)],
            [None if copy is None else copy.panels for copy in copies] if kept else [],
            hyper,
        )

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """`steps`, those of each parameter, the groups' settings, and moments by
        "position.slot"."""
        arrays = {}
        for i, p in enumerate(self.params):
            for slot, m in enumerate(self._moments.get(id(p), ())):
                arrays[f"{i}.{slot}"] = m.copy()
        settings = [{k: v for k, v in g.items() if k != "params"} for g in self.groups]
        counts = {
            "steps": self.steps,
            "parameter_steps": [self._own_steps.get(id(p), 0) for p in self.params],
        }
        return counts | {"groups": settings, "moments": arrays} | self._extra_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave, for the same parameters in the same order."""
        if len(state["groups"]) != len(self.groups):
            raise ValueError(
                f"optimizer state has {len(state['groups'])} groups, expected {len(self.groups)}"
            )
        params = self.params
        for key, array in state["moments"].items():
            i, slot = (int(part) for part in key.split("."))
            if i >= len(params) or array.shape != params[i].shape or slot >= self.slots:
                raise ValueError(f"optimizer state: moment {key} does not fit the parameters")
        if len(state.get("parameter_steps", params)) != len(params):
            raise ValueError(f"optimizer state: it does not fit the parameters, {len(params)} here")
        for group, saved in zip(self.groups, state["groups"], strict=True):
            group.update({k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})
        self._moments = {}
        for key, array in state["moments"].items():
            i, slot = (int(part) for part in key.split("."))
            self.moments(params[i])[slot][...] = array
        self.steps = int(state["steps"])
        own = state.get("parameter_steps", [self.steps] * len(params))
        self._own_steps = {id(p): int(t) for p, t in zip(params, own, strict=True)}
        self._load_extra_state(state)

    def _extra_state(self) -> dict[str, Any]:
        return {}

    def _load_extra_state(self, state: dict[str, Any]) -> None: ...


def _contiguous(grad: Tensor | None) -> np.ndarray:
    assert grad is not None
    array = grad._array
    return array if array.flags.c_contiguous else copied(array)


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


# ---- clipping ----


def _sum_squares_of(params: Sequence[Tensor]) -> np.ndarray:
    total = empty((), dtypes.float64)
    launch("sum_squares", [_contiguous(p.grad) for p in params if p.grad is not None], total)
    return total


def grad_norm(params: Sequence[Tensor]) -> float:
    """The Euclidean norm of all gradients together."""
    recording.refuse("grad_norm", "use clip_scale, which stays with the kernels")
    return math.sqrt(_sum_squares_of(params))


def clip_scale(params: Sequence[Tensor], max_norm: float) -> np.ndarray:
    """What to multiply gradients by so that their norm is at most `max_norm` (0-d, float64); pass
    it to `step`."""
    scale = empty((), dtypes.float64)
    launch("clip_factor", _sum_squares_of(params), scale, max_norm)
    return scale


# ---- schedules: the learning rate's factor at step t = 0, 1, … ----

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


# ---- reference and cost of the kernels ----

# Lists of moments each kernel takes; then come packed copies, two a parameter, or none.
_LISTS = {"sgd": 1, "adam": 2, "rmsprop": 2, "adagrad": 1}


def _reference(update: Callable[..., None]) -> Callable[..., None]:
    """A kernel from the update of one tensor: update(hyper, param, gradient, *moments), float64."""

    def run(params: Arrays, grads: Arrays, *rest: Any) -> None:
        *lists, packed, h = rest
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            wide, d = p.astype(np.float64), g.astype(np.float64) * h[SCALE]
            if h[APART]:
                wide *= 1 - h[RATE] * h[DECAY]
            else:
                d += h[DECAY] * wide
            update(h, wide, d, *[m[i] for m in lists if m])
            p[...] = wide
            for b, panels in zip((p.T, p), packed[2 * i : 2 * i + 2], strict=False):
                if panels is not None:
                    pack_reference(b, panels)

    return run


def _sgd(h: np.ndarray, p: np.ndarray, d: np.ndarray, m: np.ndarray | None = None) -> None:
    if m is not None:
        m[...] = h[BETA1] * m + (1 - h[DAMPENING]) * d
        d = d + h[BETA1] * m if h[NESTEROV] else m
    p -= h[RATE] * d


def _adam(h: np.ndarray, p: np.ndarray, d: np.ndarray, m: np.ndarray, s: np.ndarray) -> None:
    m[...] = h[BETA1] * m + (1 - h[BETA1]) * d
    s[...] = h[BETA2] * s + (1 - h[BETA2]) * d * d
    p -= (h[RATE] / h[CORRECT1] * m + h[OWN] * d) / (np.sqrt(s / h[CORRECT2]) + h[EPS])


def _rmsprop(
    h: np.ndarray, p: np.ndarray, d: np.ndarray, s: np.ndarray, m: np.ndarray | None = None
) -> None:
    s[...] = h[BETA2] * s + (1 - h[BETA2]) * d * d
    step = d / (np.sqrt(s) + h[EPS])
    if m is not None:
        m[...] = h[BETA1] * m + step
        step = m
    p -= h[RATE] * step


def _adagrad(h: np.ndarray, p: np.ndarray, d: np.ndarray, s: np.ndarray) -> None:
    s += d * d
    p -= h[RATE] * d / (np.sqrt(s) + h[EPS])


def _sum_squares(arrays: Arrays, out: np.ndarray) -> None:
    out[...] = sum(float((a.astype(np.float64) ** 2).sum()) for a in arrays)


def _clip_factor(squares: np.ndarray, out: np.ndarray, max_norm: float) -> None:
    out[...] = min(1.0, max_norm / (math.sqrt(squares) + 1e-6))


REFERENCE = {
    "sgd": _reference(_sgd),
    "adam": _reference(_adam),
    "rmsprop": _reference(_rmsprop),
    "adagrad": _reference(_adagrad),
    "sum_squares": _sum_squares,
    "clip_factor": _clip_factor,
}


def _cost(params: Arrays, grads: Arrays, *rest: Any) -> Cost:
    *moments, packed, _ = rest
    changed = nbytes(*params) + sum(nbytes(*m) for m in moments)
    moved = 2 * changed + nbytes(*grads) + nbytes(*packed)
    return Cost(moved, 12 * sum(p.size for p in params))


COST = dict.fromkeys(("sgd", "adam", "rmsprop", "adagrad"), _cost) | {
    "sum_squares": lambda arrays, out: Cost(nbytes(*arrays), 2 * sum(a.size for a in arrays)),
    "clip_factor": lambda squares, out, max_norm: Cost(nbytes(squares, out), 3),
}
