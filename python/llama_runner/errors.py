"""Every exception that llama_runner raises.

Four families, so that a caller can decide with one ``except``:

- :class:`LlamaSystemError`: the machine: memory, disk, network, a missing library or extra.
- :class:`ModelError`: the model file: absent, damaged, unknown, or unable to do what was asked.
- :class:`LlamaRuntimeError`: a computation that could not be done now: cache full, decode failed, busy.
- :class:`UsageError`: the call itself: a bad value, an unknown name, an object that is closed.

Each class also inherits the builtin that fits, so ``except ValueError`` and ``except FileNotFoundError``
work as a Python programmer expects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = [
    "ArgumentTypeError",
    "ClosedError",
    "ConstraintError",
    "ContextBusyError",
    "ContextOverflowError",
    "DecodeAbortedError",
    "DecodeError",
    "DownloadError",
    "ForkedProcessError",
    "IndexOutOfRangeError",
    "IntegrityError",
    "InvalidArgumentError",
    "LlamaRunnerError",
    "LlamaRuntimeError",
    "LlamaSystemError",
    "MessageError",
    "MissingExtraError",
    "ModelCapabilityError",
    "ModelError",
    "ModelFormatError",
    "ModelMismatchError",
    "ModelNotFoundError",
    "NativeLibraryError",
    "NoSlotError",
    "OutOfMemoryError",
    "PoolTimeoutError",
    "PromptFileError",
    "PromptNotFoundError",
    "ResponseParseError",
    "RowSamplingError",
    "SamplingError",
    "StateError",
    "StorageError",
    "ToolArgumentError",
    "ToolCancelledError",
    "ToolDefinitionError",
    "ToolError",
    "ToolFailedError",
    "ToolResultError",
    "ToolTimeoutError",
    "UnknownMessageError",
    "UnknownParameterError",
    "UnknownToolError",
    "UnsupportedLanguageError",
    "UnsupportedModelError",
    "UsageError",
    "WorkerDiedError",
    "unknown_name",
]


class LlamaRunnerError(Exception):
    """Base of everything raised on purpose by this package.

    ``native_log`` holds the last lines that llama.cpp logged before the error, oldest first; it is
    empty where llama.cpp had no part in it. They are appended to ``str(error)`` as well.
    """

    native_log: tuple[str, ...] = ()

    def with_log(self, lines: Iterable[str]) -> LlamaRunnerError:
        """Attach native log lines and return the error itself, ready to be raised."""
        self.native_log = tuple(lines)
        return self

    def __str__(self) -> str:
        text = super().__str__()
        if not self.native_log:
            return text
        return "\n  llama.cpp: ".join((text, *self.native_log))


# --- the machine -----------------------------------------------------------------------------------


class LlamaSystemError(LlamaRunnerError):
    """The machine could not do it: memory, disk, network, a library or an extra that is missing."""


class NativeLibraryError(LlamaSystemError, ImportError):
    """The compiled part of the package is missing or cannot be loaded."""


class MissingExtraError(LlamaSystemError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""


class OutOfMemoryError(LlamaSystemError, MemoryError):
    """An allocation failed, or is known in advance not to fit. The message carries the estimate."""


class StorageError(LlamaSystemError, OSError):
    """A file could not be written or read: disk full, no permission, lock not obtained."""


class DownloadError(LlamaSystemError, ConnectionError):
    """A download failed; the message says what was tried and how to go on without a network."""


# --- the model -------------------------------------------------------------------------------------


class ModelError(LlamaRunnerError):
    """The model, or the file that should hold it, is at fault."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """No model where one was named."""


class ModelFormatError(ModelError, ValueError):
    """The file is no GGUF file, or a damaged one."""


class UnsupportedModelError(ModelError, ValueError):
    """A sound GGUF file of an architecture or type that the pinned llama.cpp does not know."""


class IntegrityError(ModelError, ValueError):
    """A downloaded or stored file does not have the expected checksum."""


class ModelMismatchError(ModelError, ValueError):
    """Metadata and GGUF header disagree; ``differences`` maps field to (expected, found)."""

    def __init__(self, message: str, differences: Mapping[str, tuple[object, object]] | None = None):
        super().__init__(message)
        self.differences = dict(differences or {})


class ModelCapabilityError(ModelError, ValueError):
    """The model cannot do what was asked of it: generate without weights, chat without a template."""


# --- the computation -------------------------------------------------------------------------------


class LlamaRuntimeError(LlamaRunnerError):
    """A computation could not be done now; the object stays usable unless its docstring says more."""


class DecodeError(LlamaRuntimeError, RuntimeError):
    """``llama_decode`` or ``llama_encode`` failed; ``code`` is what it returned.

    ``emptied`` has the sequences that could not be brought back to where they were, and are empty now.
    """

    def __init__(self, message: str, code: int = 0, emptied: tuple[int, ...] = ()):
        super().__init__(message)
        self.code = code
        self.emptied = emptied


class NoSlotError(DecodeError):
    """The KV cache has no room for the batch (return code 1); nothing was changed."""


class DecodeAbortedError(DecodeError):
    """The computation was aborted by request (return code 2); the batch was taken out again."""


class ContextOverflowError(LlamaRuntimeError, ValueError):
    """More tokens than the context holds; ``n_tokens`` were asked for, ``n_ctx`` is what there is."""

    def __init__(self, message: str, n_tokens: int = 0, n_ctx: int = 0):
        super().__init__(message)
        self.n_tokens = n_tokens
        self.n_ctx = n_ctx


class ContextBusyError(LlamaRuntimeError, RuntimeError):
    """Another thread is inside this object. Use one context a thread, or a lock of your own."""


class ForkedProcessError(LlamaRuntimeError, RuntimeError):
    """The process was forked off one in which llama.cpp had started; there it cannot compute. Use ``spawn``."""


class SamplingError(LlamaRuntimeError, RuntimeError):
    """No token could be selected: every candidate was ruled out, or a sampler failed."""


class RowSamplingError(SamplingError):
    """Some rows of a step have no token: ``tokens`` has -1 for them, ``failures`` maps their place to their error.

    The tokens of the other rows were accepted by their chains where the call accepts.
    """

    def __init__(
        self, message: str, tokens: object = None, failures: Mapping[int, BaseException] | None = None
    ):
        super().__init__(message)
        self.tokens = tokens
        self.failures = dict(failures or {})


class ResponseParseError(LlamaRuntimeError, ValueError):
    """A model's answer does not have the form that its chat template asks for.

    ``position`` is the character at which it stops being that, or None where that is not known.
    """

    def __init__(self, message: str, position: int | None = None):
        super().__init__(message)
        self.position = position


class StateError(LlamaRuntimeError, ValueError):
    """A saved state is damaged, foreign, or does not fit this context."""


class CellMismatchError(LlamaRuntimeError, RuntimeError):
    """An account of a KV memory and the memory disagree; ``differences`` has one line for each thing that differs."""

    def __init__(self, message: str, differences: Iterable[str] = ()):
        super().__init__(message)
        self.differences = tuple(differences)


class PoolTimeoutError(LlamaRuntimeError, TimeoutError):
    """A pool had no runner to give within the time; the message says what it waited for."""


class WorkerDiedError(LlamaRuntimeError, RuntimeError):
    """A worker process ended with calls under way, or has ended too often to be started again.

    ``exit_code`` is its exit status, negative where it was a signal, which ``signal`` gives as a number; ``pid`` was
    its own.
    """

    def __init__(self, message: str, exit_code: int | None = None, pid: int | None = None):
        super().__init__(message)
        self.exit_code = exit_code
        self.pid = pid

    @property
    def signal(self) -> int | None:
        return -self.exit_code if self.exit_code is not None and self.exit_code < 0 else None


class ToolError(LlamaRuntimeError):
    """A tool call came to nothing; ``tool`` is its name, ``for_model`` what a model is told of it.

    A tool may raise it to choose those words.
    """

    def __init__(self, message: str, tool: str = "", for_model: str = ""):
        super().__init__(message)
        self.tool = tool
        self.for_model = for_model or f"Error: {message}"


class ToolArgumentError(ToolError, ValueError):
    """A model called a tool that there is not, or with arguments that the tool does not take; it was not run."""


class ToolFailedError(ToolError, RuntimeError):
    """The tool raised: ``exception`` is what, ``traceback`` its text, which no model is shown."""

    def __init__(
        self,
        message: str,
        tool: str = "",
        for_model: str = "",
        exception: BaseException | None = None,
        traceback: str = "",
    ):
        super().__init__(message, tool, for_model)
        self.exception = exception
        self.traceback = traceback


class ToolTimeoutError(ToolError, TimeoutError):
    """The tool had not come back by its time limit; what it does since is not waited for."""


class ToolCancelledError(ToolError, RuntimeError):
    """The tool call was cancelled before it came back, by its caller or by the tool itself."""


class ToolResultError(ToolError, TypeError):
    """The tool returned what cannot be written for a model; the message names the type."""


# --- the call --------------------------------------------------------------------------------------


class UsageError(LlamaRunnerError):
    """The call is wrong and would be wrong again."""


class InvalidArgumentError(UsageError, ValueError):
    """A value out of its range; the message names the value and what would be right."""


class ConstraintError(InvalidArgumentError):
    """A schema, regular expression or grammar that is malformed, or asks for what cannot be enforced.

    ``keyword`` is the one of a JSON schema that is to blame and ``path`` where it stands, or None.
    """

    def __init__(self, message: str, keyword: str | None = None, path: str | None = None):
        super().__init__(message)
        self.keyword = keyword
        self.path = path


class UnsupportedLanguageError(InvalidArgumentError):
    """A language for which there are no rules; the message names those there are."""


class ArgumentTypeError(UsageError, TypeError):
    """A value of the wrong type; the message names it and what would be right."""


class UnknownParameterError(UsageError, TypeError):
    """A keyword that no parameter has; the message names the nearest one."""


class IndexOutOfRangeError(UsageError, IndexError):
    """A token, row, position or sequence id outside its range."""


class PromptFileError(UsageError, ValueError):
    """A file of an agent's prompt is wrong.

    ``path`` is the file; ``key`` is the entry of it, and empty where the whole is no TOML.
    """

    def __init__(self, message: str, path: str = "", key: str = ""):
        super().__init__(message)
        self.path = path
        self.key = key


class PromptNotFoundError(UsageError, FileNotFoundError):
    """No prompt, or no folder of prompts, where one was named; the message names the nearest one."""


class ClosedError(UsageError, ValueError):
    """The object, or the one that it depends on, has been closed."""


class MessageError(UsageError, ValueError):
    """A conversation that is none; ``index`` is the message at fault, or None where it is none in particular."""

    def __init__(self, message: str, index: int | None = None):
        super().__init__(message)
        self.index = index


class UnknownMessageError(UsageError, KeyError):
    """No message of the conversation has this id."""

    def __str__(self) -> str:
        return LlamaRunnerError.__str__(self)


class ToolDefinitionError(UsageError, ValueError):
    """A function, schema or set of them cannot be offered to a model as tools; the message says what is in the way."""


class UnknownToolError(UsageError, KeyError):
    """No tool of this name; the message lists the names there are."""

    def __str__(self) -> str:  # KeyError would show the message in quotes
        return str(self.args[0]) if self.args else ""


def unknown_name(name: str, known: Iterable[str], where: str) -> UnknownParameterError:
    """The error for keyword ``name``, which ``where`` does not take, naming the nearest one known."""
    import difflib  # only when something went wrong

    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
    return UnknownParameterError(f"{where} has no parameter {name!r}: {hint}")
