"""Captured steps: the launches of a function recorded once and replayed as a flat list.

While a call is recorded it runs as always, and an observer of `dispatch` notes every launch. New
arrays live in an arena of the recording's own (`csrc/pool.h`), so that freed buffers are used again
in the order in which the step freed them: the plan of memory is the one that the step itself made.
A replay copies the arguments into fixed buffers and runs the list (`csrc/replay.h`; what is Python,
such as a reference or what `recording` was told of, is called in its place).

Nothing proves that a Python function does the same every time. So calls are recorded until two in a
row agree, launch by launch and argument by argument, and a function that never does is refused with
the first difference.
"""

from __future__ import annotations

import itertools
import os
import threading
import types
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from minigrad import autograd, dispatch, dtypes, recording
from minigrad.arguments import shown
from minigrad.dispatch import Kernel, empty
from minigrad.ops.creation import copied
from minigrad.precision import active_precision
from minigrad.storage import owner_of
from minigrad.tensor import Tensor

_Description = list[tuple[str, list[Any]]]

MAX_CALLS = 4  # recorded at most, until two in a row agree; the first makes an optimizer's moments
MAX_RECORDINGS = 8  # kept of one function: those of the shapes seen last

_recording_lock = threading.RLock()  # observers are one for all threads, so one call at a time
os.register_at_fork(  # a child must not find it held by a thread that it does not have
    before=_recording_lock.acquire,
    after_in_parent=_recording_lock.release,
    after_in_child=_recording_lock.release,
)


class Captured:
    """What `capture` returns; call it as the function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__
        self._recordings: dict[tuple[Any, ...], _Recording] = {}
        self._lock = threading.Lock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if recording.active():  # part of another captured step
            return self.function(*args, **kwargs)
        arrays: list[np.ndarray] = []
        key = (
            dispatch.configuration(),
            autograd.is_grad_enabled(),
            active_precision(),
            tuple([_signature(value, arrays) for value in args]),
            tuple([(name, _signature(value, arrays)) for name, value in kwargs.items()]),
        )
        with self._lock:  # the buffers are there once
            found = self._recordings.pop(key, None)
            if found is None or not found.holds():
                found = _Recording([empty(a.shape, a.dtype) for a in arrays])
            result = found.run(self.function, arrays, args, kwargs)
            self._recordings[key] = found  # the newest last; one that failed is gone
            if len(self._recordings) > MAX_RECORDINGS:
                del self._recordings[next(iter(self._recordings))]
            return result


def _signature(value: Any, arrays: list[np.ndarray]) -> Any:
    """What of an argument a recording depends on; its array, if it is one, goes into `arrays`."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise TypeError(
                "capture: an argument requires a gradient, which would end at its copy; make it "
                "part of what the function refers to, or detach() it"
            )
        value = value._array
    if isinstance(value, np.ndarray):
        if value.dtype not in dtypes.ALL:
            dtypes.as_dtype(value.dtype)  # raises
        arrays.append(value)
        return value.shape, value.dtype
    if isinstance(value, float):
        return type(value), value.hex()  # 0.0 and -0.0 are two, and a NaN is itself
    if value is None or isinstance(value, (bool, int, str)):
        return type(value), value
    raise TypeError(
        f"capture: an argument is a {type(value).__name__}; expected tensors, arrays, numbers, "
        "strings or None, each an argument of its own"
    )


