"""New tensors, from data, constants and generators of random numbers; and casts between dtypes."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minigrad import dtypes, recording
from minigrad.arguments import Shape, integer, new_shape, number, shown
from minigrad.autograd import Function, Node
from minigrad.cost import Cost, nbytes
from minigrad.dispatch import check_device, empty, launch, launch_numpy
from minigrad.random import Generator, next_cell
from minigrad.storage import Storage
from minigrad.tensor import Tensor, TensorLike

__all__ = [
    "arange",
    "as_tensor",
    "cast",
    "contiguous",
    "copy_into",
    "empty_like",
    "eye",
    "full",
    "full_like",
    "linspace",
    "ones",
    "ones_like",
    "rand",
    "randint",
    "randn",
    "randperm",
    "tensor",
    "to",
    "zeros",
    "zeros_like",
]

# ---- reference ----


def _copy_ref(x: np.ndarray, out: np.ndarray) -> None:
    out[...] = x.astype(out.dtype)


def _fill_ref(out: np.ndarray, value: float) -> None:
    out[...] = value


REFERENCE = {"copy": _copy_ref, "fill": _fill_ref}
COST = {
    "copy": lambda x, out: Cost(nbytes(x, out), 0),
    "fill": lambda out, value: Cost(nbytes(out), 0),
    "numpy:randint": lambda bits, low, high, out: Cost(nbytes(bits, out), 0),
    "numpy:randperm": lambda bits, out: Cost(nbytes(bits, out), 0),
}


def copy_into(out: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Writes x (broadcast, cast) into out."""
    launch("copy", x, out)
    return out


def copy_fitting(op: str, out: np.ndarray, x: np.ndarray) -> None:
    """`copy_into` where x broadcasts to out's shape (axes of length 1 in front aside), or an
    error."""
    extra = max(0, x.ndim - out.ndim)
    fits = x.shape[:extra] == (1,) * extra and all(
        n in (1, m) for n, m in zip(reversed(x.shape[extra:]), reversed(out.shape), strict=False)
    )
    if not fits:
        raise ValueError(f"{op}: a value of shape {x.shape} does not fit {out.shape}")
    copy_into(out, x.reshape(x.shape[extra:]))


