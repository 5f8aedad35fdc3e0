"""The tape: differentiable functions, the graph they leave behind, and the walk back over it.

A `Function` computes on arrays (`forward`) and, from the gradients of its outputs, the gradients of
its inputs (`backward`, written in tensors, so that `create_graph=True` differentiates it again).
`apply` runs it and, where an input needs a gradient, leaves a node: the function, where its inputs
came from, and what was saved. Nodes point only backwards, so a graph is freed by dropping its
outputs.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from minigrad import dispatch, dtypes

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

_order = itertools.count()


def next_order() -> int:
    """A number above those of all nodes so far and below those of all later ones."""
    return next(_order)


_accumulate_lock = threading.Lock()
os.register_at_fork(  # a child must not find it held by a thread that it does not have
    before=_accumulate_lock.acquire,
    after_in_parent=_accumulate_lock.release,
    after_in_child=_accumulate_lock.release,
)


class _Mode(threading.local):
    grad = True
    anomaly = False


_mode = _Mode()
# Whether any thread ever looked for anomalies: what a thread's mode says is slow to ask.
_anomaly_used = False


def is_grad_enabled() -> bool:
    """Whether operations leave a graph (in this thread)."""
    return _mode.grad


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Within the block (of this thread), operations leave no graph."""
    before, _mode.grad = _mode.grad, False
    try:
        yield
    finally:
        _mode.grad = before


@contextlib.contextmanager
def enable_grad() -> Iterator[None]:
    """Within the block, operations leave a graph again, also inside `no_grad`."""
    before, _mode.grad = _mode.grad, True
    try:
        yield
    finally:
        _mode.grad = before


@contextlib.contextmanager
def detect_anomaly() -> Iterator[None]:
    """Within the block, the first NaN raises FloatingPointError naming the op that made it.

    Checks every output of every operation, forward and backward; slow, for hunting only.
    """
    global _anomaly_used
    _anomaly_used = True
    before, _mode.anomaly = _mode.anomaly, True
    try:
        yield
    finally:
        _mode.anomaly = before


def is_anomaly_enabled() -> bool:
    """Whether results are checked for NaN (in this thread)."""
    return _anomaly_used and _mode.anomaly


class Storage:
    """What views of one buffer share: its device, its version, and packed copies made for the
    matrix product."""

    __slots__ = ("device", "packed", "version")

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        if device != "cpu":
            dispatch.elsewhere = True
        self.version = 0
        self.packed: dict[str, tuple[int, np.ndarray]] = {}

    def changed(self) -> None:
        """Notes a change of the memory in place."""
        self.version += 1


def common_device(op: str, tensors: Sequence[Tensor | None]) -> str:
    """The device that an op's tensors are on. Numbers (0-d tensors) go with those that have axes.

    Raises RuntimeError where they are on different ones.
    """
    numbers, found = "cpu", None
    for t in tensors:
        if t is None:
            continue
        device = t.device
        if not t._array.ndim:
            numbers = device if numbers == "cpu" else numbers
        elif found is None:
            found = device
        elif device != found:
            raise RuntimeError(
                f"{op}: one tensor is on {found} and another on {device}; bring them to one "
                f"device, with x.to({found!r}) or x.to({device!r})"
            )
    return found or numbers


def device_away(op: str, *tensors: Tensor | None) -> str | None:
    """The device of an op's tensors (see `common_device`) if it has yet to be activated."""
    if not dispatch.elsewhere:
        return None
    device = common_device(op, tensors)
    return None if device == dispatch.active_device() else device


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
            tensor = _tensor.Tensor._wrap(array)
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
        needs = True in flags and _mode.grad
        ctx = _new(Node)
        ctx.function = cls
        ctx.needs_input_grad = tuple(flags) if needs else (False,) * len(flags)
        result = cls.forward(ctx, *arrays, **options)
        single = result.__class__ is not tuple
        wrap = _tensor.Tensor._wrap
        if not needs and single and not cls.view and not (_anomaly_used and _mode.anomaly):
            return wrap(result)
        outputs = [wrap(result)] if single else [wrap(a) for a in result]
        if cls.view:
            first = inputs[0]
            assert first is not None
            for out in outputs:
                out._storage = first.storage
        if _anomaly_used and _mode.anomaly:
            for out in outputs:
                _check_finite(ctx.name, out, "output", inputs)
        if needs:
            ctx._record(inputs, outputs)
        return outputs[0] if single else tuple(outputs)


