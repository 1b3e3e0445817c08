"""The prefix tree: blocks of rows that later requests with the same beginning take over instead of computing.

The tree owns one reference to each of its blocks and is bounded by the pools alone. Three facts keep it simple:

- A lane's rows are present along a path from the root without gaps, because watermarks fill lanes from the front.
- A request that uses a node's block uses the blocks of all the node's ancestors in that lane too.
- Requests release their blocks from the back. Hence, in a pool's order of idle blocks, descendants always stand
  before their ancestors, and evicting from the front takes leaves, the least recently used first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stretto.cache.blocks import BLOCK, BlockPool


class Node:
    """One full block of tokens behind its ancestors' tokens."""

    __slots__ = ("blocks", "children", "key", "lineage", "parent")

    def __init__(self, lineage: str, parent: Node | None, key: tuple[int, ...]) -> None:
        self.lineage = lineage
        self.parent = parent
        self.key = key
        self.children: dict[tuple[int, ...], Node] = {}
        self.blocks: dict[str, int] = {}
        """By lane: the block with the rows. A lane whose rows are missing is missing here."""


class PrefixTree:
    """Nodes by (lineage, parent, token ids) over the ``pools`` of a model's lanes.

    The lineage names everything but the tokens that the rows depend on or that must keep them apart: weights,
    adapter, cache policy, rope variant, tenant.
    """

    def __init__(self, pools: dict[str, BlockPool]) -> None:
        self.evictions = 0
        self._pools = pools
        self._roots: dict[str, Node] = {}
        self._owner: dict[str, dict[int, Node]] = {lane: {} for lane in pools}

    def match(self, lineage: str, tokens: Sequence[int]) -> list[Node]:
        """Return the longest path of nodes whose tokens are the full blocks that ``tokens`` begins with."""
        path: list[Node] = []
        node = self._roots.get(lineage)
        for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
            node = node.children.get(tuple(tokens[start : start + BLOCK])) if node else None
            if node is None:
                break
            path.append(node)
        return path

    def insert(self, lineage: str, parent: Node | None, tokens: Sequence[int], lane: str, block: int) -> Node:
        """Return the node of one full block of ``tokens`` behind ``parent`` (None: at the beginning).

        Its rows in ``lane`` are ``block`` if they were missing there; otherwise the tree keeps the block it has.
        """
        above = parent or self._roots.setdefault(lineage, Node(lineage, None, ()))
        key = tuple(tokens)
        node = above.children.get(key)
        if node is None:
            node = above.children[key] = Node(lineage, above, key)
        if lane not in node.blocks:
            self._pools[lane].adopt(block)
            node.blocks[lane] = block
            self._owner[lane][block] = node
        return node

    def evict(self, lane: str, count: int) -> int:
        """Give up to ``count`` idle blocks of ``lane`` back to its pool; return how many."""
        pool = self._pools[lane]
        count = max(0, min(count, len(pool.idle)))
        for _ in range(count):
            block = next(iter(pool.idle))
            node = self._owner[lane].pop(block)
            del node.blocks[lane]
            pool.disown(block)
            if not node.blocks:
                self._detach(node)
        self.evictions += count
        return count

    def cached(self, lane: str) -> int:
        """Return how many blocks of ``lane`` the tree holds."""
        return len(self._owner[lane])

    def _detach(self, node: Node) -> None:
        above = node.parent
        assert above is not None
        del above.children[node.key]
        if above.parent is None and not above.children:
            del self._roots[node.lineage]

    def nodes(self) -> Iterator[Node]:
        """Yield all nodes."""
        waiting = [child for root in self._roots.values() for child in root.children.values()]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(node.children.values())

    def check(self) -> None:
        """Raise ``AssertionError`` if the tree is not what this module's head promises."""
        reached: dict[str, dict[int, Node]] = {lane: {} for lane in self._pools}
        for node in self.nodes():
            assert node.blocks, "a node holds no block"
            assert node.parent is not None and node.parent.children[node.key] is node, "a node is not where its key is"
            for lane, block in node.blocks.items():
                assert block not in reached[lane], f"block {block} of lane {lane} is in two nodes"
                reached[lane][block] = node
                assert node.parent.parent is None or lane in node.parent.blocks, f"lane {lane} has a gap in a path"
        assert reached == self._owner, "the tree's blocks are not those it knows it owns"
        for lane, pool in self._pools.items():
            before: set[int] = set()
            for block in pool.idle:
                below = {child.blocks[lane] for child in reached[lane][block].children.values() if lane in child.blocks}
                assert below <= before, f"block {block} of lane {lane} would be evicted before its descendants"
                before.add(block)