def copied(x: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
    """x as a new contiguous array of the pool."""
    return copy_into(empty(x.shape, dtype or x.dtype), x)


def has_unit_columns(x: np.ndarray) -> bool:
    """Whether the last axis has unit stride, as row kernels read it."""
    return x.shape[-1] <= 1 or x.strides[-1] == x.itemsize


def unit_columns(x: np.ndarray) -> np.ndarray:
    """x itself where its last axis has unit stride, else a copy."""
    return x if has_unit_columns(x) else copied(x)


# ---- differentiable ----


class Cast(Function):
    @staticmethod
    def forward(ctx: Node, x: np.ndarray, dtype: np.dtype) -> np.ndarray:
        ctx.dtype = x.dtype
        return copied(x, dtype)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        return cast(g, ctx.dtype)


class Move(Function):
    """The same values in memory of another device."""

    @staticmethod
    def forward(ctx: Node, x: np.ndarray, source: str) -> np.ndarray:
        ctx.source = source
        return copied(x)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        return to(g, ctx.source)


class Copy(Function):
    """The same values in new memory, in C order."""

    @staticmethod
    def forward(ctx: Node, x: np.ndarray) -> np.ndarray:
        return copied(x)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> Tensor:
        return g


# ---- public ----


def tensor(
    data: Any,
    dtype: Any = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """A new leaf holding a copy of `data` (an array, nested lists, a number or another tensor).

    Python floats become float32 and Python integers int64; arrays keep their dtype unless `dtype`
    is given. It is made on `device`, or where `mg.device` says. Raises TypeError for dtypes that
    are not minigrad's, ValueError for an unknown device.

    >>> tensor([[1.0, 2.0]], requires_grad=True).shape
    (1, 2)
    """
    if not isinstance(data, Tensor):
        recording.refuse("tensor", "make it outside and pass it as an argument")
    out = constant(data, dtype)
    if device is not None and device != out.device:
        out = to(out, check_device("tensor", device))
    return out.requires_grad_() if requires_grad else out


def constant(data: Any, dtype: Any = None) -> Tensor:
    """`tensor` for what follows from shapes and numbers of the program: in a captured step, too."""
    if isinstance(data, Tensor):
        array = data._array
    elif isinstance(data, np.ndarray) or hasattr(data, "__array__"):
        array = np.asarray(data)
    elif hasattr(data, "__dlpack__"):
        array = np.from_dlpack(data)
    else:
        try:
            array = np.asarray(data)
        except (TypeError, ValueError):  # nested lists of different lengths, or of tensors
            array = np.empty((), object)
        if array.dtype == np.float64 and dtype is None:
            array = array.astype(np.float32)
    if array.dtype.kind in "OSUMmc" or array.dtype.names:
        raise TypeError(
            f"tensor: {shown(data)} is not a regular array of numbers (real, of at most 64 bits)"
        )
    if dtype is None and array.dtype not in dtypes.ALL:
        raise TypeError(
            f"tensor: dtype {array.dtype} is not supported; pass dtype=, one of "
            f"{', '.join(d.name for d in dtypes.ALL)}"
        )
    wanted = array.dtype if dtype is None else dtypes.as_dtype(dtype)
    if array.dtype not in dtypes.ALL or not array.dtype.isnative or not array.flags.aligned:
        array = array.astype(wanted)
    return Tensor._wrap(copied(array, wanted))


def as_tensor(data: Any) -> Tensor:
    """`data` itself if it is a tensor, else a tensor of it."""
    if data.__class__ is Tensor:
        return data
    return constant(data) if data.__class__ in (int, float, bool) else tensor(data)


def full(shape: Shape, value: float, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of `shape` filled with `value`; float32 unless `dtype` says otherwise."""
    return _full("full", shape, value, dtype, requires_grad)


def _full(
    op: str,
    shape: Shape,
    value: float,
    dtype: Any,
    requires_grad: bool = False,
    device: str | None = None,
) -> Tensor:
    wanted = _new_dtype(op, shape, dtype)
    value = fill_value(op, value, wanted)
    out = empty(new_shape(op, shape), wanted)
    if isinstance(value, int) and abs(value) > 2**53:  # more than the kernel's double has
        launch("copy", np.broadcast_to(np.array(value, wanted), out.shape), out)
    else:
        launch("fill", out, float(value))
    tensor = Tensor._wrap(out) if device is None else Tensor._placed(out, device)
    return tensor.requires_grad_() if requires_grad else tensor


def _new_dtype(op: str, shape: Shape, dtype: Any) -> np.dtype:
    if isinstance(dtype, int):  # zeros(2, 3), as other libraries have it
        raise TypeError(
            f"{op}: {dtype} is no dtype; several dimensions are one tuple, ({shape}, {dtype})"
        )
    return dtypes.float32 if dtype is None else dtypes.as_dtype(dtype)


def fill_value(op: str, value: float, dtype: np.dtype) -> float:
    """`value` as a number that an array of `dtype` can hold."""
    value = number(op, "value", value)
    if dtype in dtypes.INTEGRAL:
        limits = np.iinfo(dtype)
        fits = limits.min <= value <= limits.max
    else:
        fits = not isinstance(value, int) or abs(value) <= sys.float_info.max
    if not fits:
        raise OverflowError(f"{op}: the number {shown(value)} does not fit into {dtype.name}")
    return value


def zeros(shape: Shape, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of `shape` filled with 0; float32 unless `dtype` says otherwise."""
    return _full("zeros", shape, 0, dtype, requires_grad)


def ones(shape: Shape, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of `shape` filled with 1; float32 unless `dtype` says otherwise."""
    return _full("ones", shape, 1, dtype, requires_grad)


def full_like(x: TensorLike, value: float, dtype: Any = None) -> Tensor:
    """A tensor of x's shape (and dtype, unless given), on its device, filled with `value`."""
    x = as_tensor(x)
    return _full("full_like", x.shape, value, x.dtype if dtype is None else dtype, device=x.device)


def zeros_like(x: TensorLike, dtype: Any = None) -> Tensor:
    """A tensor of x's shape (and dtype, unless given), on its device, filled with 0."""
    x = as_tensor(x)
    return _full("zeros_like", x.shape, 0, x.dtype if dtype is None else dtype, device=x.device)


def ones_like(x: TensorLike, dtype: Any = None) -> Tensor:
    """A tensor of x's shape (and dtype, unless given), on its device, filled with 1."""
    x = as_tensor(x)
    return _full("ones_like", x.shape, 1, x.dtype if dtype is None else dtype, device=x.device)


def empty_like(x: TensorLike) -> Tensor:
    """Uninitialised memory of x's shape and dtype, on its device."""
    x = as_tensor(x)
    return Tensor._placed(empty(x.shape, x.dtype), x.device)


def arange(start: float, stop: float | None = None, step: float = 1, dtype: Any = None) -> Tensor:
    """start, start + step, … below stop; int64 for integers, float32 otherwise."""
    op = "arange"
    lo, hi = (0, start) if stop is None else (start, stop)
    lo, hi, step = number(op, "start", lo), number(op, "stop", hi), number(op, "step", step)
    if step == 0:
        raise ValueError(f"{op}: step must not be 0")
    _check_finite(op, start=lo, stop=hi, step=step)
    whole = isinstance(lo, int) and isinstance(hi, int) and isinstance(step, int)
    if whole and max(abs(lo), abs(hi), abs(step)) >= 2**63:
        raise OverflowError(f"{op}: {lo} to {hi} by {step} does not fit into int64")
    new_shape(op, (max(0, math.ceil((hi - lo) / step)),))
    values = _by_numpy(op, partial(np.arange, lo, hi, step))
    return constant(values, (dtypes.int64 if whole else dtypes.float32) if dtype is None else dtype)


def _check_finite(op: str, **numbers: float) -> None:
    for name, value in numbers.items():
        if not abs(value) <= sys.float_info.max:
            raise ValueError(f"{op}: {name} must be finite, got {shown(value)}")


def _by_numpy(op: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """What NumPy makes in memory of its own, of which there may not be enough."""
    try:
        return make()
    except MemoryError as error:
        raise MemoryError(f"{op}: {error}") from None


def linspace(start: float, stop: float, num: int, dtype: Any = None) -> Tensor:
    """`num` evenly spaced values from start to stop, both included."""
    op = "linspace"
    lo, hi, n = number(op, "start", start), number(op, "stop", stop), integer(op, "num", num, 0)
    _check_finite(op, start=lo, stop=hi)
    new_shape(op, (n,))
    values = _by_numpy(op, partial(np.linspace, float(lo), float(hi), n))
    return constant(values, dtypes.float32 if dtype is None else dtype)


def eye(n: int, m: int | None = None, dtype: Any = None) -> Tensor:
    """Ones on the diagonal of an (n, m) matrix of zeros."""
    shape = integer("eye", "n", n, 0), integer("eye", "m", n if m is None else m, 0)
    new_shape("eye", shape)
    wanted = dtypes.float32 if dtype is None else dtype
    return constant(_by_numpy("eye", partial(np.eye, *shape)), wanted)


def cast(x: TensorLike, dtype: Any) -> Tensor:
    """x converted to `dtype`; x itself where it already has it."""
    x = as_tensor(x)
    if x._array.dtype is dtype:
        return x
    wanted = dtypes.as_dtype(dtype)
    return x if x.dtype == wanted else Cast.apply(x, dtype=wanted)


def to(x: TensorLike, target: Any) -> Tensor:
    """x on the device or in the dtype that `target` names; x itself where it is that already."""
    x = as_tensor(x)
    if not names_device(target):
        return cast(x, target)
    if check_device("to", target) == x.device:
        return x
    out: Tensor = Move.apply(x, source=x.device)
    out._storage = Storage(target)
    return out


def names_device(target: Any) -> bool:
    """Whether what `to` was given means a device."""
    return isinstance(target, str) and target.split(":")[0] in ("cpu", "cuda", "emulated")


def contiguous(x: TensorLike) -> Tensor:
    """x in C order: itself where it already is, else a copy."""
    x = as_tensor(x)
    return x if x._array.flags.c_contiguous else copy(x)


def copy(x: Tensor) -> Tensor:
    """x in memory of its own, in C order."""
    return Copy.apply(x)


# ---- random ----


def rand(shape: Shape, dtype: Any = None, generator: Generator | None = None) -> Tensor:
    """Uniform on [0, 1)."""
    return _random("rand", "random_uniform", shape, dtype, generator)


def randn(shape: Shape, dtype: Any = None, generator: Generator | None = None) -> Tensor:
    """Standard normal."""
    return _random("randn", "random_normal", shape, dtype, generator)


def _random(op: str, kernel: str, shape: Shape, dtype: Any, generator: Generator | None) -> Tensor:
    wanted = _new_dtype(op, shape, dtype)
    drawn = dtypes.float64 if wanted == dtypes.float64 else dtypes.float32
    out = empty(new_shape(op, shape), drawn)
    launch(kernel, out, next_cell(op, generator))
    return cast(Tensor._wrap(out), wanted)


def randint(low: int, high: int, shape: Shape, generator: Generator | None = None) -> Tensor:
    """Uniform integers (int64) in [low, high); high - low at most 2^32."""
    low, high = integer("randint", "low", low), integer("randint", "high", high)
    if not 0 < high - low <= 2**32:
        raise ValueError(f"randint: expected 0 < high - low <= 2^32, got low={low}, high={high}")
    if not -(2**63) <= low < high <= 2**63:
        raise OverflowError(f"randint: {low} to {high} does not fit into int64")
    bits = empty(new_shape("randint", shape), dtypes.int64)
    launch("random_bits", bits, next_cell("randint", generator))
    out = empty(bits.shape, dtypes.int64)
    launch_numpy("randint", _scale_bits, bits, low, high, out)
    return Tensor._wrap(out)


def _scale_bits(bits: np.ndarray, low: int, high: int, out: np.ndarray) -> None:
    # Multiply-and-shift keeps the bias below (high - low) / 2^32.
    scaled = (bits.astype(np.uint64) * np.uint64(high - low)) >> np.uint64(32)
    out[...] = scaled.astype(np.int64) + low


def randperm(n: int, generator: Generator | None = None) -> Tensor:
    """A random permutation of 0 … n-1 (int64)."""
    bits = empty(new_shape("randperm", (integer("randperm", "n", n, 0),)), dtypes.int64)
    launch("random_bits", bits, next_cell("randperm", generator))
    out = empty(bits.shape, dtypes.int64)
    launch_numpy("randperm", _order_of, bits, out)
    return Tensor._wrap(out)


def _order_of(bits: np.ndarray, out: np.ndarray) -> None:
    out[...] = np.argsort(bits, kind="stable")
