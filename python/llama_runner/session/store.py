"""Sessions in files: messages, tokens and the KV state, verified before anything of it is used.

Layout, little-endian: magic ``LRSN``, version (u32), length of the header (u64), BLAKE2b digest of all that follows it
(32 bytes), the header as JSON, tokens (i32 each), the logits of the last token (f32 each), the state of all tokens but
that one in ``core``'s container. A digest guards against damage and mix-ups; it is no signature.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from io import FileIO
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from llama_runner._check import check_path
from llama_runner._state_file import storage_errors, write
from llama_runner.chat.messages import check_messages
from llama_runner.engine import Engine
from llama_runner.engine.stream import drain
from llama_runner.errors import (
    ClosedError,
    LlamaRunnerError,
    ModelCapabilityError,
    OutOfMemoryError,
    StateError,
)
from llama_runner.params import GenerationParams
from llama_runner.results import FinishReason
from llama_runner.session.message import Message, Node, path_to
from llama_runner.system import available_memory

__all__ = ["Saved", "Snapshot", "describe_tree", "making_sense", "read_file", "save_file", "verify"]

MAGIC = b"LRSN"
VERSION = 1
PREFIX = struct.Struct("<4sIQ32s")
MAX_HEADER = 1 << 28
OPTIONS = {
    "enable_thinking", "memory_limit", "on_full", "owner", "priority", "reasoning_format", "template_kwargs",
}  # fmt: skip
KINDS: dict[str, Any] = {
    "adapters": str, "draws": int, "fingerprint": dict, "n_logits": int, "n_tokens": int, "nodes": list,
    "options": dict, "params": dict, "pinned": list, "seed": int | None, "template": str, "tips": list, "tools": list,
}  # fmt: skip
FINISH_REASONS = (None, *get_args(FinishReason))
NONSENSE = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError)
TOLERANCE = 1.0  # of logits, root mean square: other tokens' keys and values make them differ by more
Tokens = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """All of a session but its keys and values, as plain values, which pickle."""

    header: dict[str, Any]
    tokens: Tokens

    def nodes(self) -> list[Node]:
        """The messages at their places in the tree, in the order in which they were written."""
        made: list[Node] = []
        for entry in self.header["nodes"]:
            parent = None if entry["parent"] is None else made[entry["parent"]]
            message = Message(entry["id"], entry["data"], entry["finish_reason"])
            made.append(Node.after(parent, message))
        return made

    def ends(self) -> tuple[Node | None, list[Node | None]]:
        """Where the conversation ends, and where branches that were left do."""
        nodes = self.nodes()
        head, *tips = (
            None if place is None else nodes[place] for place in (self.header["head"], *self.header["tips"])
        )
        return head, tips


@dataclasses.dataclass(frozen=True, slots=True)
class Saved(Snapshot):
    """What a session's file holds, checked as far as it can be without a model."""

    logits: npt.NDArray[np.float32]
    state: memoryview


def save_file(
    path: str | os.PathLike[str], engine: Engine, header: dict[str, Any], tokens: Tokens, **how: Any
) -> int:
    """Write a session's file, whole or not at all; returns its size in bytes. ``how`` is as for ``Engine.export``."""
    logits, state = np.empty(0, dtype=np.float32), b""
    if len(tokens) > 1:
        state = engine.export(tokens[:-1], **how)
        logits = last_logits(engine, tokens, **how)
    text = json.dumps(
        {
            **header,
            "fingerprint": engine.fingerprint,
            "n_tokens": len(tokens),
            "n_logits": len(logits),
        },
        ensure_ascii=False,
        sort_keys=True,
    ).encode()
    body = b"".join([text, tokens.astype("<i4").tobytes(), logits.astype("<f4").tobytes(), state])
    return write(check_path(path), PREFIX.pack(MAGIC, VERSION, len(text), _digest(body)) + body)


def last_logits(engine: Engine, tokens: Tokens, **how: Any) -> npt.NDArray[np.float32]:
    """The logits that follow the last of ``tokens``; those before it are cached, or computed."""
    request = drain(engine, engine.feed(tokens, want="logits", **how))
    return request.job.wanted("logits")


def describe_tree(head: Node | None, tips: Iterable[Node | None]) -> dict[str, Any]:
    """The tree as plain values: its nodes, parents before their children, and where its branches end."""
    places: dict[int, int] = {}
    nodes: list[dict[str, Any]] = []
    for tip in [*tips, head]:
        for node in path_to(tip):
            if id(node) in places:
                continue
            places[id(node)] = len(nodes)
            message = node.message
            nodes.append(
                {
                    "id": message.id,
                    "data": dict(message.data),
                    "finish_reason": message.finish_reason,
                    "parent": None if node.parent is None else places[id(node.parent)],
                }
            )

    def place(node: Node | None) -> int | None:
        return None if node is None else places[id(node)]

    return {"nodes": nodes, "head": place(head), "tips": [place(tip) for tip in tips]}


