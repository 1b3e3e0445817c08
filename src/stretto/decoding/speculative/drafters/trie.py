"""A trie of branches from prompts and outputs, from which several continuations are retrieved at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from stretto.decoding.speculative.drafter import Draft
from stretto.decoding.speculative.drafters.base import ModelFree, chance
from stretto.decoding.speculative.stores import TenantStores

if TYPE_CHECKING:
    from stretto.core.request import Request

ROOT_NODES = 512
"""Nodes under one first token at which its counts are halved and what was seen once is dropped."""


class Node:
    """How often a branch went through here, with decay, and where it went on."""

    __slots__ = ("count", "next")

    def __init__(self) -> None:
        self.count = 0.0
        self.next: dict[int, Node] = {}


class BranchTrie:
    """Branches of tokens, by first token. At most ``limit`` nodes: first tokens that were not added to go first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.roots: OrderedDict[int, Node] = OrderedDict()
        self.sizes: dict[int, int] = {}
        self.nodes = 0

    def __len__(self) -> int:
        return self.nodes

    def add(self, first: int, branch: Sequence[int]) -> None:
        """Count ``branch`` behind ``first``."""
        root = self.roots.get(first)
        if root is None:
            root = self.roots[first] = Node()
            self.sizes[first], made = 0, 1
        else:
            self.roots.move_to_end(first)
            made = 0
        root.count += 1.0
        node = root
        for token in branch:
            child = node.next.get(token)
            if child is None:
                child = node.next[token] = Node()
                made += 1
            child.count += 1.0
            node = child
        if made:
            self.nodes += made
            self.sizes[first] += made
            self._shrink(first)

    def find(self, tokens: Sequence[int]) -> Node | None:
        """Return the node of a branch, its first token included."""
        node = self.roots.get(tokens[0])
        for token in tokens[1:]:
            if node is None:
                break
            node = node.next.get(token)
        return node

    def _shrink(self, first: int) -> None:
        while self.sizes[first] > ROOT_NODES:
            root = self.roots[first]
            dropped = _decay(root)
            root.count /= 2
            self.sizes[first] -= dropped
            self.nodes -= dropped
        while self.nodes > self.limit:
            oldest, _ = self.roots.popitem(last=False)
            self.nodes -= self.sizes.pop(oldest)


def _decay(node: Node) -> int:
    """Halve the counts below ``node``, drop those of 1 and less; return how many nodes were dropped."""
    dropped = 0
    for token, child in list(node.next.items()):
        if child.count > 1.0:
            child.count /= 2
            dropped += _decay(child)
        else:
            dropped += _size(node.next.pop(token))
    return dropped


def _size(node: Node) -> int:
    return 1 + sum(_size(child) for child in node.next.values())


_NOWHERE = Node()


@dataclass(slots=True)
class _Found:
    """A node of both tries, the prompt's and the outputs', that may be drafted."""

    token: int
    prompt: Node
    outputs: Node
    children: list[_Found] | None = None

    def count(self) -> float:
        return self.prompt.count + self.outputs.count

    def expand(self) -> list[_Found]:
        """Return what followed, in the prompt or in outputs, the weightiest first."""
        if self.children is None:
            prompt, outputs = self.prompt.next, self.outputs.next
            self.children = [
                _Found(token, prompt.get(token, _NOWHERE), outputs.get(token, _NOWHERE))
                for token in (prompt | outputs if prompt and outputs else prompt or outputs)
            ]
            self.children.sort(key=_by_prompt)
        return self.children


def _by_prompt(found: _Found) -> tuple[float, ...]:
    """Rank by frequency in the prompt; only among equals by that in outputs."""
    return -found.prompt.count, -found.outputs.count


def _by_outputs(found: _Found) -> tuple[float, ...]:
    """Rank by frequency in outputs; () for what stood in none."""
    return (-found.outputs.count,) if found.outputs.count else ()