def _has_nan(tensor: Tensor | None) -> bool:
    return (
        tensor is not None
        and dtypes.is_floating(tensor._array.dtype)
        and bool(np.isnan(tensor._array.astype(np.float32)).any())
    )


def _check_finite(name: str, tensor: Tensor, what: str, sources: Sequence[Tensor | None]) -> None:
    if not _has_nan(tensor):
        return
    bad = [t for t in sources if _has_nan(t)]
    if bad:
        assert bad[0] is not None
        origin = f"it came in with what {name} was given (shape {bad[0].shape})"
    else:
        origin = f"nothing that {name} was given had any, so it arose here"
    raise FloatingPointError(
        f"anomaly: the {what} of {name} (shape {tensor.shape}, {tensor.dtype.name}) has NaN; "
        + origin
    )


# ---- the walk back ----


def backward(
    outputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor | None],
    retain_graph: bool = False,
    create_graph: bool = False,
) -> None:
    """Accumulates into `.grad` of every leaf that the outputs were computed from.

    Nothing is written to any `.grad` unless the whole walk succeeds. What is written shares its
    memory with nothing else, so that it may be changed in place.
    """
    walked = _walk(outputs, grad_outputs, retain_graph, create_graph, None)
    mode, _mode.grad = _mode.grad, create_graph
    try:
        with _accumulate_lock:
            for tensor, gradient in [*walked.leaves.values(), *walked.retained]:
                before = tensor.grad
                tensor.grad = walked.own(gradient) if before is None else before + gradient
    finally:
        _mode.grad = mode


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Tensor | Sequence[Tensor | None] | None = None,
    create_graph: bool = False,
    retain_graph: bool | None = None,
    allow_unused: bool = False,
) -> list[Tensor]:
    """The gradients of `outputs` (weighted by `grad_outputs`) with respect to `inputs`.

    `.grad` fields are not touched, and only the part of the graph between the two is walked. With
    `create_graph=True` the results can be differentiated again. An input that the outputs do not
    depend on raises, or gives None with `allow_unused=True`.

    >>> import minigrad as mg
    >>> x = mg.tensor(2.0, requires_grad=True)
    >>> (first,) = mg.grad(x**3, x, create_graph=True)
    >>> (second,) = mg.grad(first, x)
    >>> first.item(), second.item()
    (12.0, 12.0)
    """
    outs: list[Any] = [outputs] if not isinstance(outputs, (list, tuple)) else list(outputs)
    ins: list[Any] = [inputs] if not isinstance(inputs, (list, tuple)) else list(inputs)
    if grad_outputs is None:
        seeds: list[Tensor | None] = [None] * len(outs)
    elif isinstance(grad_outputs, (list, tuple)):
        seeds = list(grad_outputs)
    else:
        seeds = [grad_outputs]  # type: ignore[list-item]
    if len(seeds) != len(outs):
        raise ValueError(f"grad: {len(outs)} outputs but {len(seeds)} grad_outputs")
    for i, tensor in enumerate(ins):
        if not tensor.requires_grad:
            raise RuntimeError(
                f"grad: input {i} (shape {tensor.shape}) does not require a gradient"
            )
    targets = [edge_of(t) for t in ins]
    keep = create_graph if retain_graph is None else retain_graph
    walked = _walk(outs, seeds, keep, create_graph, targets)
    results: list[Any] = []
    mode, _mode.grad = _mode.grad, create_graph
    try:
        for i, (target, index) in enumerate(targets):
            if target.__class__ is Node:
                found = walked.captured.get((id(target), index))
            else:
                found = walked.leaves.get(id(target), (None, None))[1]
            if found is None and not allow_unused:
                raise RuntimeError(
                    f"grad: the outputs do not depend on input {i}; pass allow_unused=True for None"
                )
            results.append(None if found is None else walked.own(found))
    finally:
        _mode.grad = mode
    return results


