"""The container that a saved KV state travels in: nothing in it reaches llama.cpp before it has been verified.

Layout, little-endian: magic ``LRKV``, version (u32), length of the header (u32), BLAKE2b digest of the header (16
bytes), the header as JSON, tokens (i32 each), the payload.
The header tells the kind of state, whose tokens there are and how many, the payload's length, the BLAKE2b digest of
tokens and payload, and the fingerprint of model, KV types and rope settings.
A digest guards against damage and mix-ups; it is no signature. What a forged payload could do to llama.cpp is checked
by its structure, natively.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llama_runner.errors import ArgumentTypeError, StateError

__all__ = [
    "MAX_HEADER",
    "MAX_TOKENS",
    "PREFIX",
    "Contents",
    "Plan",
    "Tokens",
    "parse_header",
    "plan",
    "unpack",
]

Kind: TypeAlias = Literal["sequence", "context"]
Tokens: TypeAlias = Mapping[int, NDArray[np.int32]]

MAGIC = b"LRKV"
VERSION = 2
PREFIX = struct.Struct("<4sII16s")
MAX_HEADER = 1 << 20
TOKEN = np.dtype("<i4")
MAX_TOKENS = 1 << 26
EMPTY_DIGEST = "0" * 32


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a container says, its types and ranges checked, nothing compared yet."""

    kind: str
    partial: bool
    tokens: tuple[tuple[int, int], ...]  # (sequence, how many), in the order they are stored in
    length: int
    blake2b: str
    fingerprint: dict[str, Any]

    @property
    def n_tokens(self) -> int:
        return sum(n for _, n in self.tokens)

    def to_json(self) -> bytes:
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Contents:
    """A verified container: views into it, valid as long as the buffer that it was read from."""

    header: Header
    tokens: dict[int, NDArray[np.int32]]  # copies
    payload: memoryview


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything goes in a container that is about to be written: the payload first, then ``seal``."""

    header: Header
    tokens: Tokens
    payload_at: int
    size: int

    def seal(self, container: memoryview) -> None:
        """Write all but the payload, which is in its place already."""
        body = self.payload_at - TOKEN.itemsize * self.header.n_tokens
        packed = [np.asarray(self.tokens[seq], TOKEN).tobytes() for seq, _ in self.header.tokens]
        container[body : self.payload_at] = b"".join(packed)
        fields = {name: getattr(self.header, name) for name in self.header.__slots__}
        header = Header(**{**fields, "blake2b": digest(container[body : self.size]).hex()}).to_json()
        container[: PREFIX.size] = PREFIX.pack(MAGIC, VERSION, len(header), digest(header))
        container[PREFIX.size : body] = header


def plan(fingerprint: dict[str, Any], kind: Kind, partial: bool, tokens: Tokens, length: int) -> Plan:
    """The plan of a container with ``length`` bytes of payload, for a context of this ``fingerprint``."""
    counts = tuple((seq, len(ids)) for seq, ids in sorted(tokens.items()))
    header = Header(kind, partial, counts, length, EMPTY_DIGEST, fingerprint)
    payload_at = PREFIX.size + len(header.to_json()) + TOKEN.itemsize * header.n_tokens
    return Plan(header, tokens, payload_at, payload_at + length)


def unpack(fingerprint: dict[str, Any], kind: Kind, n_vocab: int, blob: Any) -> Contents:
    """What is in a container, verified against its checksums and the ``fingerprint``; StateError says what is wrong."""
    try:
        view = memoryview(blob).cast("B")
    except TypeError:
        raise ArgumentTypeError(f"a saved state is bytes, not {type(blob).__name__}") from None
    header, body = parse_header(view[: PREFIX.size + MAX_HEADER], fingerprint, kind)
    payload_at = body + TOKEN.itemsize * header.n_tokens
    if payload_at + header.length != len(view):
        raise StateError(
            f"the state is cut off or padded: {len(view)} bytes, {payload_at + header.length} expected"
        )
    if header.blake2b != digest(view[body:]).hex():
        raise StateError("the state is damaged: its checksum does not match")
    return Contents(header, read_tokens(view[body:payload_at], header, n_vocab), view[payload_at:])


def parse_header(head: memoryview, fingerprint: dict[str, Any], kind: Kind) -> tuple[Header, int]:
    """The header at the start of ``head``, and where what follows it begins; StateError for one of another model."""
    if len(head) < PREFIX.size:
        raise StateError(f"{len(head)} bytes are no saved state: it has at least {PREFIX.size}")
    magic, version, length, checksum = PREFIX.unpack_from(head)
    if magic != MAGIC:
        raise StateError(f"no saved state: it begins with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise StateError(f"a saved state of version {version}; this release reads version {VERSION}")
    raw = bytes(head[PREFIX.size : PREFIX.size + length]) if length <= MAX_HEADER else b""
    if len(raw) != length:
        raise StateError(
            f"the state is cut off: its header has {length} bytes, {len(head) - PREFIX.size} are left"
        )
    if digest(raw) != checksum:
        raise StateError("the state is damaged: the checksum of its header does not match")
    header = decode(raw)
    if header.kind != kind:
        raise StateError(f"this is the state of a whole {header.kind}, not of a {kind}")
    compare(header.fingerprint, fingerprint)
    return header, PREFIX.size + length


def decode(raw: bytes) -> Header:
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        raise StateError("the state is damaged: its header cannot be read") from None
    expected = {
        "kind": str,
        "partial": bool,
        "tokens": list,
        "length": int,
        "blake2b": str,
        "fingerprint": dict,
    }
    if not isinstance(fields, dict) or any(type(fields.get(k)) is not t for k, t in expected.items()):
        raise StateError("the state is damaged: its header lacks a field")
    tokens = tuple(tuple(entry) if isinstance(entry, list) else () for entry in fields["tokens"])
    sound = all(len(e) == 2 and all(type(n) is int and 0 <= n < 1 << 31 for n in e) for e in tokens)
    sound = sound and sum(n for _, n in tokens) <= MAX_TOKENS
    if not sound or len({seq for seq, _ in tokens}) != len(tokens) or not 0 <= fields["length"] < 1 << 62:
        raise StateError("the state is damaged: its header has numbers that cannot be")
    return Header(**{name: fields[name] for name in expected} | {"tokens": tokens})


def compare(saved: dict[str, Any], here: dict[str, Any]) -> None:
    if saved != here:
        keys = sorted(k for k in {*saved, *here} if saved.get(k) != here.get(k))
        what = ", ".join(f"{k} was {saved.get(k)!r}, is {here.get(k)!r}" for k in keys)
        raise StateError(f"the state belongs to another model or context: {what:.2000}")


def read_tokens(data: memoryview, header: Header, n_vocab: int) -> dict[int, NDArray[np.int32]]:
    ids = np.frombuffer(data, TOKEN).astype(np.int32)
    if ids.size and not 0 <= ids.min() <= ids.max() < n_vocab:
        raise StateError(f"the state is damaged: it has tokens that are not in the vocabulary of {n_vocab}")
    ends = np.cumsum([n for _, n in header.tokens], dtype=np.int64).tolist()
    return {seq: ids[end - n : end] for (seq, n), end in zip(header.tokens, ends, strict=True)}


def digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
