"""The linear layer of mixed precision: bfloat16 products of float32 (or bfloat16) operands.

A weight is packed for the product once for each of its versions, as it stands (for the gradient of
x) and transposed (for forward); the packed copies belong to its storage. As an optimizer writes the
weight it rewrites those that are up to date (`current_copies`), so that training packs none.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from minigrad import dtypes, recording
from minigrad.autograd import Function, Node
from minigrad.cost import Cost, nbytes, product_cost
from minigrad.dispatch import empty, launch
from minigrad.ops.movement import swapaxes
from minigrad.ops.reduce import Sum
from minigrad.storage import Storage
from minigrad.tensor import Tensor

__all__: list[str] = []

# The layout of packed operands, as csrc/matmul_bf16.h says.
_COLUMNS, _DEPTH = 32, 32
MAX_PACKED = 8  # copies that one storage keeps, of its views and their transposes


def _packed_shape(k: int, n: int) -> tuple[int, int, int, int]:
    return -(-n // _COLUMNS), -(-k // _DEPTH) * _DEPTH // 2, _COLUMNS, 2


def pack_reference(b: np.ndarray, packed: np.ndarray) -> None:
    panels, pairs, columns, _ = packed.shape
    wide = np.zeros((2 * pairs, panels * columns), dtypes.bfloat16)
    wide[: b.shape[0], : b.shape[1]] = b.astype(dtypes.bfloat16)
    packed[...] = wide.reshape(pairs, 2, panels, columns).transpose(2, 0, 3, 1)


def _matmul_packed_ref(
    a: np.ndarray,
    packed: np.ndarray,
    bias: np.ndarray | None,
    out: np.ndarray,
    accumulate: bool,
) -> None:
    panels, pairs, columns, _ = packed.shape
    b = packed.transpose(1, 3, 0, 2).reshape(2 * pairs, panels * columns)
    b = b[: a.shape[1], : out.shape[1]].astype(np.float64)
    total = np.matmul(a.astype(dtypes.bfloat16).astype(np.float64), b)
    if bias is not None:
        total = total + bias
    out[...] = (total + out.astype(np.float64) if accumulate else total).astype(out.dtype)


REFERENCE = {"pack_bf16": pack_reference, "matmul_packed": _matmul_packed_ref}
COST = {
    "pack_bf16": lambda b, packed: Cost(nbytes(b, packed), b.size),
    "matmul_packed": lambda a, packed, bias, out, accumulate: product_cost(
        nbytes(a, packed, bias, out), 2 * out.size * a.shape[1], packed.dtype
    ),
}


def pack(b: np.ndarray, into: np.ndarray | None = None) -> np.ndarray:
    """b (K, N) as panels, in the buffer `into` where one is given."""
    packed = empty(_packed_shape(*b.shape), dtypes.bfloat16) if into is None else into
    launch("pack_bf16", b, packed)
    return packed


def _make_room(storage: Storage) -> None:
    """Before another view's copy is kept: those of older versions go, and the oldest of many."""
    kept = [(k, entry) for k, entry in storage.packed.items() if entry[0] == storage.version]
    storage.packed = dict(kept[-(MAX_PACKED - 1) :])


class PackedCopy(NamedTuple):
    """A matrix as panels, which a storage keeps."""

    storage: Storage
    layout: str
    panels: np.ndarray

    def written(self) -> None:
        """Notes that the panels are those of the storage's present version."""
        self.storage.packed[self.layout] = self.storage.version, self.panels

    def is_kept(self) -> bool:
        return self.storage.packed.get(self.layout, (-1, None))[1] is self.panels

    def renew(self, matrix: np.ndarray) -> None:
        if self.storage.packed[self.layout][0] != self.storage.version:
            pack(matrix, self.panels)
            self.written()


def _layout(array: np.ndarray) -> str:
    """Which copy arrayᵀ as panels is: views share a storage, so it says which view, too."""
    return f"bf16 {array.__array_interface__['data'][0]} {array.shape} {array.strides}"


def packed_weight(weight: Tensor) -> np.ndarray:
    """weightᵀ as panels: the copy that its storage keeps, made anew where the version differs."""
    array, storage = weight._array, weight.storage
    layout = _layout(array)
    version, panels = storage.packed.get(layout, (-1, None))
    if panels is not None and version == storage.version:
        if recording.active():
            copy = PackedCopy(storage, layout, panels)
            recording.found(panels, partial(copy.renew, array.T))
            recording.guard(copy.is_kept)
        return panels
    if panels is None:
        _make_room(storage)
    panels = pack(array.T, panels)
    storage.packed[layout] = storage.version, panels
    recording.made(panels)
    return panels


def current_copies(weight: Tensor) -> list[PackedCopy | None]:
    """The copies of weightᵀ and of weight; None where there is none, or one of an older version,
    which nothing has used since."""
    array, storage = weight._array, weight.storage
    if not storage.packed:
        return [None, None]
    copies: list[PackedCopy | None] = []
    for view in (array, array.T):
        layout = _layout(view)
        version, panels = storage.packed.get(layout, (-1, None))
        if panels is None or version != storage.version:
            copies.append(None)
        else:
            copies.append(PackedCopy(storage, layout, panels))
    return copies


class LinearBf16(Function):
    """x (M, in), weight (out, in), bias (out,) → x weightᵀ + bias, in `dtype`.

    x and weight are float32 or bfloat16, bias is float32. `kept` is the weight once more where its
    packed copy is worth keeping: it is not where an activation stands in the weight's place, as in
    the weight's own gradient.
    """

    @staticmethod
    def forward(
        ctx: Node,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None,
        dtype: np.dtype,
        kept: Tensor | None = None,
    ) -> np.ndarray:
        ctx.save_inputs(0, 1, 2)
        packed = pack(weight.T) if kept is None else packed_weight(kept)
        return packed_product(x, packed, bias, weight.shape[0], dtype)

    @staticmethod
    def backward(ctx: Node, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved
        dx, dweight = bf16_gradients(ctx.needs_input_grad, g, x, weight)
        if not ctx.needs_input_grad[2]:
            return dx, dweight, None
        return dx, dweight, Sum.apply(g, axes=(0,), keepdims=False, dtype=bias.dtype)


def packed_product(
    x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, n: int, dtype: np.dtype
) -> np.ndarray:
    """x (M, K) @ the (K, n) that `packed` holds [+ bias], in `dtype`."""
    out = empty((x.shape[0], n), dtype)
    launch("matmul_packed", x, packed, bias, out, False)
    return out


def bf16_gradients(
    needs: tuple[bool, ...], g: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Those of x and weight, where needed, from that of x weightᵀ."""
    dx = dweight = None
    if needs[0]:
        across = swapaxes(weight, 0, 1)
        dx = LinearBf16.apply(g, across, None, dtype=x.dtype, kept=across)
    if needs[1]:
        rows = swapaxes(g, 0, 1), swapaxes(x, 0, 1)
        dweight = LinearBf16.apply(*rows, None, dtype=weight.dtype)
    return dx, dweight