class _Walked:
    """The gradients that a walk found, and whose memory is spoken for."""

    def __init__(self) -> None:
        self.leaves: dict[int, tuple[Tensor, Tensor]] = {}  # by the leaf's id
        self.captured: dict[tuple[int, int], Tensor] = {}  # at the outputs of target nodes
        self.retained: list[tuple[Tensor, Tensor]] = []  # of tensors that retain_grad was called on
        self._held: dict[int, np.ndarray] = {}  # memory that somebody else has, by its owner's id

    def hold(self, array: np.ndarray) -> None:
        """Notes that this memory may be known outside of the walk."""
        owner = owner_of(array)
        self._held[id(owner)] = owner

    def own(self, gradient: Tensor) -> Tensor:
        """The gradient itself where it is all of some memory that nobody else has, else a copy."""
        array = gradient._array
        owner = owner_of(array)
        if (
            array.flags.c_contiguous
            and array.flags.writeable
            and array.nbytes == owner.nbytes
            and id(owner) not in self._held
        ):
            self._held[id(owner)] = owner
            return gradient
        if _mode.grad:
            return _tensor.ops.copy(gradient)
        return _tensor.Tensor._placed(_tensor.ops.copied(array), gradient.device)


def owner_of(array: np.ndarray) -> np.ndarray:
    """The array that `array` is a view of, or itself."""
    while array.base.__class__ is np.ndarray:
        array = array.base
    return array


