"""Start-up, native logs and the small things every other module of the core needs."""

import json
import logging
import os

from libc.stddef cimport size_t
from libcpp cimport bool

from llama_runner._c.ggml cimport (
    GGML_LOG_LEVEL_DEBUG,
    GGML_LOG_LEVEL_ERROR,
    GGML_LOG_LEVEL_INFO,
    GGML_LOG_LEVEL_WARN,
    ggml_backend_dev_count,
    ggml_backend_dev_backend_reg,
    ggml_backend_dev_description,
    ggml_backend_dev_get,
    ggml_backend_dev_get_type,
    ggml_backend_dev_memory,
    ggml_backend_dev_name,
    ggml_backend_dev_t,
    ggml_backend_reg_name,
)
from llama_runner._c.llama cimport llama_print_system_info
from llama_runner._c.native cimport (
    LR_KINDS,
    LR_WHY_NO_STACK,
    LR_WHY_OK,
    lr_build_facts,
    lr_forked,
    lr_free,
    lr_guard,
    lr_guard_try_exclusive,
    lr_guard_try_shared,
    lr_guard_wait_exclusive,
    lr_is_abort,
    lr_live_count,
    lr_log_pop,
    lr_log_pop_mine,
    lr_log_set_level,
    lr_runtime_init,
)

from llama_runner import errors

logger = logging.getLogger("llama_runner.native")
logger.addHandler(logging.NullHandler())

cdef dict LEVELS = {
    <int> GGML_LOG_LEVEL_DEBUG: logging.DEBUG,
    <int> GGML_LOG_LEVEL_INFO: logging.INFO,
    <int> GGML_LOG_LEVEL_WARN: logging.WARNING,
    <int> GGML_LOG_LEVEL_ERROR: logging.ERROR,
}
cdef list DEVICE_TYPES = ["cpu", "gpu", "igpu", "accel", "meta"]
# of lr_kind
cdef list KINDS = ["guards", "models", "contexts", "batches", "samplers", "outputs", "chat_templates", "jobs",
                   "constraints"]

cdef bint started = False


cdef int ensure_runtime() except -1:
    """Load the backends on first use (an import alone loads none) and follow the logger's level."""
    global started
    cdef bytes folder
    check_process()
    if not started:
        folder = os.fsencode(os.path.join(os.path.dirname(os.path.dirname(__file__)), "lib"))
        lr_runtime_init(folder)
        started = True
    # warnings and errors are always kept: they ride on exceptions
    cdef int level = GGML_LOG_LEVEL_WARN
    if logger.isEnabledFor(logging.DEBUG):
        level = GGML_LOG_LEVEL_DEBUG
    elif logger.isEnabledFor(logging.INFO):
        level = GGML_LOG_LEVEL_INFO
    lr_log_set_level(level)
    return 0


cdef list drain_log():
    """Pass native lines on to logging; return the last warnings and errors that this thread caused."""
    cdef char *text = NULL
    cdef list kept = []
    cdef int level = lr_log_pop(&text)
    while level >= 0:
        line = take_string(text)
        if line:
            logger.log(LEVELS.get(level, logging.INFO), "%s", line)
        level = lr_log_pop(&text)
    text = lr_log_pop_mine()
    while text != NULL:
        line = take_string(text)
        if line:
            kept.append(line)
        text = lr_log_pop_mine()
    return kept


cdef str take_string(char *text):
    """The text of a malloc'ed string, which is freed."""
    if text == NULL:
        return ""
    try:
        return (<bytes> text).decode("utf-8", "replace")
    finally:
        lr_free(text)


cdef int check_process() except -1:
    if lr_forked():
        raise errors.ForkedProcessError(
            "this process was forked after llama.cpp had started, and its threads are not here: start it with "
            "multiprocessing's 'spawn', or fork before the first Model"
        )
    return 0


cdef int raise_for(int why, char *error, str what) except -1:
    """Raise the typed error for the lr_why of a native call, and free `error`."""
    problem = take_string(error)
    lines = drain_log()
    if why == LR_WHY_OK:
        return 0
    if why == LR_WHY_NO_STACK:
        raise errors.OutOfMemoryError(problem).with_log(lines)
    raise errors.InvalidArgumentError(f"{what}: {problem}").with_log(lines)


cdef int enter_shared(lr_guard *guard, str what) except -1:
    check_process()
    if not lr_guard_try_shared(guard):
        raise errors.ContextBusyError(f"this {what} is being closed by another thread")
    return 0


cdef int enter_exclusive(lr_guard *guard, str what) except -1:
    check_process()
    if not lr_guard_try_exclusive(guard):
        raise errors.ContextBusyError(
            f"another thread is inside this {what}: use one {what} a thread, or a lock of your own"
        )
    return 0


cdef int enter_waiting(lr_guard *guard, str what) except -1:
    """As ``enter_exclusive``, for who goes first: others are let out, as long as they take less than a minute."""
    cdef bool entered
    check_process()
    with nogil:
        entered = lr_guard_wait_exclusive(guard, 60_000_000)
    return 0 if entered else enter_exclusive(guard, what)


cdef object native_error(object error, str doing):
    """The typed error for a C++ exception that came out of llama.cpp while `doing`."""
    lines = drain_log()
    text = str(error)
    if isinstance(error, errors.LlamaRunnerError):
        return error
    if isinstance(error, MemoryError):
        return errors.OutOfMemoryError(f"out of memory while {doing}").with_log(lines)
    return errors.DecodeError(f"{doing} failed: {text}", code=-100).with_log(lines)


def is_abort(str text):
    """Whether the text of an exception says that a GGML_ASSERT was caught: the object is poisoned then."""
    return lr_is_abort(text.encode())


def live_objects():
    """How many native objects of each kind are alive: a dict; ``"guards"`` counts the Python objects. Any thread.

    For tests: what is not zero once everything is closed and collected has leaked.
    """
    assert len(KINDS) == <int> LR_KINDS
    return {name: lr_live_count(kind) for kind, name in enumerate(KINDS)}


def build_facts():
    """What CMake wrote down when the package was compiled: a dict with commit, release, compiler, flags, backends.

    Loads no backend. Any thread.
    """
    return json.loads(lr_build_facts())


def devices():
    """The devices that ggml found, best first: a list of dicts with name, description, type, backend, memory in bytes.

    Wraps ``ggml_backend_dev_get`` and its getters; loads the backends on first use. Any thread.
    """
    cdef size_t i, free, total
    cdef ggml_backend_dev_t device
    ensure_runtime()
    found = []
    for i in range(ggml_backend_dev_count()):
        device = ggml_backend_dev_get(i)
        ggml_backend_dev_memory(device, &free, &total)
        kind = ggml_backend_dev_get_type(device)
        found.append({
            "name": ggml_backend_dev_name(device).decode(),
            "description": ggml_backend_dev_description(device).decode("utf-8", "replace").strip(),
            "type": DEVICE_TYPES[kind] if 0 <= kind < len(DEVICE_TYPES) else str(kind),
            "backend": ggml_backend_reg_name(ggml_backend_dev_backend_reg(device)).decode(),
            "memory_free": free,
            "memory_total": total,
        })
    drain_log()
    return found


def system_info():
    """The CPU features in use at run time, as llama.cpp's own line of text.

    Wraps ``llama_print_system_info``; loads the backends on first use. Any thread.
    """
    ensure_runtime()
    return llama_print_system_info().decode()
