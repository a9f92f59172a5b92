"""What a worker process and its parent say to each other: frames of eight bytes of length and a pickle.

Pickle, because both ends are one program: the parent starts the worker from its own interpreter and its own package,
and the two pipes between them have no name, so that nobody else can write into them. A prompt or a model file is
data inside of a pickle and never a pickle itself. Nothing that comes from elsewhere may be read with these functions.
"""

from __future__ import annotations

import pickle
import traceback
from typing import Any, BinaryIO

from llama_runner.errors import ArgumentTypeError, LlamaRunnerError, LlamaRuntimeError

__all__ = ["HELLO", "decode", "encode", "pack", "portable_error", "read_frame", "skip_to_hello", "unpack"]

# The first bytes of a worker. A site customization of Python may have printed something before them.
HELLO = b"\0llama-runner worker 1\n"
HELLO_WITHIN = 1 << 20
LENGTH = 8


def encode(message: tuple[Any, ...]) -> bytes:
    """A message as one frame; ArgumentTypeError for a value that cannot leave its process."""
    try:
        data = pickle.dumps(message, protocol=5)
    except Exception as error:  # pickle raises what the value's own methods raise
        raise ArgumentTypeError(f"a value cannot be sent to a worker process: {error}") from error
    return len(data).to_bytes(LENGTH, "little") + data


def pack(content: tuple[Any, ...]) -> bytes:
    """What a call is about, read apart from the frame: what cannot be read there is an error of that call alone."""
    try:
        return pickle.dumps(content, protocol=5)
    except Exception as error:  # pickle raises what the value's own methods raise
        raise ArgumentTypeError(f"a value cannot be sent to a worker process: {error}") from error


def unpack(data: bytes) -> tuple[Any, ...]:
    """The content of a call; ArgumentTypeError for what this process has no class of."""
    try:
        content: tuple[Any, ...] = pickle.loads(data)
        return content
    except Exception as error:
        raise ArgumentTypeError(
            f"a value that was sent cannot be read in the worker process, which imports nothing of the program: {error}"
        ) from error


def decode(data: bytes) -> tuple[Any, ...]:
    message: tuple[Any, ...] = pickle.loads(data)
    return message


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next frame's content; None at the end, and where the other side died in the middle of one."""
    head = stream.read(LENGTH)
    if len(head) < LENGTH:
        return None
    length = int.from_bytes(head, "little")
    data = stream.read(length)
    return data if len(data) == length else None


def skip_to_hello(stream: BinaryIO) -> bool:
    """Read up to the end of HELLO; False when it does not come."""
    seen = bytearray()
    while len(seen) < HELLO_WITHIN:
        byte = stream.read(1)
        if not byte:
            return False
        seen += byte
        if seen.endswith(HELLO):
            return True
    return False


def portable_error(error: BaseException) -> BaseException:
    """An error that arrives as what it is: the same class, with the same attributes, or else one that tells of it."""
    try:
        arrived = pickle.loads(pickle.dumps(error))
        # what is defined in the program of one side, the other does not have
        known = type(error).__module__ != "__main__"
        if known and type(arrived) is type(error) and str(arrived) == str(error):
            if not isinstance(
                error, LlamaRunnerError
            ):  # nothing raised on purpose: where it was is what helps
                trace = "".join(traceback.format_exception(error))
                error.add_note(f"In the worker process:\n{trace}")
            return error
    except Exception:  # whatever its own pickling does
        pass
    return LlamaRuntimeError(f"in the worker process: {type(error).__name__}: {error}")
