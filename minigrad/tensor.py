"""The tensor: an array, and its place on the tape.

Methods and operators only name the functions of `minigrad/ops`, which carry the documentation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad import dispatch, dtypes, recording
from minigrad.arguments import normalize_axis, shown
from minigrad.storage import Storage, device_away

if TYPE_CHECKING:
    from minigrad.autograd import Node

Scalar = bool | int | float
TensorLike = Any  # a Tensor, an array, nested lists or a number
_RETURN = "return the tensor and read it outside"


class Tensor:
    """An n-dimensional array that remembers how it was computed.

    Made by `mg.tensor`, `mg.zeros`, … and by operations. `requires_grad=True` on a leaf asks
    `backward()` to fill `.grad` (same shape and dtype).
    """

    __slots__ = (
        "__weakref__",
        "_array",
        "_grad",
        "_hooks",
        "_index",
        "_node",
        "_storage",
        "requires_grad",
    )
    __array_priority__ = 1000  # NumPy leaves mixed arithmetic to the methods here

    _array: np.ndarray
    requires_grad: bool
    _grad: Tensor | np.ndarray | None  # an array: memory that a captured step writes again
    _node: Node | None
    _index: int
    _storage: Storage | None
    _hooks: list[Callable[[Tensor], Tensor | None]] | None

    def __init__(self, *_: Any, **__: Any) -> None:
        raise TypeError("make tensors with mg.tensor(data), mg.zeros(shape), ...")

    @classmethod
    def _wrap(cls, array: np.ndarray) -> Tensor:
        self = _new(cls)
        self._array = array
        self.requires_grad = False
        self._grad = self._node = self._storage = self._hooks = None
        self._index = 0
        if dispatch.elsewhere and dispatch.active_device() != "cpu":
            self._storage = Storage(dispatch.active_device())
        return self

    @classmethod
    def _placed(cls, array: np.ndarray, device: str) -> Tensor:
        """`_wrap` for memory of a device that may not be the active one."""
        self = cls._wrap(array)
        self._storage = None if device == "cpu" else Storage(device)
        return self

    # ---- what it is ----

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of every axis."""
        return self._array.shape

    @property
    def dtype(self) -> np.dtype:
        """The type of the elements."""
        return self._array.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self._array.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._array.size

    @property
    def nbytes(self) -> int:
        """The bytes that the elements take."""
        return self._array.nbytes

    @property
    def device(self) -> str:
        """Where the memory is, and operations on it run: "cpu", "emulated:sm_80", …"""
        return "cpu" if self._storage is None else self._storage.device

    @property
    def is_leaf(self) -> bool:
        """Whether no operation on the tape made this tensor."""
        return self._node is None

    @property
    def storage(self) -> Storage:
        """What this tensor shares with its views: the version counter and packed copies."""
        found = self._storage
        if found is None:
            found = self._storage = Storage()
        return found

    @property
    def version(self) -> int:
        """How often the memory was changed in place."""
        return self.storage.version

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if not self.shape:
            raise TypeError("iteration over a 0-d tensor")
        return (self[i] for i in range(self.shape[0]))

    def __repr__(self) -> str:
        body = np.array2string(self._array, separator=", ", prefix="tensor(", threshold=60)
        extra = "" if self.dtype == dtypes.float32 else f", dtype={self.dtype.name}"
        if self._node is not None:
            extra += f", made by {self._node.name}"
        elif self.requires_grad:
            extra += ", requires_grad=True"
        if self.device != "cpu":
            extra += f", device={self.device}"
        return f"tensor({body}{extra})"

    # ---- out of the tensor world ----

    def numpy(self) -> np.ndarray:
        """The values as a read-only NumPy view (copy it to write)."""
        recording.refuse("numpy", _RETURN)
        view = self._array.view()
        view.flags.writeable = False
        return view

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        view = self.numpy()
        return np.array(view, dtype=dtype) if copy else np.asarray(view, dtype=dtype)

    def __dlpack__(self, **options: Any) -> Any:
        recording.refuse("__dlpack__", _RETURN)
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def item(self) -> Scalar:
        """The value of a tensor of one element as a Python number."""
        if self.size != 1:
            raise ValueError(f"item: expected one element, got shape {self.shape}")
        recording.refuse("item", _RETURN)
        return self._array.item()

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers."""
        recording.refuse("tolist", _RETURN)
        return self._array.tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if dtypes.is_floating(self.dtype):
            raise TypeError(f"a {self.dtype.name} tensor is no index")
        return int(self.item())

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(
                f"the truth of a tensor of shape {self.shape} is ambiguous; use .any() or .all()"
            )
        return bool(self.item())

    # ---- gradients ----

    @property
    def grad(self) -> Tensor | None:
        """What `backward` left for this leaf (same shape and dtype), or None."""
        if recording.active() and not recording.has_leaf(self):
            return self._brought_grad()
        found = self._grad
        if isinstance(found, np.ndarray):
            found = self._grad = Tensor._wrap(ops.copied(found))
        return found

    @grad.setter
    def grad(self, gradient: Tensor | None) -> None:
        self._grad = gradient
        recording.note_leaf(self)

    def _brought_grad(self) -> Tensor | None:
        """The gradient from before the step that is being recorded; each replay brings its own."""
        if self._grad is None:
            recording.guard(lambda: self._grad is None)
            return None
        recording.guard(lambda: self._grad is not None)
        own = ops.empty_like(self)
        recording.cell(own._array)
        recording.repeat(partial(self._bring_grad, own))
        self.grad = own
        return own

    def _bring_grad(self, out: Tensor) -> None:
        given = self._grad
        out._array[...] = given._array if isinstance(given, Tensor) else given

    def backward(
        self,
        grad: TensorLike = None,
        retain_graph: bool = False,
        create_graph: bool = False,
    ) -> None:
        """Adds d self / d leaf to `.grad` of every leaf that requires it.

        `grad` (same shape and dtype) weights the elements; only scalars may leave it out. The graph
        is freed unless `retain_graph` (or `create_graph`, which also makes the gradients
        differentiable) is set.
        """
        autograd.backward([self], [grad], retain_graph or create_graph, create_graph)

    def detach(self) -> Tensor:
        """The same memory outside of the graph."""
        out = Tensor._wrap(self._array)
        out._storage = self.storage
        return out

    def requires_grad_(self, flag: bool = True) -> Tensor:
        """Asks for a gradient (or no longer); leaves of a floating dtype only. Returns self."""
        if flag and not dtypes.is_floating(self.dtype):
            raise TypeError(
                f"requires_grad: only floating tensors have gradients, this one is "
                f"{self.dtype.name}; convert it with .to(mg.float32)"
            )
        if self._node is not None:
            raise RuntimeError(
                f"requires_grad: this tensor was made by {self._node.name}; detach() it first"
            )
        self.requires_grad = flag
        return self

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> Callable[[], None]:
        """Calls `hook(gradient)` in backward when this tensor's gradient is complete.

        What the hook returns (unless None) replaces the gradient. Returns a function that removes
        the hook.
        """
        if not callable(hook):
            raise TypeError(f"register_hook: expected a function, got {shown(hook)}")
        if not self.requires_grad:
            raise RuntimeError("register_hook: this tensor does not require a gradient")
        if self._node is None:
            self._hooks = hooks = self._hooks or []
        else:
            self._node.hooks = self._node.hooks or {}
            hooks = self._node.hooks.setdefault(self._index, [])
        hooks.append(hook)
        return lambda: hooks.remove(hook)

    def retain_grad(self) -> None:
        """Has `backward` fill `.grad` of a tensor that is not a leaf, too."""
        if self._node is not None:
            self.register_hook(autograd.Retain(self))

    # ---- changes in place ----

    def _write(
        self, op: str, value: Tensor, write: Callable[[np.ndarray, np.ndarray], Any]
    ) -> Tensor:
        """write(memory, array of `value`), where both are fit for it. Returns self."""
        if autograd.is_grad_enabled() and self.requires_grad:
            raise RuntimeError(
                f"{op}: changing a tensor that requires a gradient in place; do it under "
                "mg.no_grad(), or make a new tensor"
            )
        if autograd.is_grad_enabled() and value.requires_grad:
            raise RuntimeError(
                f"{op}: the value requires a gradient, and a change in place leaves no graph; make "
                "a new tensor (y = y + x, mg.where, mg.concat, mg.scatter_add), or assign under "
                "mg.no_grad() or from x.detach()"
            )
        device = device_away(op, self, value)
        if device is not None:
            with dispatch.device(device):
                return self._write(op, value, write)
        if not self._array.flags.writeable:
            raise RuntimeError(
                f"{op}: this tensor's memory is read-only or broadcast; copy it first"
            )
        source = value._array
        if np.may_share_memory(source, self._array):
            source = ops.copied(source)  # kernels write in any order
        write(self._array, source)
        recording.repeat(self.storage.changed)
        return self

    def _assign(self, op: str, value: Tensor) -> Tensor:
        if value.shape != self.shape:
            raise ValueError(f"{op}: result of shape {value.shape} does not fit {self.shape}")
        return self._write(op, value, ops.copy_into)

    def copy_(self, source: TensorLike) -> Tensor:
        """Overwrites the values with those of `source` (broadcast, cast). Returns self."""
        return self._write("copy_", ops.as_tensor(source), partial(ops.copy_fitting, "copy_"))

    def __setitem__(self, index: Any, value: TensorLike) -> None:
        ops.set_item(self, index, value)

    def __iadd__(self, other: TensorLike) -> Tensor:
        return self._assign("+=", self + other)

    def __isub__(self, other: TensorLike) -> Tensor:
        return self._assign("-=", self - other)

    def __imul__(self, other: TensorLike) -> Tensor:
        return self._assign("*=", self * other)

    def __itruediv__(self, other: TensorLike) -> Tensor:
        return self._assign("/=", self / other)

    def __ifloordiv__(self, other: TensorLike) -> Tensor:
        return self._assign("//=", self // other)

    def __imod__(self, other: TensorLike) -> Tensor:
        return self._assign("%=", self % other)

    # ---- operators ----

    def __add__(self, other: TensorLike) -> Tensor:
        return ops.add(self, other)

    def __radd__(self, other: TensorLike) -> Tensor:
        return ops.add(other, self)

    def __sub__(self, other: TensorLike) -> Tensor:
        return ops.sub(self, other)

    def __rsub__(self, other: TensorLike) -> Tensor:
        return ops.sub(other, self)

    def __mul__(self, other: TensorLike) -> Tensor:
        return ops.mul(self, other)

    def __rmul__(self, other: TensorLike) -> Tensor:
        return ops.mul(other, self)

    def __truediv__(self, other: TensorLike) -> Tensor:
        return ops.div(self, other)

    def __rtruediv__(self, other: TensorLike) -> Tensor:
        return ops.div(other, self)

    def __floordiv__(self, other: TensorLike) -> Tensor:
        return ops.floor_divide(self, other)

    def __rfloordiv__(self, other: TensorLike) -> Tensor:
        return ops.floor_divide(other, self)

    def __mod__(self, other: TensorLike) -> Tensor:
        return ops.remainder(self, other)

    def __rmod__(self, other: TensorLike) -> Tensor:
        return ops.remainder(other, self)

    def __pow__(self, other: TensorLike) -> Tensor:
        return ops.pow(self, other)

    def __rpow__(self, other: TensorLike) -> Tensor:
        return ops.pow(other, self)

    def __matmul__(self, other: TensorLike) -> Tensor:
        return ops.matmul(self, other)

    def __rmatmul__(self, other: TensorLike) -> Tensor:
        return ops.matmul(other, self)

    def __neg__(self) -> Tensor:
        return ops.neg(self)

    def __abs__(self) -> Tensor:
        return ops.abs(self)

    def __eq__(self, other: TensorLike) -> Tensor:  # type: ignore[override]
        return ops.eq(self, other)

    def __ne__(self, other: TensorLike) -> Tensor:  # type: ignore[override]
        return ops.ne(self, other)

    def __lt__(self, other: TensorLike) -> Tensor:
        return ops.lt(self, other)

    def __le__(self, other: TensorLike) -> Tensor:
        return ops.le(self, other)

    def __gt__(self, other: TensorLike) -> Tensor:
        return ops.gt(self, other)

    def __ge__(self, other: TensorLike) -> Tensor:
        return ops.ge(self, other)

    __hash__ = object.__hash__

    def __and__(self, other: TensorLike) -> Tensor:
        return ops.logical_and(self, other)

    def __or__(self, other: TensorLike) -> Tensor:
        return ops.logical_or(self, other)

    def __invert__(self) -> Tensor:
        return ops.logical_not(self)

    def __getitem__(self, index: Any) -> Tensor:
        return ops.get_item(self, index)

    # ---- elementwise ----

    def to(self, target: Any) -> Tensor:
        """This tensor on another device (a name such as "cpu") or as another dtype."""
        return ops.to(self, target)

    def exp(self) -> Tensor:
        """See `mg.exp`."""
        return ops.exp(self)

    def log(self) -> Tensor:
        """See `mg.log`."""
        return ops.log(self)

    def sqrt(self) -> Tensor:
        """See `mg.sqrt`."""
        return ops.sqrt(self)

    def abs(self) -> Tensor:
        """See `mg.abs`."""
        return ops.abs(self)

    def tanh(self) -> Tensor:
        """See `mg.tanh`."""
        return ops.tanh(self)

    def sigmoid(self) -> Tensor:
        """See `mg.sigmoid`."""
        return ops.sigmoid(self)

    def relu(self) -> Tensor:
        """See `mg.relu`."""
        return ops.relu(self)

    def clip(self, low: float | None = None, high: float | None = None) -> Tensor:
        """See `mg.clip`."""
        return ops.clip(self, low, high)

    # ---- reductions ----

    def sum(self, axis: ops.Axis = None, keepdims: bool = False) -> Tensor:
        """See `mg.sum`."""
        return ops.sum(self, axis, keepdims)

    def mean(self, axis: ops.Axis = None, keepdims: bool = False) -> Tensor:
        """See `mg.mean`."""
        return ops.mean(self, axis, keepdims)

    def var(self, axis: ops.Axis = None, correction: float = 0, keepdims: bool = False) -> Tensor:
        """See `mg.var`."""
        return ops.var(self, axis, correction, keepdims)

    def std(self, axis: ops.Axis = None, correction: float = 0, keepdims: bool = False) -> Tensor:
        """See `mg.std`."""
        return ops.std(self, axis, correction, keepdims)

    def max(self, axis: ops.Axis = None, keepdims: bool = False) -> Tensor:
        """See `mg.max`."""
        return ops.max(self, axis, keepdims)

    def min(self, axis: ops.Axis = None, keepdims: bool = False) -> Tensor:
        """See `mg.min`."""
        return ops.min(self, axis, keepdims)

    def any(self, axis: ops.Axis = None, keepdims: bool = False) -> Tensor:
        """See `mg.any`."""
        return ops.any(self, axis, keepdims)

    def all(self, axis: ops.Axis = None, keepdims: bool = False) -> Tensor:
        """See `mg.all`."""
        return ops.all(self, axis, keepdims)

    def argmax(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """See `mg.argmax`."""
        return ops.argmax(self, axis, keepdims)

    def argmin(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """See `mg.argmin`."""
        return ops.argmin(self, axis, keepdims)

    def softmax(self, axis: int = -1) -> Tensor:
        """See `mg.softmax`."""
        return ops.softmax(self, axis)

    def log_softmax(self, axis: int = -1) -> Tensor:
        """See `mg.log_softmax`."""
        return ops.log_softmax(self, axis)

    # ---- movement ----

    def reshape(self, *shape: Any) -> Tensor:
        """See `mg.reshape`."""
        return ops.reshape(self, shape[0] if len(shape) == 1 and not _is_int(shape[0]) else shape)

    def transpose(self, *axes: Any) -> Tensor:
        """Axes reversed, or in the order given, as in NumPy; see `mg.transpose`."""
        given = axes[0] if len(axes) == 1 and not _is_int(axes[0]) else axes or None
        return ops.transpose(self, given)

    def swapaxes(self, axis1: int, axis2: int) -> Tensor:
        """With two axes exchanged; see `mg.swapaxes`."""
        return ops.swapaxes(self, axis1, axis2)

    def permute(self, *axes: Any) -> Tensor:
        """See `mg.permute`."""
        return ops.permute(self, axes[0] if len(axes) == 1 and not _is_int(axes[0]) else axes)

    def expand(self, *shape: Any) -> Tensor:
        """See `mg.expand`."""
        return ops.expand(self, shape[0] if len(shape) == 1 and not _is_int(shape[0]) else shape)

    def squeeze(self, axis: ops.Axis = None) -> Tensor:
        """Without axes of length 1: all of them, or those named; see `mg.squeeze`."""
        return ops.squeeze(self, axis)

    def flatten(self, start_axis: int = 0) -> Tensor:
        """The axes from `start_axis` on as one."""
        start = normalize_axis("flatten", start_axis, max(self.ndim, 1))
        return ops.reshape(self, (*self.shape[:start], math.prod(self.shape[start:])))

    def contiguous(self) -> Tensor:
        """In C order: itself where it already is, else a copy."""
        return ops.contiguous(self)

    @property
    def T(self) -> Tensor:  # noqa: N802  (the name everybody knows)
        """A matrix transposed (two dimensions only; see `transpose` and `permute`)."""
        if self.ndim != 2:
            raise ValueError(f"T: expected two dimensions, got shape {self.shape}; use permute")
        return ops.swapaxes(self, 0, 1)


_new = object.__new__


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, np.integer))


# Methods name both, and both make tensors; the walk back over the tape uses ops.
from minigrad import ops  # noqa: E402, I001
from minigrad import autograd  # noqa: E402