class _Recording:
    """One function at one signature: calls recorded until two agree, replays from then on."""

    def __init__(self, buffers: list[np.ndarray]) -> None:
        self.buffers = buffers  # of the array arguments
        self.last: _Call | None = None
        self.calls = 0
        self.agreed = False

    def holds(self) -> bool:
        return self.last is None or all(holds() for holds in self.last.notes.guards)

    def run(
        self,
        function: Callable[..., Any],
        arrays: list[np.ndarray],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        for buffer, array in zip(self.buffers, arrays, strict=True):
            buffer[...] = array
        if self.agreed:
            assert self.last is not None
            self.last.replay()
            return self.last.result()
        inputs = iter(self.buffers)
        # What is to be compared, and not the call: the next one is to have its memory.
        before = None if self.last is None else self.last.described()
        self.last = None
        with _recording_lock:
            call = _Call(
                function,
                [_input(value, inputs) for value in args],
                {name: _input(value, inputs) for name, value in kwargs.items()},
            )
        self.calls += 1
        difference = (
            "it is the first call" if before is None else _difference(before, call.described())
        )
        if difference is None:
            call.finish()
            self.agreed = True
        elif self.calls == MAX_CALLS:
            raise RuntimeError(
                f"capture: {self.calls} calls of {getattr(function, '__name__', 'the function')} "
                f"were recorded and no two in a row did the same. The last two differ: {difference}"
            )
        self.last = call
        return call.result()


def _input(value: Any, buffers: Iterable[np.ndarray]) -> Any:
    if isinstance(value, (Tensor, np.ndarray)):
        return Tensor._wrap(next(iter(buffers)))
    return value


class _Call:
    """One call of the function, recorded while it runs."""

    def __init__(
        self, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]
    ) -> None:
        if autograd.is_anomaly_enabled():
            raise RuntimeError("capture: detect_anomaly reads every result; run it uncaptured")
        self._arena = None if dispatch._core is None else dispatch._core.Arena()
        self._thread = threading.get_ident()
        self._outer = dispatch.current_observer()
        self._inside = False
        if self._arena is not None:
            self._arena.begin()
        try:
            with (
                recording.noted() as self.notes,
                dispatch.observe(self._launch),
            ):
                returned = function(*args, **kwargs)
                self.gradients = [(leaf, _array(leaf.grad)) for leaf in self.notes.leaves]
        finally:
            if self._arena is not None:
                self._arena.end()
        self.returned = _mapped(_array, returned)
        self._leave_gradients()

    def _run(self, name: str, kernel: Kernel, args: tuple[Any, ...]) -> None:
        if self._outer is None:
            kernel(*args)
        else:
            self._outer(name, kernel, args)

    def _launch(self, name: str, kernel: Kernel, args: tuple[Any, ...]) -> None:
        if threading.get_ident() != self._thread or self._inside:
            # Other threads are not part of the step; what a reference launches is part of itself.
            self._run(name, kernel, args)
            return
        self._inside = True
        try:
            self._run(name, kernel, args)
        finally:
            self._inside = False
        self.notes.entries.append((name, kernel, self._borrowed(args)))

    def _borrowed(self, value: Any) -> Any:
        """The same arguments without a claim on the arena's blocks, which are to be used again."""
        if isinstance(value, np.ndarray):
            if self._arena is not None and self._arena.owns(value):
                return dispatch._core.borrowed(value, self._arena)
            return value
        if isinstance(value, (tuple, list)):
            return type(value)([self._borrowed(item) for item in value])
        return value

    def _leave_gradients(self) -> None:
        """As memory that a replay overwrites: whoever reads one gets a copy."""
        for leaf, memory in self.gradients:
            leaf._grad = memory

    def finish(self) -> None:
        """Makes the launches a program: runs of native ones, and what is Python between them."""
        self._parts: list[Callable[[], None]] = []
        for module, entries in itertools.groupby(self.notes.entries, _module):
            if module is not None:
                run = [(name, args) for name, _, args in entries]
                self._parts.append(partial(module.replay, module.record(run)))
                continue
            for entry in entries:
                is_launch = isinstance(entry, tuple)
                self._parts.append(partial(entry[1], *entry[2]) if is_launch else entry)

    def replay(self) -> None:
        try:
            self._replay_launches()
        except BaseException:  # what is there is of no step, or of parts of two
            for leaf, _ in self.gradients:
                leaf.grad = None
            raise
        self._leave_gradients()

    def _replay_launches(self) -> None:
        for action in self.notes.first:
            action()
        observer = dispatch.current_observer()
        if observer is None:
            for part in self._parts:
                part()
        else:
            for entry in self.notes.entries:
                if isinstance(entry, tuple):
                    observer(*entry)
                else:
                    entry()

    def result(self) -> Any:
        """What the call returned, in memory of its own: the next replay writes into the call's."""
        return _mapped(_copy, self.returned)

    def described(self) -> _Description:
        """Every launch with its arguments as what can be compared with another call's."""
        own: dict[int, int] = {}  # a buffer of the arena → its place in order of first use
        launches = [entry for entry in self.notes.entries if isinstance(entry, tuple)]
        return [(name, [self._described(arg, own) for arg in args]) for name, _, args in launches]

    def _described(self, value: Any, own: dict[int, int]) -> Any:
        if isinstance(value, (tuple, list)):
            return [self._described(item, own) for item in value]
        if not isinstance(value, np.ndarray):
            return value
        kind = value.shape, value.strides, value.dtype
        if self._arena is not None and value.base is self._arena:
            return "own", own.setdefault(value.ctypes.data, len(own)), *kind
        owner = owner_of(value)
        for i, cell in enumerate(self.notes.cells):
            if owner is cell:
                return "cell", i, *kind
        if dispatch._core is not None and dispatch._core.is_pooled(value):
            return "outside", value.ctypes.data, *kind
        return "constant", value.tobytes(), *kind