def _choose(root: _Found, rank: Callable[[_Found], tuple[float, ...]], most: int, chosen: set[int]) -> None:
    """Add nodes to ``chosen``, by identity, in the order of their rank, until it holds ``most``.

    No child ranks before its parent, so that the chosen form a tree.
    """
    heap: list[tuple[tuple[float, ...], int, _Found]] = []
    node, order = root, 0
    while len(chosen) < most:
        for child in node.expand():
            if place := rank(child):
                heappush(heap, (place, order, child))
                order += 1
        if not heap:
            return
        node = heappop(heap)[2]
        chosen.add(id(node))


@dataclass(slots=True)
class _Written:
    """The prompt's own trie, and how many tokens of the request stand in the tenant's as first tokens of branches."""

    prompt: BranchTrie
    upto: int


class AlipayLookahead(ModelFree):
    """Lookahead with a trie (Zhao et al., arXiv 2312.12728).

    Every token of prompt and outputs begins a branch of the ``branch`` tokens behind it. The branches behind the last
    two tokens are retrieved, behind the last one alone where these are too few: half of the nodes by their frequency in
    outputs, the rest by that in the prompt first. Branches of the prompt are the request's own, those of outputs serve
    all requests of the tenant, with decay, at most ``limit`` nodes.
    """

    def __init__(
        self, name: str = "lookahead-alipay", *, branch: int = 8, query: int = 2, limit: int = 1 << 16
    ) -> None:
        super().__init__(name)
        self.branch, self.query = branch, query
        self.past: TenantStores[BranchTrie] = TenantStores(BranchTrie, limit=limit)

    def propose(self, request: Request, room: int) -> Draft | None:
        """Return the retrieved branches as one tree, depth first."""
        written = self._write(request)
        outputs, tokens = self.past.find(request), request.tokens
        best: Draft | None = None
        for size in range(min(self.query, len(tokens)), 0, -1):
            tail = tokens[-size:]
            own = written.prompt.find(tail) or _NOWHERE
            theirs = (outputs and outputs.find(tail)) or _NOWHERE
            if own.next or theirs.next:
                best = self._retrieve(_Found(-1, own, theirs), room, size)
                if len(best.tree) >= min(room, self.branch - 1):
                    break
        return best

    def end(self, request: Request) -> None:
        """Add the last, shorter branches."""
        self._write(request, final=True)

    def stores(self) -> Mapping[str, Mapping[str, int]]:
        """Return how many nodes the tries of outputs have."""
        return {self.name: self.past.describe("nodes")}

    def _write(self, request: Request, final: bool = False) -> _Written:
        """Add the branches that the new tokens complete; at the end also those that they do not."""
        tokens, prompt = request.tokens, len(request.prompt)
        written: _Written | None = request.memory.get(self.name)
        if written is None:
            written = request.memory[self.name] = _Written(BranchTrie(1 << 30), prompt)
            for place in range(prompt - 1):
                written.prompt.add(tokens[place], tokens[place + 1 : min(prompt, place + 1 + self.branch)])
        stop = len(tokens) - (1 if final else self.branch)
        if written.upto < stop:
            outputs = self.past.open(request)
            for place in range(written.upto, stop):
                outputs.add(tokens[place], tokens[place + 1 : place + 1 + self.branch])
            written.upto = stop
            self.past.trim()
        return written

    def _retrieve(self, root: _Found, room: int, matched: int) -> Draft:
        """Return the chosen nodes depth first, the weightier child first; ``matched`` tokens led to ``root``."""
        chosen: set[int] = set()
        _choose(root, _by_outputs, room // 2, chosen)
        _choose(root, _by_prompt, room, chosen)
        tokens, parents, survival = list[int](), list[int](), list[float]()
        # What is to be listed: a node, its parent's number, how many tokens stand before it, the parent's count.
        stack: list[tuple[_Found, int, int, float]] = []
        found, number, length = root, -1, matched
        while True:
            total = found.count()
            stack += [(child, number, length, total) for child in reversed(found.children or ()) if id(child) in chosen]
            if not stack:
                return Draft(self.tree(tokens, parents, survival))
            found, parent, length, total = stack.pop()
            number = len(tokens)
            tokens.append(found.token)
            parents.append(parent)
            survival.append(chance(found.count(), total, length))
            length += 1
