"""New tensors, from data, constants and generators of random numbers; and casts between dtypes."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from minigrad import dtypes, recording
from minigrad.autograd import Function, Node
from minigrad.cost import Cost, nbytes
from minigrad.dispatch import check_device, empty, launch, launch_numpy
from minigrad.random import Generator, default_generator
from minigrad.storage import Storage
from minigrad.tensor import Tensor

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

Shape = int | Sequence[int]


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


def copy_fitting(out: np.ndarray, x: np.ndarray) -> None:
    """`copy_into` where x broadcasts to out's shape (axes of length 1 in front aside), or an
    error."""
    extra = max(0, x.ndim - out.ndim)
    fits = x.shape[:extra] == (1,) * extra and all(
        n in (1, m) for n, m in zip(reversed(x.shape[extra:]), reversed(out.shape), strict=False)
    )
    if not fits:
        raise ValueError(f"a value of shape {x.shape} does not fit {out.shape}")
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


def check_shape(op: str, shape: Shape) -> tuple[int, ...]:
    dims = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    try:
        out = tuple(map(operator.index, dims))
    except TypeError:
        raise TypeError(f"{op}: a shape is of integers, got {shape}") from None
    if any(d < 0 for d in out):
        raise ValueError(f"{op}: negative dimension in shape {out}")
    if math.prod(out) >= 2**60:
        raise MemoryError(f"{op}: shape {out} has {math.prod(out)} elements, more than can exist")
    return out


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
        array = np.asarray(data)
        if array.dtype == np.float64 and dtype is None:
            array = array.astype(np.float32)
    if array.dtype == object:
        raise TypeError(f"tensor: {type(data).__name__} is not a regular array of numbers")
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
    wanted = dtypes.as_dtype(dtype or dtypes.float32)
    if wanted in dtypes.INTEGRAL:
        limits = np.iinfo(wanted)
        if not limits.min <= value <= limits.max:
            raise OverflowError(f"{op}: the number {value} does not fit into {wanted.name}")
    out = empty(check_shape(op, shape), wanted)
    if (
        isinstance(value, (int, np.integer)) and abs(int(value)) > 2**53
    ):  # more than the kernel's double has
        launch("copy", np.broadcast_to(np.array(value, wanted), out.shape), out)
    else:
        launch("fill", out, float(value))
    tensor = Tensor._wrap(out) if device is None else Tensor._placed(out, device)
    return tensor.requires_grad_() if requires_grad else tensor


def zeros(shape: Shape, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of `shape` filled with 0; float32 unless `dtype` says otherwise."""
    return _full("zeros", shape, 0, dtype, requires_grad)


def ones(shape: Shape, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of `shape` filled with 1; float32 unless `dtype` says otherwise."""
    return _full("ones", shape, 1, dtype, requires_grad)


def full_like(x: Tensor, value: float, dtype: Any = None) -> Tensor:
    """A tensor of x's shape (and dtype, unless given), on its device, filled with `value`."""
    return _full("full_like", x.shape, value, dtype or x.dtype, device=x.device)


def zeros_like(x: Tensor, dtype: Any = None) -> Tensor:
    """A tensor of x's shape (and dtype, unless given), on its device, filled with 0."""
    return _full("zeros_like", x.shape, 0, dtype or x.dtype, device=x.device)


def ones_like(x: Tensor, dtype: Any = None) -> Tensor:
    """A tensor of x's shape (and dtype, unless given), on its device, filled with 1."""
    return _full("ones_like", x.shape, 1, dtype or x.dtype, device=x.device)


def empty_like(x: Tensor) -> Tensor:
    """Uninitialised memory of x's shape and dtype, on its device."""
    return Tensor._placed(empty(x.shape, x.dtype), x.device)


def arange(start: float, stop: float | None = None, step: float = 1, dtype: Any = None) -> Tensor:
    """start, start + step, … below stop; int64 for integers, float32 otherwise."""
    lo, hi = (0, start) if stop is None else (start, stop)
    values = np.arange(lo, hi, step)
    if dtype is None:
        dtype = dtypes.int64 if values.dtype.kind == "i" else dtypes.float32
    return constant(values, dtype)


def linspace(start: float, stop: float, num: int, dtype: Any = None) -> Tensor:
    """`num` evenly spaced values from start to stop, both included."""
    return constant(np.linspace(start, stop, num), dtype or dtypes.float32)


def eye(n: int, m: int | None = None, dtype: Any = None) -> Tensor:
    """Ones on the diagonal of an (n, m) matrix of zeros."""
    return constant(np.eye(n, m), dtype or dtypes.float32)


def cast(x: Tensor, dtype: Any) -> Tensor:
    """x converted to `dtype`; x itself where it already has it."""
    if x._array.dtype is dtype:
        return x
    wanted = dtypes.as_dtype(dtype)
    return x if x.dtype == wanted else Cast.apply(x, dtype=wanted)


def to(x: Tensor, target: Any) -> Tensor:
    """x on the device or in the dtype that `target` names; x itself where it is that already."""
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


def contiguous(x: Tensor) -> Tensor:
    """x in C order: itself where it already is, else a copy."""
    return x if x._array.flags.c_contiguous else copy(x)


def copy(x: Tensor) -> Tensor:
    """x in memory of its own, in C order."""
    return Copy.apply(x)


# ---- random ----


def rand(shape: Shape, dtype: Any = None, generator: Generator | None = None) -> Tensor:
    """Uniform on [0, 1)."""
    return _random("random_uniform", shape, dtype, generator)


def randn(shape: Shape, dtype: Any = None, generator: Generator | None = None) -> Tensor:
    """Standard normal."""
    return _random("random_normal", shape, dtype, generator)


def _random(kernel: str, shape: Shape, dtype: Any, generator: Generator | None) -> Tensor:
    wanted = dtypes.as_dtype(dtype or dtypes.float32)
    drawn = dtypes.float64 if wanted == dtypes.float64 else dtypes.float32
    out = empty(check_shape(kernel, shape), drawn)
    launch(kernel, out, (generator or default_generator()).next_cell())
    return cast(Tensor._wrap(out), wanted)


def randint(low: int, high: int, shape: Shape, generator: Generator | None = None) -> Tensor:
    """Uniform integers (int64) in [low, high); high - low at most 2^32."""
    if not 0 < high - low <= 2**32:
        raise ValueError(f"randint: expected 0 < high - low <= 2^32, got low={low}, high={high}")
    bits = empty(check_shape("randint", shape), dtypes.int64)
    launch("random_bits", bits, (generator or default_generator()).next_cell())
    out = empty(bits.shape, dtypes.int64)
    launch_numpy("randint", _scale_bits, bits, low, high, out)
    return Tensor._wrap(out)


def _scale_bits(bits: np.ndarray, low: int, high: int, out: np.ndarray) -> None:
    # Multiply-and-shift keeps the bias below (high - low) / 2^32.
    scaled = (bits.astype(np.uint64) * np.uint64(high - low)) >> np.uint64(32)
    out[...] = scaled.astype(np.int64) + low


def randperm(n: int, generator: Generator | None = None) -> Tensor:
    """A random permutation of 0 … n-1 (int64)."""
    bits = empty((n,), dtypes.int64)
    launch("random_bits", bits, (generator or default_generator()).next_cell())
    out = empty((n,), dtypes.int64)
    launch_numpy("randperm", _order_of, bits, out)
    return Tensor._wrap(out)


def _order_of(bits: np.ndarray, out: np.ndarray) -> None:
    out[...] = np.argsort(bits, kind="stable")