def _module(entry: Any) -> Any:
    """The module of native kernels that a launch is of, or None."""
    module = getattr(entry[1], "__self__", None) if isinstance(entry, tuple) else None
    return module if isinstance(module, types.ModuleType) else None


def _difference(old: _Description, new: _Description) -> str | None:
    """The first thing that two calls did not do alike, in words; None where there is none."""
    for i, ((name, old_args), (other, new_args)) in enumerate(zip(old, new, strict=False)):
        if name != other:
            return f"launch {i} was {name}, then {other}"
        for position, (a, b) in enumerate(zip(old_args, new_args, strict=False)):
            if repr(a) != repr(b):  # a NaN equals itself so
                return f"argument {position} of launch {i}, {name}, " + _what_differs(a, b)
    if len(old) != len(new):
        return f"{len(old)} launches, then {len(new)}"
    return None


def _what_differs(a: Any, b: Any) -> str:
    if a.__class__ is list and b.__class__ is list and len(a) == len(b):
        return next(_what_differs(x, y) for x, y in zip(a, b, strict=True) if repr(x) != repr(y))
    if a.__class__ is not tuple or b.__class__ is not tuple:
        return f"was {a}, then {b}; pass what changes as an array argument"
    if a[2:] != b[2:]:
        return f"was of shape {a[2]}, then {b[2]}"
    if "constant" in (a[0], b[0]):
        return (
            f"(shape {b[2]}) had other values, which came from Python or NumPy; pass them as an "
            "argument"
        )
    return (
        f"(shape {b[2]}) was in other memory. What a call leaves for the next one (a running mean, "
        "say) must be changed in place"
    )


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """function(leaf) for every leaf of nested tuples (named ones, too), lists and dicts."""
    if value.__class__ is dict:
        return {name: _mapped(function, item) for name, item in value.items()}
    if value.__class__ in (tuple, list):
        return type(value)([_mapped(function, item) for item in value])
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make([_mapped(function, item) for item in value])
    return function(value)


def _array(value: Any) -> np.ndarray | None:
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value._array
    raise TypeError(
        f"capture: the function returned a {type(value).__name__}, which a replay could not make; "
        "expected tensors (or tuples, lists and dicts of them) or None"
    )


def _copy(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else Tensor._wrap(copied(array))


def capture(function: Callable[..., Any]) -> Captured:
    """`function` as a captured step: its launches are recorded, and later calls replay them.

    For a function that does the same every time, such as a training step: same results to the last
    bit, without the cost of its Python. Arguments are tensors or arrays (copied into fixed
    buffers), numbers, strings or None (constants); every combination of shapes, dtypes and
    constants is recorded for itself, by its first two or three calls, which run as always. It may
    return tensors (or nested tuples, lists and dicts of them): copies, outside of any graph. So is
    a `.grad` that is read afterwards. Tensors that the function leaves elsewhere (attributes, say)
    are in memory that every replay writes again: return them, or copy them outside.

    The function's Python runs only while recording. So `.item()`, `bool()`, `.numpy()` and tensors
    made from data raise RuntimeError inside; learning rates are set outside. Random streams, an
    optimizer's counts and its rates, and gradients that are not zeroed inside follow each call.
    Calls that do not do the same raise RuntimeError naming what differed. Other Python values that
    the function reads (a module's `training`, say) keep what they were.

    >>> import minigrad as mg
    >>> w = mg.tensor([1.0, 2.0], requires_grad=True)
    >>> optimizer = mg.optim.SGD([w], lr=0.25)
    >>> @mg.capture
    ... def step(x):
    ...     optimizer.zero_grad()
    ...     loss = (w * x).sum()
    ...     loss.backward()
    ...     optimizer.step()
    ...     return loss
    >>> [step(mg.tensor([1.0, float(t)])).item() for t in range(4)]
    [1.0, 2.75, 4.0, 4.0]
    """
    if not callable(function):
        raise TypeError(f"capture: expected a function, got {shown(function)}")
    return Captured(function)
