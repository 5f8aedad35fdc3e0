"""The tape: differentiable functions, and the graph they leave behind.

A `Function` computes on arrays (`forward`) and, from the gradients of its outputs, the gradients of
its inputs (`backward`, written in tensors, so that `create_graph=True` differentiates it again).
`apply` runs it and, where an input needs a gradient, leaves a node: the function, where its inputs
came from, and what was saved. Nodes point only backwards, so a graph is freed by dropping its
outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad import dispatch, dtypes
from minigrad.autograd import modes
from minigrad.autograd.modes import check_finite, mode
from minigrad.storage import Storage, device_away
from minigrad.tensor import Tensor

_new = object.__new__
_order = itertools.count()


def next_order() -> int:
    """A number above those of all nodes so far and below those of all later ones."""
    return next(_order)


# Where a gradient goes: the output `index` of a node, or a leaf tensor.
Edge = tuple["Node | Tensor", int]


# A tensor kept for backward: its array, its storage with the version it had, and its edge. Of an
# output of the node itself only the index: a node must not own itself, or what it keeps would stay
# until the collector runs.
Saved = tuple[np.ndarray, Storage, int, Any]


def edge_of(tensor: Tensor) -> Edge:
    """Where the gradient of this tensor goes."""
    return (tensor, 0) if tensor._node is None else (tensor._node, tensor._index)


class Node:
    """One application of a function on the tape; passed to it as `ctx`.

    `needs_input_grad[i]` says whether the gradient of input i is wanted. Attributes may be added.
    """

    # Defaults of the class: most applications, those in backward, are never recorded.
    edges: list[Edge | None] | None = None
    hooks: dict[int, list[Callable[[Tensor], Tensor | None]]] | None = None
    order = 0
    outputs: Sequence[tuple[tuple[int, ...], np.dtype]] = ()  # shapes and dtypes
    _saved: Sequence[Saved | None] = ()
    _save_inputs: tuple[int, ...] = ()
    _save_outputs: tuple[int, ...] = ()

    function: type[Function]
    needs_input_grad: tuple[bool, ...]

    if TYPE_CHECKING:  # what forward leaves for backward beside tensors, by any name

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    def save_inputs(self, *positions: int) -> None:
        """Keeps the inputs at these positions for backward (`ctx.saved`, in this order)."""
        self._save_inputs = positions

    def save_outputs(self, *positions: int) -> None:
        """Keeps the outputs at these positions for backward (after the inputs in `ctx.saved`)."""
        self._save_outputs = positions

    @property
    def name(self) -> str:
        """The op: a function that serves many keeps which in `ctx.kernel`."""
        return self.__dict__.get("kernel") or self.function.__name__

    @property
    def saved(self) -> list[Any]:
        """The saved tensors (None for an absent optional input), checked against changes in
        place."""
        out: list[Any] = []
        for entry in self._saved:
            if entry is None:
                out.append(None)
                continue
            array, storage, version, edge = entry
            if storage.version != version:
                raise RuntimeError(
                    f"{self.name}: a tensor of shape {array.shape} saved for backward was changed "
                    f"in place (version {version} when saved, {storage.version} now); "
                    "change it after backward, or work on a copy (x + 0)"
                )
            if edge.__class__ is int:
                edge = self, edge
            elif edge is not None and edge[0].__class__ is not Node:
                out.append(edge[0])
                continue
            tensor = Tensor._wrap(array)
            tensor._storage = storage
            if edge is not None:
                tensor.requires_grad = True
                tensor._node, tensor._index = edge  # type: ignore[assignment]
            out.append(tensor)
        return out

    def _record(self, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> None:
        kinds: list[tuple[tuple[int, ...], np.dtype]] = []
        for i, out in enumerate(outputs):
            array = out._array
            dtype = array.dtype
            kinds.append((array.shape, dtype))
            if dtype in dtypes.FLOATING:
                out.requires_grad = True
                out._node, out._index = self, i
        self.outputs = kinds
        edges: list[Edge | None] = []
        for tensor, need in zip(inputs, self.needs_input_grad):  # noqa: B905  (of one length)
            if not need or tensor is None:
                edges.append(None)
            else:
                node = tensor._node
                edges.append((tensor if node is None else node, tensor._index))
        self.edges = edges
        self.order = next(_order)
        if not self._save_inputs and not self._save_outputs:
            return
        saved: list[Saved | None] = []
        for i in self._save_inputs:
            tensor = inputs[i]
            if tensor is None:
                saved.append(None)
                continue
            storage = tensor.storage
            saved.append((tensor._array, storage, storage.version, edges[i]))
        for i in self._save_outputs:
            storage = outputs[i].storage
            saved.append((outputs[i]._array, storage, storage.version, i))
        self._saved = saved

    def release(self) -> None:
        self.edges = None
        self._saved = ()


class Function:
    """A differentiable operation. Subclasses give `forward` and `backward`, both static.

    `forward(ctx, *arrays, **options)` returns an array or a tuple of arrays; an optional input that
    is absent arrives as None. `backward(ctx, *grads)` gets one tensor for each output (None for an
    output that nothing used) and returns one gradient for each input, in its shape and dtype, or
    None where `ctx.needs_input_grad` is false (a single gradient may be returned bare).
    """

    view = False  # the output shares the first input's memory
    fresh = False  # backward's gradients are memory that nobody else has: others may be added there

    @staticmethod
    def forward(ctx: Node, *arrays: Any, **options: Any) -> Any:
        raise NotImplementedError

    @staticmethod
    def backward(ctx: Node, *grads: Any) -> Any:
        raise NotImplementedError

    @classmethod
    def apply(cls, *inputs: Tensor | None, **options: Any) -> Any:
        """Runs the function on tensors and records it where a gradient may be asked for."""
        if dispatch.elsewhere:
            device = device_away(options.get("kernel", cls.__name__), *inputs)
            if device is not None:
                with dispatch.device(device):
                    return cls.apply(*inputs, **options)
        # For what is small this function is most of the cost: no comprehensions and few calls.
        arrays: list[Any] = []
        flags: list[bool] = []
        for t in inputs:
            if t is None:
                arrays.append(None)
                flags.append(False)
            else:
                arrays.append(t._array)
                flags.append(t.requires_grad)
        needs = True in flags and mode.grad
        ctx = _new(Node)
        ctx.function = cls
        ctx.needs_input_grad = tuple(flags) if needs else (False,) * len(flags)
        result = cls.forward(ctx, *arrays, **options)
        single = result.__class__ is not tuple
        wrap = Tensor._wrap
        if not needs and single and not cls.view and not (modes.anomaly_used and mode.anomaly):
            return wrap(result)
        outputs = [wrap(result)] if single else [wrap(a) for a in result]
        if cls.view:
            first = inputs[0]
            assert first is not None
            for out in outputs:
                out._storage = first.storage
        if modes.anomaly_used and mode.anomaly:
            for out in outputs:
                check_finite(ctx.name, out, "output", inputs)
        if needs:
            ctx._record(inputs, outputs)
        return outputs[0] if single else tuple(outputs)
