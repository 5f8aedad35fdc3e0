"""Modules: parameters, buffers and submodules by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from minigrad import autograd, dtypes, ops
from minigrad.arguments import shown
from minigrad.tensor import Tensor


def _is_parameter(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad and value.is_leaf


class Module:
    """A part of a model. Attributes that are leaf tensors requiring a gradient are its parameters
    (and stay so when one is frozen by `requires_grad_(False)`), tensors given to `register_buffer`
    its buffers, modules (and lists of them) its children. Other tensors are neither.

    `forward` computes; calling the module calls it.
    """

    training = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    # ---- names ----

    def __setattr__(self, name: str, value: Any) -> None:
        names = self.__dict__.setdefault("_parameter_names", set())
        names.add(name) if _is_parameter(value) else names.discard(name)
        object.__setattr__(self, name, value)

    def register_buffer(self, name: str, tensor: Tensor) -> None:
        """A tensor that belongs to the state and is not trained."""
        if not isinstance(tensor, Tensor):
            raise TypeError(f"register_buffer: {name} must be a tensor, got {shown(tensor)}")
        self.__dict__.setdefault("_buffer_names", set()).add(name)
        setattr(self, name, tensor)

    def children(self) -> Iterator[tuple[str, Module]]:
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, (list, tuple)):
                for i, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{name}.{i}", item

    def modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it, with dotted names."""
        yield prefix, self
        for name, child in self.children():
            yield from child.modules(f"{prefix}.{name}" if prefix else name)

    def _own(self, buffers: bool) -> Iterator[tuple[str, Tensor]]:
        names = self.__dict__.get("_buffer_names", ())
        assigned = self.__dict__.get("_parameter_names", ())
        for name, value in vars(self).items():
            if not isinstance(value, Tensor):
                continue
            if name in names:
                wanted = buffers
            else:
                wanted = not buffers and (name in assigned or _is_parameter(value))
            if wanted:
                yield name, value

    def _named(self, buffers: bool) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for prefix, module in self.modules():
            for name, tensor in module._own(buffers):
                if id(tensor) not in seen:  # a tied tensor counts once, under its first name
                    seen.add(id(tensor))
                    yield (f"{prefix}.{name}" if prefix else name), tensor

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        return self._named(buffers=False)

    def parameters(self) -> list[Tensor]:
        return [p for _, p in self.named_parameters()]

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        return self._named(buffers=True)

    def n_parameters(self) -> int:
        """The number of trained values, tied ones counted once."""
        return sum(p.size for p in self.parameters())

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for an optimizer: decay for matrices, none for vectors (norms and biases)."""
        matrices = [p for p in self.parameters() if p.ndim >= 2]
        vectors = [p for p in self.parameters() if p.ndim < 2]
        return [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]

    # ---- state ----

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of parameters and buffers by name."""
        named = [*self.named_parameters(), *self.named_buffers()]
        return {name: tensor.numpy().copy() for name, tensor in named}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Overwrites parameters and buffers. A missing or unknown name, or a shape that does not
        match, raises ValueError and loads nothing."""
        if not isinstance(state, Mapping):
            raise TypeError(f"load_state_dict: expected arrays by name, got {shown(state)}")
        mine = dict([*self.named_parameters(), *self.named_buffers()])
        missing, unknown = sorted(set(mine) - set(state)), sorted(set(state) - set(mine))
        if missing or unknown:
            raise ValueError(f"load_state_dict: missing {missing}, unknown {unknown}")
        for name, tensor in mine.items():
            if not (hasattr(state[name], "shape") and hasattr(state[name], "dtype")):
                raise TypeError(
                    f"load_state_dict: {name} must be an array, got {shown(state[name])}; nothing "
                    "was loaded"
                )
            if tuple(state[name].shape) != tensor.shape:
                raise ValueError(
                    f"load_state_dict: {name} has shape {tuple(state[name].shape)} in the state "
                    f"and {tensor.shape} here; nothing was loaded"
                )
            if state[name].dtype not in dtypes.ALL:
                raise ValueError(
                    f"load_state_dict: {name} has dtype {state[name].dtype} in the state; expected "
                    f"one of {', '.join(d.name for d in dtypes.ALL)}; nothing was loaded"
                )
        with autograd.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(ops.tensor(state[name], device=tensor.device))

    # ---- mode ----

    def train(self, mode: bool = True) -> Module:
        """Training mode (dropout active) for this module and all below it. Returns self."""
        for _, module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        return self.train(False)

    def to(self, target: Any) -> Module:
        """Brings parameters and buffers to the device, or floating ones to the dtype, that `target`
        names, in place: they stay the same tensors (so ties last), and those that change lose their
        gradients. A graph made before cannot be walked after. Optimizers take float32 and float64
        only: in half precision they need a float32 copy of the parameters. Returns self."""
        by_device = ops.names_device(target)
        wanted = target if by_device else dtypes.as_dtype(target)
        if not by_device and not dtypes.is_floating(wanted):
            raise TypeError(
                f"{type(self).__name__}.to: expected a floating dtype, got {wanted.name}; or "
                "the name of a device"
            )
        for _, tensor in [*self.named_parameters(), *self.named_buffers()]:
            if not by_device and not dtypes.is_floating(tensor.dtype):
                continue
            moved = tensor.detach().to(wanted)
            if moved.device != tensor.device or moved.dtype != tensor.dtype:
                tensor.storage.changed()
                tensor._array, tensor._storage = moved._array, moved._storage
                tensor.grad = None
        return self

    def apply(self, function: Callable[[Module], None]) -> Module:
        """Calls `function` on this module and all below it. Returns self."""
        for _, module in self.modules():
            function(module)
        return self

    def zero_grad(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None


class Sequential(Module):
    """Layers one after another."""

    def __init__(self, *layers: Module) -> None:
        for i, layer in enumerate(layers):
            if not callable(layer):
                hint = "; write nn.Sequential(*layers)" if isinstance(layer, list | tuple) else ""
                raise TypeError(
                    f"Sequential: layer {i} must be a module or a function, got "
                    f"{shown(layer)}{hint}"
                )
        self.layers = list(layers)

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> Module:
        return self.layers[index]
