"""``PrefixCache``: a radix tree over token ids, whose nodes say where the keys and values of their tokens are.

The tree is an account: it touches no memory itself. ``Residency`` makes what the tree says true.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["Match", "Node", "PrefixCache", "Stored"]

Tokens = npt.NDArray[np.int32]


@dataclass(eq=False, slots=True)
class Stored:
    """The saved state of the positions from ``start`` to ``end``, in host memory or in a file; nodes share it."""

    start: int
    end: int
    size: int  # bytes
    data: bytes | None  # None once it is on disk alone
    path: Path | None = None
    nodes: list[Node] = field(default_factory=list)  # that refer to it: those that its node was split into


@dataclass(eq=False, slots=True)
class Node:
    """A run of tokens after its parent's. Position ``start`` is that of ``tokens[0]``."""

    parent: Node | None
    start: int
    tokens: Tokens
    children: dict[int, Node] = field(default_factory=dict)
    resident: bool = False
    # holds every position from 0 to the node's end; where a resident node has none, a descendant has
    seq_id: int | None = None
    stored: Stored | None = None
    pins: int = 0
    last_used: int = 0  # of the tree's clock
    used_at: float = 0.0  # time.monotonic()

    @property
    def end(self) -> int:
        """The position after its last token."""
        return self.start + len(self.tokens)

    def __repr__(self) -> str:
        where = "resident" if self.resident else "stored" if self.stored else "empty"
        return f"<Node {self.start} to {self.end} {where} seq_id={self.seq_id} {len(self.children)} children>"


@dataclass(frozen=True, slots=True)
class Match:
    """How far a prompt is known. ``node`` is the deepest node that agrees with it, for ``inside`` of its tokens."""

    node: Node
    inside: int
    length: int  # tokens that agree, resident or stored
    resident: int  # of those, in the KV memory

    @property
    def differs_from(self) -> int | None:
        """The token of the cached text that differs from the prompt's, where one does."""
        return int(self.node.tokens[self.inside]) if self.inside < len(self.node.tokens) else None


class PrefixCache:
    """Which prefixes are known, and where. The caller guards it with a lock of its own.

    What was computed with different adapters has nothing in common: a ``key`` (None for none) chooses the tree.
    ``parts`` says whether the keys and values of a node's tokens are of use without those of all of them.
    """

    def __init__(self, *, parts: bool = True) -> None:
        self._parts = parts
        self._roots: dict[Hashable, Node] = {}
        self._clock = itertools.count(1)

    def root(self, key: Hashable = None) -> Node:
        """Where the prefixes of ``key`` begin."""
        found = self._roots.get(key)
        if found is None:
            found = self._roots[key] = Node(None, 0, np.empty(0, dtype=np.int32), resident=True)
        return found

    def match(self, tokens: Tokens, key: Hashable = None) -> Match:
        """The longest known prefix of ``tokens``, by comparing every one of them."""
        node, at, resident = self.root(key), 0, 0
        while True:
            child = node.children.get(int(tokens[at])) if at < len(tokens) else None
            if child is None:
                return Match(node, len(node.tokens), at, resident)
            agree = common_length(child.tokens, tokens[at:])
            at += agree
            if child.resident:
                resident = at
            if agree < len(child.tokens):
                return Match(child, agree, at, resident)
            node = child

    def path(self, node: Node) -> list[Node]:
        """The nodes from the first after the root down to ``node``."""
        found: list[Node] = []
        while node.parent is not None:
            found.append(node)
            node = node.parent
        return found[::-1]

    def tokens_to(self, node: Node) -> Tokens:
        """All tokens from the start to the node's end."""
        return np.concatenate([np.empty(0, dtype=np.int32), *(step.tokens for step in self.path(node))])

    def key_of(self, node: Node) -> Hashable:
        """What the prefixes of a node's tree were computed with."""
        while node.parent is not None:
            node = node.parent
        return next(key for key, root in self._roots.items() if root is node)

    def touch(self, node: Node) -> None:
        """Note that the path to ``node`` was of use just now."""
        now, clock = time.monotonic(), next(self._clock)
        while node.parent is not None:
            node.last_used, node.used_at = clock, now
            node = node.parent

    def split(self, node: Node, inside: int) -> Node:
        """Cut a node after ``inside`` of its tokens; returns the new upper part, and ``node`` becomes the lower one.

        A state that cannot be cut stays the lower one's alone.
        """
        assert node.parent is not None and 0 < inside < len(node.tokens)
        upper = Node(
            node.parent,
            node.start,
            node.tokens[:inside].copy(),
            resident=node.resident and self._parts,
            stored=node.stored if self._parts else None,
            last_used=node.last_used,
            used_at=node.used_at,
        )
        if upper.stored is not None:
            upper.stored.nodes.append(upper)
        node.parent.children[int(upper.tokens[0])] = upper
        node.parent, node.start, node.tokens = upper, node.start + inside, node.tokens[inside:].copy()
        upper.children[int(node.tokens[0])] = node
        return upper

    def insert(self, tokens: Tokens, key: Hashable = None) -> Node:
        """The node that ends where ``tokens`` do, made where it is missing; not resident then, nor stored."""
        found = self.match(tokens, key)
        node = found.node
        if found.inside < len(node.tokens):
            node = self.split(node, found.inside)
        if found.length < len(tokens):
            leaf = Node(node, found.length, tokens[found.length :].copy())
            node.children[int(leaf.tokens[0])] = leaf
            node = leaf
        return node

    def remove(self, node: Node) -> None:
        """Take a node out that nothing hangs on: no child, not resident, not stored."""
        assert not node.children and not node.resident and node.stored is None and node.parent is not None
        del node.parent.children[int(node.tokens[0])]

    def nodes(self) -> Iterator[Node]:
        """Every node but the root, parents before their children."""
        stack = [child for root in self._roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def holder(self, node: Node) -> int:
        """A sequence that holds everything from position 0 to the end of a resident node."""
        stack = [node]
        while stack:
            here = stack.pop()
            if here.seq_id is not None:
                return here.seq_id
            stack.extend(child for child in here.children.values() if child.resident)
        raise AssertionError(f"{node} is resident and no sequence holds it")


def common_length(a: Tokens, b: Tokens) -> int:
    """How many tokens at the start of two arrays are the same."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n