class Retain:
    """The hook that `Tensor.retain_grad` leaves: `backward` fills the tensor's `.grad`, too."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = weakref.ref(tensor)  # the graph must not own its outputs

    def __call__(self, gradient: Tensor) -> None: ...


def _seed(output: Tensor, grad_output: Any) -> Tensor:
    if not output.requires_grad:
        raise RuntimeError(
            "backward: the output does not require a gradient; no input with requires_grad=True "
            "led to it (or it was computed under no_grad)"
        )
    if grad_output is None:
        if output.size != 1:
            raise RuntimeError(
                f"backward: a gradient is implied for scalars only, and this output has shape "
                f"{output.shape}; reduce it (.sum(), .mean()) or pass the gradient"
            )
        return _tensor.Tensor._placed(np.ones(output.shape, output.dtype), output.device)
    if grad_output.__class__ is not _tensor.Tensor:
        grad_output = _tensor.ops.tensor(grad_output, output.dtype, output.device)
    if grad_output.shape != output.shape or grad_output.dtype != output.dtype:
        raise ValueError(
            f"backward: the gradient given has shape {grad_output.shape} and dtype "
            f"{grad_output.dtype.name}; the output has {output.shape} and {output.dtype.name}"
        )
    return grad_output


def _walk(
    outputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor | None],
    retain_graph: bool,
    create_graph: bool,
    targets: Sequence[Edge] | None,
) -> _Walked:
    """Visits nodes from the newest to the oldest, so that a node's gradient is complete when met.

    Without `targets` every leaf is one.
    """
    walked = _Walked()
    leaves = walked.leaves
    tensor = _tensor.Tensor
    pending: dict[Node, list[Tensor | None]] = {}
    heap: list[tuple[int, Node]] = []
    inner_targets = {(id(t), i) for t, i in targets or () if t.__class__ is Node}
    needed = _needed_nodes(outputs, targets) if targets is not None else None

    def send(edge: Edge, gradient: Tensor, fresh: bool = False) -> None:
        target, index = edge
        if target.__class__ is not Node:
            before = leaves.get(id(target))
            leaf: Any = target
            if before is not None:
                gradient = _sum(before[1], gradient, fresh)
            leaves[id(target)] = (leaf, gradient)
            return
        node: Any = target
        slots = pending.get(node)
        if slots is None:
            slots = pending[node] = [None] * len(node.outputs)
            heapq.heappush(heap, (-node.order, node))
        old = slots[index]
        slots[index] = gradient if old is None else _sum(old, gradient, fresh)

    mode, _mode.grad = _mode.grad, create_graph  # a context manager costs as much as a small op
    try:
        for output, given in zip(outputs, grad_outputs, strict=True):
            seed = _seed(output, given)
            if given is not None:
                walked.hold(seed._array)
            send(edge_of(output), seed)
        while heap:
            node = heapq.heappop(heap)[1]
            slots = pending.pop(node)
            if node.hooks is not None:
                _run_hooks(node, slots, walked, retain=targets is None)
            if inner_targets:
                for index, slot in enumerate(slots):
                    if slot is not None and (id(node), index) in inner_targets:
                        walked.captured[(id(node), index)] = slot
            if needed is not None and node not in needed:
                continue
            if node.edges is None:
                raise RuntimeError(
                    f"{node.name}: this part of the graph was freed by an earlier backward; "
                    "pass retain_graph=True to the first one to walk it twice, or detach() what "
                    "needs no gradient"
                )
            device = device_away(node.name, *slots) if dispatch.elsewhere else None
            if device is not None:
                mask = node.needs_input_grad if needed is None else needed[node]
                with dispatch.device(device):
                    gradients = _masked_backward(node, slots, mask)
            elif needed is None or needed[node] == node.needs_input_grad:
                gradients = node.function.backward(node, *slots)
            else:
                gradients = _masked_backward(node, slots, needed[node])
            if gradients.__class__ is not tuple:
                gradients = (gradients,)
            if len(gradients) != len(node.edges):
                raise RuntimeError(
                    f"{node.name}.backward returned {len(gradients)} gradients for "
                    f"{len(node.edges)} inputs"
                )
            for edge, gradient in zip(node.edges, gradients):  # noqa: B905  (checked above)
                if edge is None or gradient is None:
                    continue
                if gradient.__class__ is not tensor:
                    _refuse_gradient(node, gradient, edge)
                target: Any = edge[0]
                inner = target.__class__ is Node
                array = gradient._array
                if inner:
                    shape, dtype = target.outputs[edge[1]]
                else:
                    shape, dtype = target._array.shape, target._array.dtype
                if array.shape != shape or (array.dtype is not dtype and array.dtype != dtype):
                    _refuse_gradient(node, gradient, edge)
                if _anomaly_used and _mode.anomaly:
                    sources = [*slots, *node.saved]
                    _check_finite(f"{node.name}.backward", gradient, "gradient", sources)
                if not inner and gradient._storage is not None:  # not fresh
                    _hold_saved(node, gradient, walked)
                send(edge, gradient, node.function.fresh)
            if not retain_graph:
                node.release()
        for key, (leaf, gradient) in leaves.items():
            for hook in leaf._hooks or ():
                gradient = _run_hook(hook, gradient, walked)
            leaves[key] = (leaf, gradient)
    finally:
        _mode.grad = mode
    return walked


def _sum(a: Tensor, b: Tensor, in_place: bool) -> Tensor:
    """Of two gradients of one shape and dtype, in b's memory where `in_place` allows it."""
    watched = _anomaly_used and _mode.anomaly
    if _mode.grad or watched or device_away("add", a, b) is not None:
        return a + b
    if in_place:
        dispatch.launch("add", a._array, b._array, b._array)
        return b
    return _tensor.Tensor._wrap(dispatch.launch_made("add", a._array, b._array, None))


