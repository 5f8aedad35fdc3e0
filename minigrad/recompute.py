"""Activation checkpointing (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"):
what a part of a model keeps for backward is made again there instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad.arguments import shown
from minigrad.autograd import (
    Edge,
    Function,
    Node,
    edge_of,
    enable_grad,
    grad,
    is_grad_enabled,
    next_order,
)
from minigrad.ops.creation import copied
from minigrad.precision import active_precision, precision
from minigrad.random import record_cells, replay_cells
from minigrad.tensor import Tensor


class Recompute(Function):
    """inputs, leaves → fn's outputs, which are there already (`results`)."""

    @staticmethod
    def forward(
        ctx: Node,
        *arrays: np.ndarray,
        fn: Callable[..., Any],
        n_inputs: int,
        cells: list[np.ndarray],
        results: tuple[np.ndarray, ...],
    ) -> tuple[np.ndarray, ...]:
        ctx.fn, ctx.n_inputs, ctx.cells = fn, n_inputs, cells
        ctx.precision = active_precision()
        ctx.save_inputs(*range(len(arrays)))
        return results

    @staticmethod
    def backward(ctx: Node, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if is_grad_enabled():
            raise NotImplementedError(
                "checkpoint_activations: what is computed again has no second derivative; call fn "
                "itself"
            )
        saved, needs = ctx.saved, ctx.needs_input_grad
        n = ctx.n_inputs
        # Cut off from their history, in which the leaves may occur, too.
        inputs = [t.detach() for t in saved[:n]]
        for t, need in zip(inputs, needs, strict=False):
            t.requires_grad = need
        with enable_grad(), replay_cells(ctx.cells), precision(ctx.precision):
            outputs = _as_tuple(ctx.fn(*inputs))
        pairs = zip(outputs, grads, strict=True)
        used = [(o, g) for o, g in pairs if g is not None and o.requires_grad]
        wanted = [t for t, need in zip([*inputs, *saved[n:]], needs, strict=True) if need]
        outs, given = [o for o, _ in used], [g for _, g in used]
        found = iter(grad(outs, wanted, given, allow_unused=True))
        return tuple(next(found) if need else None for need in needs)


def _as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _check_tensors(what: str, values: tuple[Any, ...]) -> None:
    for i, value in enumerate(values):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"checkpoint_activations: {what} {i} is a {type(value).__name__}; expected tensors "
                "(fn returns one or a tuple of them)"
            )


def _key(edge: Edge) -> tuple[int, int]:
    return id(edge[0]), edge[1]


def _leaves(outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...], started: int) -> list[Tensor]:
    """The leaves that the outputs were computed from, beside the inputs, in order of first use."""
    stop = {_key(edge_of(t)) for t in inputs}
    nodes: dict[int, Node] = {}
    stack = [edge_of(o) for o in outputs if o.requires_grad]
    leaves: dict[int, Tensor] = {}
    while stack:
        edge = stack.pop()
        target = edge[0]
        if _key(edge) in stop or id(target) in nodes:
            continue
        if isinstance(target, Tensor):
            leaves[id(target)] = target
        elif target.order < started:
            raise ValueError(
                f"checkpoint_activations: fn uses a result of {target.name}, of shape "
                f"{target.outputs[edge[1]][0]}, that is none of its inputs; pass it as one, or "
                "detach() it"
            )
        else:
            nodes[id(target)] = target
            stack.extend(edge for edge in target.edges or () if edge is not None)
    return list(leaves.values())


def checkpoint_activations(fn: Callable[..., Any], *inputs: Tensor) -> Any:
    """fn(*inputs), a tensor or a tuple of tensors, of which only inputs and outputs are kept for
    backward: there, fn runs again.

    Results and gradients have the bits of fn(*inputs), dropout included: random numbers are drawn
    from the same streams. fn must compute the same from the same inputs; parameters that it uses
    get their gradients, too.

    Raises TypeError for what is no tensor, ValueError where fn uses a tensor with a history that is
    none of its inputs, and NotImplementedError when a second derivative is asked for.

    >>> import minigrad as mg
    >>> x = mg.tensor([1.0, 2.0], requires_grad=True)
    >>> y = checkpoint_activations(lambda x: mg.exp(x).sum(), x)
    >>> y.backward()
    >>> x.grad.numpy()
    array([2.7182817, 7.389056 ], dtype=float32)
    """
    if not callable(fn):
        raise TypeError(f"checkpoint_activations: expected a function first, got {shown(fn)}")
    _check_tensors("input", inputs)
    if not is_grad_enabled():
        return fn(*inputs)
    if len({_key(edge_of(t)) for t in inputs}) < len(inputs):
        raise ValueError("checkpoint_activations: the same tensor is given twice; give it once")
    started = next_order()
    with record_cells() as cells:
        outputs = fn(*inputs)
    listed = _as_tuple(outputs)
    _check_tensors("result of fn", listed)
    leaves = _leaves(listed, inputs, started)
    held = [t._array for t in inputs]
    results = tuple(
        copied(o._array) if any(np.may_share_memory(o._array, a) for a in held) else o._array
        for o in listed
    )
    made = Recompute.apply(
        *inputs, *leaves, fn=fn, n_inputs=len(inputs), cells=cells, results=results
    )
    # What fn gives without a history has none here, either.
    made = tuple(m if o.requires_grad else m.detach() for m, o in zip(made, listed, strict=True))
    return made if isinstance(outputs, tuple) else made[0]
