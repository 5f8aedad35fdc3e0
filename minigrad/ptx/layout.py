"""Which functions an entry needs, and where its variables lie.

Shared, local and parameter variables get offsets, global ones device addresses. A device function's
parameters are local variables at fixed places, which a caller's argument variables share; so
functions do not recurse.
"""

from __future__ import annotations

from typing import Any

from .errors import PtxError
from .syntax import Function, Group, Instruction, Module, Name, Variable

MAX_LOCAL_BYTES = 512 << 10  # of a thread, as on hardware
MAX_PARAM_BYTES = 32764  # of a kernel, as on hardware
MAX_SHARED_BYTES = 1 << 20
MAX_GLOBAL_BYTES = 1 << 28  # of a module's variables
VARIABLES_BASE = 0x10_0000_0000
GAP = 64 << 10  # between arrays, so that running off one does not reach the next

BUILTINS = {"vprintf": (8, 8), "__assertfail": (8, 8, 4, 8, 8)}  # sizes of their parameters


class Layout:
    """`functions` has the entry and all that it calls, every caller before its callees; `offsets`
    those of shared, local and parameter variables, by id(); `placed` the global variables that are
    used, with their addresses, which `addresses` has by name."""

    def __init__(self, module: Module, entry: Function) -> None:
        self.module, self.entry = module, entry
        self.offsets: dict[int, int] = {}
        self.params: list[tuple[Variable, int]] = []
        self.param_bytes = self.local_bytes = self.shared_bytes = 0
        self.addresses: dict[str, int] = {}
        self.placed: list[tuple[Variable, int]] = []
        self.next_address = VARIABLES_BASE
        self.variable_bytes = 0
        self.dynamic_align = 16
        self.functions = self._reachable()
        self._place(self.functions)

    def _reachable(self) -> list[Function]:
        """The entry and all functions it calls, every caller before its callees."""
        order: list[Function] = []
        state: dict[str, int] = {}
        path: list[tuple[Function, list[str]]] = [(self.entry, self._callees(self.entry))]
        state[self.entry.name] = 1
        while path:
            function, waiting = path[-1]
            if not waiting:
                path.pop()
                state[function.name] = 2
                order.append(function)
                continue
            name = waiting.pop()
            if name in BUILTINS and name not in self.module.functions:
                continue
            callee = self.module.functions.get(name)
            if callee is None or not callee.has_body:
                if name in BUILTINS:
                    continue
                raise PtxError(
                    f"{function.name} calls {name}, which is not in the text; of what the driver "
                    f"provides there are {' and '.join(BUILTINS)}", function.line
                )  # fmt: skip
            if state.get(name) == 1:
                raise PtxError(
                    f"{function.name} calls {name}, which calls it: functions that recurse are not "
                    "supported", function.line
                )  # fmt: skip
            if name not in state:
                state[name] = 1
                path.append((callee, self._callees(callee)))
        order.reverse()
        return order

    def _callees(self, function: Function) -> list[str]:
        names = []
        for i, instruction in enumerate(function.body):
            if instruction.op.startswith("call"):
                name = next((a.name for a in instruction.args if type(a) is Name), None)
                if name is None:
                    raise PtxError(
                        f"{function.name}: {instruction.op}: only calls by name are supported",
                        function.lines[i],
                    )
                names.append(name)
        return names

    def _place(self, functions: list[Function]) -> None:
        end = 0
        for variable in self.entry.params:
            at = -(-end // variable.align) * variable.align
            self.offsets[id(variable)] = at
            self.params.append((variable, at))
            end = at + variable.size
            if end > MAX_PARAM_BYTES:
                raise PtxError(
                    f"{self.entry.name} has more than {MAX_PARAM_BYTES} bytes of parameters",
                    variable.line,
                )
        shared = [v for v in self.module.variables.values() if v.space == "shared"]
        for function in functions:
            shared += [v for v in function.variables if v.space == "shared"]
        for variable in shared:
            if variable.external:
                self.dynamic_align = max(self.dynamic_align, variable.align)
                continue
            at = -(-self.shared_bytes // variable.align) * variable.align
            self.offsets[id(variable)] = at
            self.shared_bytes = at + variable.size
            if self.shared_bytes > MAX_SHARED_BYTES:
                raise PtxError(f"more than {MAX_SHARED_BYTES} bytes of shared variables",
                               variable.line)  # fmt: skip
        if any(v.external for v in shared):
            self.shared_bytes = -(-self.shared_bytes // self.dynamic_align) * self.dynamic_align
        for variable in shared:
            if variable.external:
                self.offsets[id(variable)] = self.shared_bytes
        for function in functions:
            if function is not self.entry:
                for variable in function.params + function.results:
                    self._local(variable)
        for function in functions:
            self._alias(function)
            for variable in function.variables:
                if variable.space in ("local", "param") and id(variable) not in self.offsets:
                    self._local(variable)
                elif variable.space in ("global", "const"):
                    self.module.variables.setdefault(variable.name, variable)
        self.param_bytes = end

    def _local(self, variable: Variable) -> None:
        at = -(-self.local_bytes // variable.align) * variable.align
        self.offsets[id(variable)] = at
        self.local_bytes = at + variable.size
        if self.local_bytes > MAX_LOCAL_BYTES:
            raise PtxError(
                f"{variable.name}: more than {MAX_LOCAL_BYTES} bytes of local memory a thread",
                variable.line,
            )

    def _alias(self, function: Function) -> None:
        """Gives the .param variables that a call passes the places of the callee's parameters."""
        for i, instruction in enumerate(function.body):
            if not instruction.op.startswith("call"):
                continue
            results, name, arguments = call_parts(instruction, function.lines[i])
            callee = self.module.functions.get(name)
            if callee is None or not callee.has_body:
                continue
            given = [(results, callee.results, "results"), (arguments, callee.params, "arguments")]
            for actual, formal, what in given:
                if len(actual) != len(formal):
                    raise PtxError(
                        f"{function.name}: {name} has {len(formal)} {what}, the call {len(actual)}",
                        function.lines[i],
                    )
                for one, parameter in zip(actual, formal, strict=True):
                    if type(one) is not Name or one.variable is None:
                        continue
                    if one.variable.size > parameter.size or one.variable.space != "param":
                        raise PtxError(
                            f"{function.name}: {one.name} does not fit {name}'s {parameter.name}",
                            function.lines[i],
                        )
                    at = self.offsets[id(parameter)]
                    if self.offsets.setdefault(id(one.variable), at) != at:
                        raise PtxError(
                            f"{function.name}: {one.name} is passed to two different parameters",
                            function.lines[i],
                        )

    def global_address(self, variable: Variable) -> int:
        """The device address of a global variable, placed when first asked for."""
        found = self.addresses.get(variable.name)
        if found is None:
            self.variable_bytes += variable.size
            if self.variable_bytes > MAX_GLOBAL_BYTES:
                raise PtxError(f"more than {MAX_GLOBAL_BYTES} bytes of global variables",
                               variable.line)  # fmt: skip
            align = max(256, variable.align)
            found = -(-self.next_address // align) * align
            self.addresses[variable.name] = found
            self.placed.append((variable, found))
            self.next_address = found + variable.size + GAP
        return found

    def place_initial(self) -> None:
        """Places what initial values point to."""
        for variable, _ in self.placed:  # grows while it runs
            for _, _, name, _, _ in variable.addresses:
                pointed = self.module.variables.get(name)
                if pointed is None or pointed.space not in ("global", "const"):
                    raise PtxError(
                        f"{variable.name} is to hold the address of {name}, which is no global "
                        "variable", variable.line
                    )  # fmt: skip
                self.global_address(pointed)


def call_parts(instruction: Instruction, line: int) -> tuple[list[Any], str, list[Any]]:
    """The results, the name and the arguments of a call."""
    groups = [a if type(a) is Group else None for a in instruction.args]
    at = next((i for i, a in enumerate(instruction.args) if type(a) is Name), None)
    before = groups[:at] if at is not None else []
    after = groups[at + 1 :] if at is not None else []
    if at is None or at > 1 or None in before or len(after) > 1 or None in after:
        raise PtxError(f"{instruction.op}: cannot read this call", line)
    results = before[0].items if before and before[0] else []
    arguments = after[0].items if after and after[0] else []
    return results, instruction.args[at].name, arguments
