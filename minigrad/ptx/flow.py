"""Basic blocks of a function, and an order of them in which divergent lanes run.

Lanes of a warp that went different ways run in turn, those in the block of the lowest rank first,
and join where they meet. So a rank must be below those of the blocks that are reached from it, and
what is inside a loop below what comes after the loop, or lanes that leave early would run ahead.
That is Bourdoncle's weak topological order: strongly connected components in topological order,
each begun by its head and then ordered in the same way without the edges back to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

MAX_LOOP_DEPTH = 64  # deeper loops keep the order of a plain traversal


@dataclass
class Block:
    """Instructions `first` to `last` (exclusive) of a function's body."""

    first: int
    last: int
    successors: list[int] = field(default_factory=list)
    rank: int = 0


def blocks(
    n_instructions: int, targets: dict[int, list[int]], ends: dict[int, bool]
) -> list[Block]:
    """Cuts a body: `targets` gives the instructions that a branch may go to, by the branch's place;
    `ends` the places after which a block ends, and whether control may fall through."""
    leaders = {0, n_instructions}
    for places in targets.values():
        leaders.update(places)
    leaders.update(place + 1 for place in ends)
    cuts = sorted(leaders)
    found = [Block(a, b) for a, b in pairwise(cuts)]
    at = {block.first: i for i, block in enumerate(found)}
    for i, block in enumerate(found):
        last = block.last - 1
        block.successors = [at[t] for t in targets.get(last, []) if t in at]
        if ends.get(last, True) and i + 1 < len(found):
            block.successors.append(i + 1)
    _rank(found)
    return found


def _rank(found: list[Block]) -> None:
    edges = [list(dict.fromkeys(block.successors)) for block in found]
    # Blocks that nothing reaches come last, in the order of the text.
    order = _order(edges, [0]) if found else []
    seen = set(order)
    order += [i for i in range(len(found)) if i not in seen]
    for rank, i in enumerate(order):
        found[i].rank = rank


def _order(edges: list[list[int]], roots: list[int]) -> list[int]:
    """The weak topological order of what `roots` reach."""
    result: list[int] = []
    # A task is either a block to write down, or a set of blocks to order from its root.
    tasks: list[tuple[int, set[int] | None, int]] = [(root, set(range(len(edges))), 0)
                                                     for root in reversed(roots)]  # fmt: skip
    while tasks:
        root, inside, depth = tasks.pop()
        if inside is None:
            result.append(root)
            continue
        for component in reversed(_components(edges, root, inside, cut=depth > 0)):
            head = component[0]
            looped = len(component) > 1
            if head == root and depth > 0:
                tasks.append((head, None, depth))
            elif looped and depth < MAX_LOOP_DEPTH:
                tasks.append((head, set(component), depth + 1))
            else:
                tasks += [(i, None, depth) for i in reversed(component)]
    return result


def _components(edges: list[list[int]], root: int, inside: set[int], cut: bool) -> list[list[int]]:
    """Strongly connected components of what `root` reaches within `inside`, in topological order,
    each beginning with the block it is entered by (Tarjan, without recursion). With `cut`, edges
    back to the root do not count."""
    number: dict[int, int] = {root: 0}
    low: dict[int, int] = {root: 0}
    stack, on_stack = [root], {root}
    found: list[list[int]] = []
    path = [(root, iter(reversed(edges[root])))]
    while path:
        at, following = path[-1]
        for to in following:
            if to not in inside or (cut and to == root):
                continue
            if to not in number:
                number[to] = low[to] = len(number)
                stack.append(to)
                on_stack.add(to)
                path.append((to, iter(reversed(edges[to]))))
                break
            if to in on_stack:
                low[at] = min(low[at], number[to])
        else:
            path.pop()
            if path:
                low[path[-1][0]] = min(low[path[-1][0]], low[at])
            if low[at] == number[at]:
                component = []
                while True:
                    one = stack.pop()
                    on_stack.discard(one)
                    component.append(one)
                    if one == at:
                        break
                component.reverse()
                found.append(component)
    found.reverse()
    return found
