"""The walk back over the tape: gradients from outputs to leaves, or to the tensors asked for."""

from __future__ import annotations

import heapq
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NoReturn

import numpy as np

from minigrad import dispatch, ops
from minigrad.arguments import shown
from minigrad.autograd import modes
from minigrad.autograd.modes import check_finite, mode
from minigrad.autograd.tape import Edge, Node, edge_of
from minigrad.storage import device_away, owner_of
from minigrad.tensor import Tensor

_accumulate_lock = threading.Lock()
os.register_at_fork(  # a child must not find it held by a thread that it does not have
    before=_accumulate_lock.acquire,
    after_in_parent=_accumulate_lock.release,
    after_in_child=_accumulate_lock.release,
)


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
    before, mode.grad = mode.grad, create_graph
    try:
        with _accumulate_lock:
            for tensor, gradient in [*walked.leaves.values(), *walked.retained]:
                old = tensor.grad
                tensor.grad = walked.own(gradient) if old is None else old + gradient
    finally:
        mode.grad = before


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
    for what, tensors in (("output", outs), ("input", ins)):
        for i, tensor in enumerate(tensors):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"grad: {what} {i} must be a tensor, got {shown(tensor)}")
    for i, tensor in enumerate(ins):
        if not tensor.requires_grad:
            raise RuntimeError(
                f"grad: input {i} (shape {tensor.shape}) does not require a gradient"
            )
    targets = [edge_of(t) for t in ins]
    keep = create_graph if retain_graph is None else retain_graph
    walked = _walk(outs, seeds, keep, create_graph, targets)
    results: list[Any] = []
    before, mode.grad = mode.grad, create_graph
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
        mode.grad = before
    return results


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
        return Tensor._placed(np.ones(output.shape, output.dtype), output.device)
    if grad_output.__class__ is not Tensor:
        grad_output = ops.tensor(grad_output, output.dtype, output.device)
    if grad_output.shape != output.shape or grad_output.dtype != output.dtype:
        raise ValueError(
            f"backward: the gradient given has shape {grad_output.shape} and dtype "
            f"{grad_output.dtype.name}; the output has {output.shape} and {output.dtype.name}"
        )
    return grad_output


class _Walk:
    """Where a walk is: gradients under way, those that arrived, and whose memory is spoken for."""

    def __init__(self) -> None:
        self.pending: dict[Node, list[Tensor | None]] = {}  # what came so far, for each output
        self.heap: list[tuple[int, Node]] = []  # the nodes of `pending`, newest first
        self.leaves: dict[int, tuple[Tensor, Tensor]] = {}  # by the leaf's id
        self.captured: dict[tuple[int, int], Tensor] = {}  # at the outputs of target nodes
        self.retained: list[tuple[Tensor, Tensor]] = []  # of tensors that retain_grad was called on
        self._held: dict[int, np.ndarray] = {}  # memory that somebody else has, by its owner's id

    def send(
        self,
        edges: Sequence[Edge | None],
        gradients: Sequence[Tensor | None],
        node: Node | None = None,
        slots: Sequence[Tensor | None] = (),
    ) -> None:
        """Adds gradients where the edges lead. Those that a node's backward made of `slots` are
        checked on the way.

        Most of what a walk costs on small tensors is here: one call a node, none an edge.
        """
        leaves, pending = self.leaves, self.pending
        fresh = node is not None and node.function.fresh
        for edge, gradient in zip(edges, gradients):  # noqa: B905  (of one length)
            if edge is None or gradient is None:
                continue
            if gradient.__class__ is not Tensor:
                _refuse_gradient(node, gradient, edge)
            target: Any
            target, index = edge
            inner = target.__class__ is Node
            array = gradient._array
            if inner:
                shape, dtype = target.outputs[index]
            else:
                shape, dtype = target._array.shape, target._array.dtype
            if array.shape != shape or (array.dtype is not dtype and array.dtype != dtype):
                _refuse_gradient(node, gradient, edge)
            if modes.anomaly_used and mode.anomaly and node is not None:
                sources = [*slots, *node.saved]
                check_finite(f"{node.name}.backward", gradient, "gradient", sources)
            if inner:
                waiting = pending.get(target)
                if waiting is None:
                    waiting = pending[target] = [None] * len(target.outputs)
                    heapq.heappush(self.heap, (-target.order, target))
                old = waiting[index]
                waiting[index] = gradient if old is None else _sum(old, gradient, fresh)
            else:
                if gradient._storage is not None and node is not None:  # not fresh
                    _hold_saved(node, gradient, self)
                before = leaves.get(id(target))
                if before is not None:
                    gradient = _sum(before[1], gradient, fresh)
                leaves[id(target)] = (target, gradient)

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
        if mode.grad:
            return ops.copy(gradient)
        return Tensor._placed(ops.copied(array), gradient.device)


