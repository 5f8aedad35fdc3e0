"""The optimizer: parameter groups, their moments, and the step.

A step is one launch a group: every parameter, gradient and moment goes to one kernel
(`csrc/optim.cpp`), which reads its hyperparameters from an array. With a weight the kernel writes
the packed copies of it that mixed precision multiplies.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from minigrad import dispatch, dtypes, recording
from minigrad.arguments import number, shown
from minigrad.dispatch import empty, launch
from minigrad.ops.creation import copied
from minigrad.ops.linear_bf16 import PackedCopy, current_copies
from minigrad.optim.updates import CORRECT1, CORRECT2, DECAY, LISTS, RATE, SCALE
from minigrad.storage import device_away
from minigrad.tensor import Tensor


class Optimizer:
    """Groups of parameters with their settings, moments, and a count of steps.

    `params` is tensors, or groups: dictionaries with "params" and settings that override the
    defaults. Parameters without a gradient are left alone; what depends on the step (bias
    corrections) counts the steps that a parameter took part in, as PyTorch's does.
    """

    kernel = ""
    slots = 0  # moments a parameter

    def __init__(self, params: Iterable[Any], **defaults: Any) -> None:
        name = type(self).__name__
        if isinstance(params, Tensor):
            raise TypeError(f"{name}: expected a list of parameters; write [p]")
        try:
            listed = list(params)
        except TypeError:
            raise TypeError(f"{name}: expected a list of parameters, got {shown(params)}") from None
        if not listed:
            raise ValueError(f"{name}: no parameters to optimize")
        groups = listed if isinstance(listed[0], dict) else [{"params": listed}]
        self.groups: list[dict[str, Any]] = [defaults | group for group in groups]
        for group in self.groups:
            self._check_settings(group)
            group["params"] = list(group["params"])
            for p in group["params"]:
                if not isinstance(p, Tensor):
                    raise TypeError(f"{name}: parameters must be tensors, got {shown(p)}")
                if not p.is_leaf or p.dtype not in (dtypes.float32, dtypes.float64):
                    raise TypeError(
                        f"{name}: parameters must be float32 or float64 leaves, got "
                        f"{p.dtype.name} {p.shape}"
                    )
        self.steps = 0
        self._own_steps: dict[int, int] = {}
        self._moments: dict[int, list[np.ndarray]] = {}

    def _check_settings(self, group: dict[str, Any]) -> None:
        name = type(self).__name__
        for setting in ("lr", "eps", "weight_decay"):
            value = number(name, setting, group.get(setting, 0.0))
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}: {setting} {value}: expected a number of at least 0")
        for beta in group.get("betas", ()):
            if not 0 <= number(name, "betas", beta) < 1:
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
            [contiguous_grad(p) for p in used],
            *[[m[slot] for m in moments] for slot in range(self.slots)],
            *[[] for _ in range(LISTS[self.kernel] - self.slots)],
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


def contiguous_grad(p: Tensor) -> np.ndarray:
    """The gradient of p as kernels take it."""
    grad = p.grad
    assert grad is not None
    array = grad._array
    return array if array.flags.c_contiguous else copied(array)
