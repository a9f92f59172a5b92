"""From pieces of bytes to text that can be shown: whole characters only, and never part of a stop string."""

from __future__ import annotations

import codecs
import functools
import re
from collections import deque
from collections.abc import Sequence

from .errors import ArgumentTypeError, InvalidArgumentError

__all__ = ["TextAssembler"]


class TextAssembler:
    """Turns a model's pieces into text, up to the first stop string.

    A piece is some bytes of UTF-8 and may end, or begin, in the middle of a character. Invalid bytes
    become U+FFFD, as ``bytes.decode(errors="replace")`` has it. The stop string that starts earliest
    ends the text; of those that start there, the longest. The result is the same however the bytes
    are cut into pieces, which can take a piece more than the stop string itself: with the stops
    ``"\\n"`` and ``"\\n\\n"``, only what follows a line break tells which of them it is.
    """

    __slots__ = ("_automaton", "_best", "_best_start", "_consumed", "_node", "_tail", "stopped")

    def __init__(self, stop: str | Sequence[str] = ()) -> None:
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        self._automaton = _automaton(stops) if stops else None
        self._tail = b""  # bytes of a character that is not complete yet
        self._node = 0  # where the automaton stands after all text so far
        self._consumed = 0  # length of that text
        self._best: str | None = None  # a stop string that is complete but could still be outdone
        self._best_start = 0
        self.stopped: str | None = None  # the stop string that ended the text, as soon as one did

    def push(self, piece: bytes) -> str:
        """Take the next bytes; return the text that is certain now. After a stop that is nothing."""
        if not self._tail and piece.isascii():  # nearly every piece, and several times faster
            text = str(piece, "ascii")
        else:
            data = self._tail + piece
            text, used = codecs.utf_8_decode(data, "replace", False)
            self._tail = data[used:]
        if self._automaton is None:
            return text
        return self._scan(self._automaton, text) if text else ""

    def flush(self) -> str:
        """End the text: return what was held back, with half a character at the end as U+FFFD."""
        text, self._tail = self._tail.decode(errors="replace"), b""
        if self._automaton is None:
            return text
        emitted = self._scan(self._automaton, text)
        if self.stopped is not None:
            return emitted
        count = self._automaton.held_length[self._node]
        if self._best is not None:
            self.stopped = self._best
            count -= self._consumed - self._best_start
        held = self._automaton.held_text(self._node, count)
        self._node, self._best = 0, None
        return emitted + held

    def _scan(self, stops: _Automaton, text: str) -> str:
        """Feed ``text`` to the automaton; what can be emitted precedes every match still possible.

        The automaton stands at the longest suffix of the text that begins some stop string, so the text
        held back need not be kept: it can be read off the node. Each character is looked at once.
        """
        if self.stopped is not None:
            return ""
        node, best, best_start = self._node, self._best, self._best_start
        held = stops.held_length[node]
        first = self._consumed - held  # position of the first character not yet emitted
        base = self._consumed  # position of text[0]
        children, fail, longest, held_length = (stops.children, stops.fail, stops.longest, stops.held_length)
        index, end = 0, len(text)
        decided = False
        while index < end:
            if not node:
                # Nothing is open: jump to the next character that any stop string begins with.
                found = stops.first.search(text, index)
                if found is None:
                    break
                index = found.start()
            character = text[index]
            index += 1
            while node and character not in children[node]:
                node = fail[node]
            node = children[node].get(character, 0)
            match = longest[node]
            if match is not None:
                start = base + index - len(match)
                if best is None or start <= best_start:  # at the same start, a later end is longer
                    best, best_start = match, start
            if best is not None and base + index - held_length[node] > best_start:
                decided = True
                break
        if decided:
            self.stopped, limit = best, best_start
        else:
            limit = base + end - held_length[node]
        count = limit - first
        before = stops.held_text(self._node, count) if held and count else ""
        self._node, self._best, self._best_start = node, best, best_start
        self._consumed = base + end
        return before + text[: max(0, count - held)]


class _Automaton:
    """Aho-Corasick over the stop strings: a trie whose nodes know where to go on after a mismatch.

    One list for each property, indexed by node; node 0 is the root.
    """

    __slots__ = ("_held_node", "_prefix", "children", "fail", "first", "held_length", "longest")

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.children: list[dict[str, int]] = [{}]
        self.fail = [0]
        # The longest stop string that is a suffix of the node's text.
        self.longest: list[str | None] = [None]
        # The longest suffix of the node's text that a stop string could still grow from.
        self.held_length = [0]
        self._held_node = [0]
        self._prefix: list[tuple[str, int]] = [("", 0)]  # the node's text: a stop string, and how much of it
        for stop in stops:
            self._insert(stop)
        self._link()
        self.first = re.compile("[" + "".join(map(re.escape, self.children[0])) + "]")

    def _insert(self, stop: str) -> None:
        node = 0
        for depth, character in enumerate(stop, 1):
            following = self.children[node].get(character)
            if following is None:
                following = len(self.children)
                self.children[node][character] = following
                self.children.append({})
                self.fail.append(0)
                self.longest.append(None)
                self.held_length.append(0)
                self._held_node.append(0)
                self._prefix.append((stop, depth))
            node = following
        self.longest[node] = stop

    def _link(self) -> None:
        """Breadth first, so that a node's shorter suffixes are finished before it is."""
        queue = deque(self.children[0].values())
        for node in queue:
            self._finish(node)
        while queue:
            parent = queue.popleft()
            for character, node in self.children[parent].items():
                suffix = self.fail[parent]
                while suffix and character not in self.children[suffix]:
                    suffix = self.fail[suffix]
                self.fail[node] = self.children[suffix].get(character, 0)
                self._finish(node)
                queue.append(node)

    def _finish(self, node: int) -> None:
        suffix = self.fail[node]
        if self.longest[node] is None:
            self.longest[node] = self.longest[suffix]
        if self.children[node]:
            self._held_node[node], self.held_length[node] = node, self._prefix[node][1]
        else:  # a complete stop string that none continues: what is open is among its suffixes
            self._held_node[node], self.held_length[node] = (
                self._held_node[suffix],
                self.held_length[suffix],
            )

    def held_text(self, node: int, count: int) -> str:
        """The first ``count`` characters of what is held back at ``node``."""
        stop, length = self._prefix[self._held_node[node]]
        return stop[: min(length, count)]


@functools.lru_cache(maxsize=64)  # the same few stop strings come with every request
def _automaton(stops: tuple[str, ...]) -> _Automaton:
    for stop in stops:
        if not isinstance(stop, str):
            raise ArgumentTypeError(f"a stop string must be a str, not {type(stop).__name__}")
        if not stop:
            raise InvalidArgumentError("a stop string must not be empty: it would end every text at once")
    return _Automaton(stops)
