"""The container that a saved KV state travels in: nothing in it reaches llama.cpp before it has been verified.

Layout, little-endian: magic ``LRKV``, version (u32), length of the header (u32), the header as JSON, the payload.
The header holds the payload's length and BLAKE2b digest, and the fingerprint of model, KV types and rope settings.
A digest guards against damage and mix-ups; it is no signature.
"""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

from llama_runner.errors import ArgumentTypeError, StateError

__all__ = ["pack", "unpack"]

MAGIC = b"LRKV"
VERSION = 1
PREFIX = struct.Struct("<4sII")
MAX_HEADER = 1 << 20


def pack(fingerprint: dict[str, Any], payload: bytes | bytearray) -> bytes:
    """``payload`` in a container that only a context of the same ``fingerprint`` takes back."""
    header = json.dumps(
        {"fingerprint": fingerprint, "length": len(payload), "blake2b": digest(payload)}, sort_keys=True
    ).encode()
    return b"".join((PREFIX.pack(MAGIC, VERSION, len(header)), header, payload))


def unpack(fingerprint: dict[str, Any], blob: bytes | bytearray | memoryview) -> memoryview:
    """The verified payload, a view into ``blob``; StateError says what is wrong with it."""
    try:
        view = memoryview(blob).cast("B")
    except TypeError:
        raise ArgumentTypeError(f"a saved state is bytes, not {type(blob).__name__}") from None
    header, payload = split(view)
    if header["length"] != len(payload):
        raise StateError(
            f"the state is cut off or padded: {len(payload)} bytes of payload, {header['length']} expected"
        )
    if header["blake2b"] != digest(payload):
        raise StateError("the state is damaged: its checksum does not match")
    saved = header["fingerprint"]
    if saved != fingerprint:
        keys = sorted(k for k in {*saved, *fingerprint} if saved.get(k) != fingerprint.get(k))
        what = ", ".join(f"{k} was {saved.get(k)!r}, is {fingerprint.get(k)!r}" for k in keys)
        raise StateError(f"the state belongs to another model or context: {what}")
    return payload


def split(view: memoryview) -> tuple[dict[str, Any], memoryview]:
    if len(view) < PREFIX.size:
        raise StateError(f"{len(view)} bytes are no saved state: it has at least {PREFIX.size}")
    magic, version, length = PREFIX.unpack_from(view)
    if magic != MAGIC:
        raise StateError(f"no saved state: it begins with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise StateError(f"a saved state of version {version}; this release reads version {VERSION}")
    if length > MAX_HEADER or PREFIX.size + length > len(view):
        raise StateError(
            f"the state is cut off: its header has {length} bytes, {len(view) - PREFIX.size} are left"
        )
    try:
        header = json.loads(bytes(view[PREFIX.size : PREFIX.size + length]))
    except (ValueError, RecursionError):
        raise StateError("the state is damaged: its header cannot be read") from None
    expected = {"fingerprint": dict, "length": int, "blake2b": str}
    if not isinstance(header, dict) or any(not isinstance(header.get(k), t) for k, t in expected.items()):
        raise StateError("the state is damaged: its header lacks a field")
    return header, view[PREFIX.size + length :]


def digest(payload: bytes | bytearray | memoryview) -> str:
    return hashlib.blake2b(payload, digest_size=16).hexdigest()