def _walk(
    outputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor | None],
    retain_graph: bool,
    create_graph: bool,
    targets: Sequence[Edge] | None,
) -> _Walk:
    """Visits nodes from the newest to the oldest, so that a node's gradient is complete when met.

    Without `targets` every leaf is one.
    """
    walk = _Walk()
    pending, heap = walk.pending, walk.heap
    inner_targets = {(id(t), i) for t, i in targets or () if t.__class__ is Node}
    needed = _needed_nodes(outputs, targets) if targets is not None else None
    before, mode.grad = mode.grad, create_graph  # a context manager costs as much as a small op
    try:
        _start(walk, outputs, grad_outputs)
        while heap:
            node = heapq.heappop(heap)[1]
            slots = pending.pop(node)
            if node.hooks is not None:
                _run_hooks(node, slots, walk, retain=targets is None)
            if inner_targets:
                for index, slot in enumerate(slots):
                    if slot is not None and (id(node), index) in inner_targets:
                        walk.captured[(id(node), index)] = slot
            if needed is not None and node not in needed:
                continue
            edges = node.edges
            if edges is None:
                _refuse_freed(node)
            if needed is None and not dispatch.elsewhere:
                gradients = node.function.backward(node, *slots)
            else:
                mask = node.needs_input_grad if needed is None else needed[node]
                gradients = _masked_backward(node, slots, mask)
            if gradients.__class__ is not tuple:
                gradients = (gradients,)
            if len(gradients) != len(edges):
                _refuse_number(node, len(gradients), len(edges))
            walk.send(edges, gradients, node, slots)
            if not retain_graph:
                node.release()
        _run_leaf_hooks(walk)
    finally:
        mode.grad = before
    return walk


def _start(walk: _Walk, outputs: Sequence[Tensor], grad_outputs: Sequence[Tensor | None]) -> None:
    for output, given in zip(outputs, grad_outputs, strict=True):
        seed = _seed(output, given)
        if given is not None:
            walk.hold(seed._array)
        walk.send([edge_of(output)], [seed])


def _masked_backward(node: Node, slots: list[Tensor | None], mask: tuple[bool, ...]) -> Any:
    """Backward on the device of its tensors, with only those input gradients asked for that lead to
    a target."""
    device = device_away(node.name, *slots) if dispatch.elsewhere else None
    if device is not None:
        with dispatch.device(device):
            return _masked_backward(node, slots, mask)
    full = node.needs_input_grad
    node.needs_input_grad = mask
    try:
        return node.function.backward(node, *slots)
    finally:
        node.needs_input_grad = full


def _sum(a: Tensor, b: Tensor, in_place: bool) -> Tensor:
    """Of two gradients of one shape and dtype, in b's memory where `in_place` allows it."""
    watched = modes.anomaly_used and mode.anomaly
    if mode.grad or watched or device_away("add", a, b) is not None:
        return a + b
    if in_place:
        dispatch.launch("add", a._array, b._array, b._array)
        return b
    return Tensor._wrap(dispatch.launch_made("add", a._array, b._array, None))


def _refuse_freed(node: Node) -> NoReturn:
    raise RuntimeError(
        f"{node.name}: this part of the graph was freed by an earlier backward; pass "
        "retain_graph=True to the first one to walk it twice, or detach() what needs no gradient"
    )


def _refuse_number(node: Node, n_gradients: int, n_inputs: int) -> NoReturn:
    raise RuntimeError(
        f"{node.name}.backward returned {n_gradients} gradients for {n_inputs} inputs"
    )


def _refuse_gradient(node: Node | None, gradient: Any, edge: Edge) -> NoReturn:
    """A gradient has the shape and dtype of what it is the gradient of."""
    assert node is not None  # seeds were made or checked
    if gradient.__class__ is not Tensor:
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


def _hold_saved(node: Node, gradient: Tensor, walk: _Walk) -> None:
    """A backward may return what it saved, which others know."""
    owner = owner_of(gradient._array)
    for entry in node._saved:
        if entry is not None and owner_of(entry[0]) is owner:
            walk.hold(owner)


class Retain:
    """The hook that `Tensor.retain_grad` leaves: `backward` fills the tensor's `.grad`, too."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = weakref.ref(tensor)  # the graph must not own its outputs

    def __call__(self, gradient: Tensor) -> None: ...


def _run_hooks(node: Node, slots: list[Tensor | None], walk: _Walk, retain: bool) -> None:
    assert node.hooks is not None
    for index, hooks in node.hooks.items():
        for hook in hooks:
            slot = slots[index]
            if slot is None:
                continue
            if hook.__class__ is Retain:
                tensor = hook.tensor()  # type: ignore[attr-defined]
                if retain and tensor is not None:
                    walk.retained.append((tensor, slot))
            else:
                slots[index] = _run_hook(hook, slot, walk)


def _run_hook(hook: Callable[[Tensor], Tensor | None], gradient: Tensor, walk: _Walk) -> Tensor:
    """What the hook makes of the gradient; it may keep both, so neither is ours any more."""
    changed = hook(gradient)
    walk.hold(gradient._array)
    if changed is None:
        return gradient
    if changed.__class__ is not Tensor or _kind(changed) != _kind(gradient):
        name = getattr(hook, "__qualname__", repr(hook))
        got = f"{changed.shape} {changed.dtype.name}" if hasattr(changed, "shape") else changed
        raise RuntimeError(
            f"the hook {name} returned {got} for a gradient that is a tensor of shape "
            f"{gradient.shape} and dtype {gradient.dtype.name}"
        )
    walk.hold(changed._array)
    return changed


def _run_leaf_hooks(walk: _Walk) -> None:
    for key, (leaf, gradient) in walk.leaves.items():
        for hook in leaf._hooks or ():
            gradient = _run_hook(hook, gradient, walk)
        walk.leaves[key] = (leaf, gradient)


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
