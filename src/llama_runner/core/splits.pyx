"""Names of the parts of a split model."""

import os

from libc.stddef cimport size_t
from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc

from llama_runner._c.llama cimport llama_split_path, llama_split_prefix

from llama_runner import errors
from llama_runner._check import check_int

cdef int MAX_PARTS = 65535  # llama.cpp counts them in 16 bits


def split_path(prefix, index, count):
    """The name of part ``index`` of ``count``, from 0: ``"model"`` gives ``"model-00001-of-00003.gguf"``.

    Wraps ``llama_split_path``. ``prefix`` is a str or os.PathLike. Any thread.
    """
    cdef bytes name = check_file_name("prefix", prefix)
    cdef int32_t total = check_int("count", count, 1, MAX_PARTS)
    cdef int32_t number = check_int("index", index, 0, total - 1)
    cdef size_t size = len(name) + 64
    cdef char *buffer = <char *> malloc(size)
    if buffer == NULL:
        raise MemoryError()
    try:
        length = llama_split_path(buffer, size, name, number, total)
        return os.fsdecode(buffer[:length])
    finally:
        free(buffer)


def split_prefix(path, index, count):
    """What precedes the numbers in the name of part ``index`` of ``count``, from 0; None if it is not named like that.

    Wraps ``llama_split_prefix``: the inverse of ``split_path``. Any thread.
    """
    cdef bytes name = check_file_name("path", path)
    cdef int32_t total = check_int("count", count, 1, MAX_PARTS)
    cdef int32_t number = check_int("index", index, 0, total - 1)
    cdef size_t size = len(name) + 1
    cdef char *buffer = <char *> malloc(size)
    if buffer == NULL:
        raise MemoryError()
    try:
        length = llama_split_prefix(buffer, size, name, number, total)
        return os.fsdecode(buffer[:length]) if length > 0 else None
    finally:
        free(buffer)


cdef bytes check_file_name(str name, value):
    try:
        data = os.fsencode(value)
    except TypeError:
        raise errors.ArgumentTypeError(
            f"{name}={value!r}: it is a str or os.PathLike, not {type(value).__name__}"
        ) from None
    except UnicodeError:
        raise errors.InvalidArgumentError(f"{name}={value!r}: it has a character that no file name can have") from None
    if b"\0" in data or len(data) > 1 << 20:
        raise errors.InvalidArgumentError(f"{name}={value[:60]!r}: it has a NUL character, or is too long")
    return data