def read_file(path: str | os.PathLike[str]) -> Saved:
    """Read a file and verify it; StateError says what is wrong with it, StorageError why it cannot be read."""
    name = check_path(path)
    with storage_errors("read", name):
        if not stat.S_ISREG(os.stat(name).st_mode):
            raise StateError(f"{name!r} is no file")  # a pipe would block
        with open(name, "rb", buffering=0) as file:
            length, digest, body = _read_parts(name, file)
    if _digest(body) != digest:
        raise StateError(f"{name!r} is damaged or cut off: its checksum is another")
    if length > min(len(body), MAX_HEADER):
        raise StateError(f"{name!r} has a header of {length} bytes")
    with making_sense():
        header = json.loads(bytes(body[:length]))
        check_header(header)
    at = length + 4 * header["n_tokens"]
    end = at + 4 * header["n_logits"]
    if end > len(body):
        raise StateError(f"{name!r} is too short for what it says it has")
    tokens = np.frombuffer(body[length:at], dtype="<i4").astype(np.int32)
    return Saved(header, tokens, np.frombuffer(body[at:end], dtype="<f4").astype(np.float32), body[end:])


def _read_parts(name: str, file: FileIO) -> tuple[int, bytes, memoryview]:
    """The header's length, the checksum, and what it is of; nothing else is read of a file that is no session's."""
    prefix = file.read(PREFIX.size)
    if len(prefix) < PREFIX.size:
        raise StateError(f"{name!r} is cut off: {len(prefix)} bytes")
    magic, version, length, digest = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise StateError(f"{name!r} is no session's file: it begins with {magic!r}")
    if version != VERSION:
        raise StateError(f"{name!r} is of version {version}, and this is llama-runner for version {VERSION}")
    size = os.fstat(file.fileno()).st_size
    if size > available_memory():
        raise OutOfMemoryError(
            f"{name!r} has {size} bytes, and {available_memory()} bytes of memory are free"
        )
    return length, digest, memoryview(file.readall())


@contextlib.contextmanager
def making_sense() -> Iterator[None]:
    """What a header leads to is the file's fault."""
    try:
        yield
    except (StateError, ClosedError, ModelCapabilityError):
        raise
    except (*NONSENSE, LlamaRunnerError) as problem:
        raise StateError(f"the session's file has a header that makes no sense: {problem}") from problem


def check_header(header: Any) -> None:
    """Raise something where the header is not what ``Session.save`` writes."""
    for name, kind in KINDS.items():
        if not isinstance(header[name], kind) or isinstance(header[name], bool):
            raise TypeError(f"{name} is no {getattr(kind, '__name__', kind)}")
    if set(header["options"]) != OPTIONS:
        raise ValueError(f"options has {', '.join(sorted(header['options']))}")
    if min(header["n_tokens"], header["n_logits"], header["draws"]) < 0:
        raise ValueError("a number is negative")
    if not all(isinstance(name, str) for name in header["pinned"]):
        raise TypeError("what is pinned is no message")
    for i, node in enumerate(header["nodes"]):
        if node["parent"] is not None and place_in(node["parent"], i) is None:
            raise ValueError(f"node {i} comes before its parent")
        if not isinstance(node["id"], str) or node["finish_reason"] not in FINISH_REASONS or not node["id"]:
            raise TypeError(f"node {i} is none")
    for place in (header["head"], *header["tips"]):
        if place is not None:
            check_chain(header["nodes"], place)
    GenerationParams.from_dict(header["params"])


def place_in(place: Any, end: int) -> int | None:
    """``place`` where it is one from 0 to before ``end``."""
    return place if type(place) is int and 0 <= place < end else None


def check_chain(nodes: list[dict[str, Any]], place: Any) -> None:
    """Raise something where the nodes from the first one to ``place`` are no conversation as it is saved."""
    at = place_in(place, len(nodes))
    if at is None:
        raise ValueError(f"{place!r} is no node")
    chain = []
    while at is not None:
        chain.append(nodes[at])
        at = nodes[at]["parent"]
    messages = [node["data"] for node in reversed(chain)]
    if check_messages(messages) != messages:
        raise ValueError(
            f"the conversation that ends in node {place} is not in the form in which it is saved"
        )
    if len({node["id"] for node in chain}) < len(chain):
        raise ValueError(f"two messages before node {place} have one id")


def verify(saved: Saved, engine: Engine, **how: Any) -> None:
    """Bring the state into the cache, and compare one row of logits with what it was. StateError where that differs."""
    own, theirs = engine.fingerprint, saved.header["fingerprint"]
    if own != theirs:
        names = sorted(name for name in {*own, *theirs} if own.get(name) != theirs.get(name))
        raise StateError(
            f"the session was saved with another model or another kind of context ({', '.join(names)}): load it with "
            "kv=False, and its messages are computed anew"
        )
    n_vocab = engine.vocab.n_tokens
    if len(saved.tokens) < 2:
        if len(saved.logits) or len(saved.state):
            raise StateError("the session's file has a state without its tokens")
        return
    if len(saved.logits) != n_vocab or not 0 <= saved.tokens.min() <= saved.tokens.max() < n_vocab:
        raise StateError(f"the session's file is of another vocabulary than these {n_vocab} tokens")
    if len(saved.tokens) > engine.context.n_ctx or not engine.adopt(saved.tokens[:-1], saved.state, **how):
        raise StateError(
            f"the session has {len(saved.tokens)} tokens, for which there is no room in a context of "
            f"{engine.context.n_ctx}: load it with kv=False"
        )
    logits = last_logits(engine, saved.tokens, **how)
    difference = float(np.sqrt(np.mean(np.square(logits.astype(np.float64) - saved.logits))))
    if not difference <= TOLERANCE:
        engine.forget(saved.tokens, **how)
        raise StateError(
            f"what was restored is not what was saved: the logits differ by {difference:.2f} (root mean square)"
        )


def _digest(body: bytes | memoryview) -> bytes:
    return hashlib.blake2b(body, digest_size=32).digest()