def _refuse_gradient(node: Node, gradient: Any, edge: Edge) -> NoReturn:
    """A gradient has the shape and dtype of what it is the gradient of."""
    if gradient.__class__ is not _tensor.Tensor:
        raise TypeError(
            f"{node.name}: backward returned a {type(gradient).__name__} as a gradient, not a "
            "tensor"
        )
    target, index = edge
    shape, dtype = target.outputs[index] if isinstance(target, Node) else _kind(target)
    raise RuntimeError(
        f"{node.name}: backward returned a gradient of shape {gradient.shape} and dtype "
        f"{gradient.dtype.name} for a tensor of shape {shape} and dtype {dtype.name}"
    )


def _kind(tensor: Tensor) -> tuple[tuple[int, ...], np.dtype]:
    return tensor._array.shape, tensor._array.dtype


def _hold_saved(node: Node, gradient: Tensor, walked: _Walked) -> None:
    """A backward may return what it saved, which others know."""
    owner = owner_of(gradient._array)
    for entry in node._saved:
        if entry is not None and owner_of(entry[0]) is owner:
            walked.hold(owner)


def _run_hooks(node: Node, slots: list[Tensor | None], walked: _Walked, retain: bool) -> None:
    assert node.hooks is not None
    for index, hooks in node.hooks.items():
        for hook in hooks:
            slot = slots[index]
            if slot is None:
                continue
            if hook.__class__ is Retain:
                tensor = hook.tensor()  # type: ignore[attr-defined]
                if retain and tensor is not None:
                    walked.retained.append((tensor, slot))
            else:
                slots[index] = _run_hook(hook, slot, walked)


def _run_hook(hook: Callable[[Tensor], Tensor | None], gradient: Tensor, walked: _Walked) -> Tensor:
    """What the hook makes of the gradient; it may keep both, so neither is ours any more."""
    changed = hook(gradient)
    walked.hold(gradient._array)
    if changed is None:
        return gradient
    if changed.__class__ is not _tensor.Tensor or _kind(changed) != _kind(gradient):
        name = getattr(hook, "__qualname__", repr(hook))
        got = f"{changed.shape} {changed.dtype.name}" if hasattr(changed, "shape") else changed
        raise RuntimeError(
            f"the hook {name} returned {got} for a gradient that is a tensor of shape "
            f"{gradient.shape} and dtype {gradient.dtype.name}"
        )
    walked.hold(changed._array)
    return changed


def _masked_backward(node: Node, slots: list[Tensor | None], mask: tuple[bool, ...]) -> Any:
    """Backward with only those input gradients asked for that lead to a target."""
    full = node.needs_input_grad
    node.needs_input_grad = mask
    try:
        return node.function.backward(node, *slots)
    finally:
        node.needs_input_grad = full


def _needed_nodes(
    outputs: Sequence[Tensor], targets: Sequence[Edge]
) -> dict[Node, tuple[bool, ...]] | None:
    """The nodes through which a target is reached, and by which of their inputs; None where it is
    all of them by every input."""
    seen: set[Node] = set()
    wanted = set(targets)
    everything = True
    stack: list[Any] = [o._node for o in outputs if o._node is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.edges is None:  # freed
            everything = False
            continue
        for edge in node.edges:
            if edge is None:
                continue
            if edge[0].__class__ is Node:
                stack.append(edge[0])
            elif edge not in wanted:
                everything = False
    if everything:
        return None
    # What lies behind a freed node is not known any more. If a target may, walking raises: a
    # gradient that misses a part would be wrong without a word.
    oldest = min(
        (target.order if isinstance(target, Node) else -1 for target, _ in targets), default=0
    )
    needed: dict[Any, tuple[bool, ...]] = {
        node: () for node in seen if node.edges is None and node.order > oldest
    }
    for node in sorted(seen, key=attrgetter("order")):
        edges = node.edges or ()
        leads = tuple([e is not None and (e[0] in needed or e in wanted) for e in edges])
        if True in leads:
            needed[node] = leads
    return needed


_new = object.__new__

from minigrad import tensor as _tensor  # noqa: E402  (tensor.py needs Function, and apply a Tensor)
