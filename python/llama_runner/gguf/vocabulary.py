"""What of a tokenizer's metadata ends or hangs the process inside llama.cpp's loader, which checks the rest itself."""

from __future__ import annotations

from collections.abc import Iterable

from llama_runner.errors import ModelFormatError
from llama_runner.gguf.header import GGUFArray, GGUFHeader
from llama_runner.gguf.reader import read_gguf_header

__all__ = ["check_vocabulary"]

_ESCAPES = {ord("t"): 9, ord("n"): 10, ord("r"): 13}


def check_vocabulary(header: GGUFHeader) -> None:
    """Raise ModelFormatError for a vocabulary that llama.cpp's loader does not survive.

    An empty list of tokens: some tokenizers divide by its length. One of RWKV's in which a token begins with a byte
    that is no token itself: its tokenizer does not move on from such a byte, and collects tokens until memory ends.
    """
    tokens = header.kv.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, GGUFArray):
        return
    if len(tokens) == 0:
        raise ModelFormatError(f"{str(header.path)!r} has a vocabulary of no tokens")
    if header.kv.get("tokenizer.ggml.model") != "rwkv" or tokens.type != "str":
        return
    if tokens.values is None:
        tokens = read_gguf_header(header.path, keep_arrays=True).kv["tokenizer.ggml.tokens"]
        assert isinstance(tokens, GGUFArray) and tokens.values is not None
    stuck = stuck_bytes(str(text) for text in tokens.values)
    if stuck:
        raise ModelFormatError(
            f"{str(header.path)!r} has an RWKV vocabulary with tokens that begin with the bytes "
            f"{', '.join(hex(byte) for byte in sorted(stuck)[:5])}, and without these bytes alone"
        )


def stuck_bytes(tokens: Iterable[str]) -> set[int]:
    """The first bytes of ``tokens``, as RWKV escapes them, that are no token of their own."""
    first: set[int] = set()
    alone: set[int] = set()
    for text in tokens:
        data = unescaped(text.encode("utf-8", "surrogateescape"))
        first.update(data[:1])
        if len(data) == 1:
            alone.update(data)
    return first - alone


def unescaped(text: bytes) -> bytes:
    r"""The bytes that ``text`` stands for: \t, \n, \r, \xHH, and a backslash before anything else."""
    if b"\\" not in text:
        return text
    out = bytearray()
    escaping, digits, code = False, 0, 0
    for byte in text:
        if digits:
            code = (code << 4) + (byte - ord("a") + 10 if byte >= ord("a") else byte - ord("0"))
            digits -= 1
            if digits == 0:
                out.append(code & 0xFF)
                code = 0
        elif escaping:
            escaping = False
            if byte == ord("x"):
                digits = 2
            else:
                out.append(_ESCAPES.get(byte, byte))
        elif byte == ord("\\"):
            escaping = True
        else:
            out.append(byte)
    return bytes(out)
