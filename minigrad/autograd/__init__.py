"""Automatic differentiation: the tape that operations leave, and the walk back over it."""

from minigrad.autograd.modes import (
    detect_anomaly,
    enable_grad,
    is_anomaly_enabled,
    is_grad_enabled,
    no_grad,
)
from minigrad.autograd.tape import Edge, Function, Node, edge_of, next_order
from minigrad.autograd.walk import Retain, backward, grad

__all__ = [
    "Edge",
    "Function",
    "Node",
    "Retain",
    "backward",
    "detect_anomaly",
    "edge_of",
    "enable_grad",
    "grad",
    "is_anomaly_enabled",
    "is_grad_enabled",
    "next_order",
    "no_grad",
]
