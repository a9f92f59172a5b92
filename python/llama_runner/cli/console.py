"""What all commands share: the two streams, progress bars, errors in one line, options that recur."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from llama_runner import errors

if TYPE_CHECKING:
    from llama_runner import LlamaRunner
    from llama_runner.core import Model

__all__ = [
    "INTERRUPTED",
    "Bars",
    "GpuLayers",
    "JsonOutput",
    "NCtx",
    "Threads",
    "emit",
    "exit_code",
    "load_runner",
    "model_facts",
    "prepare_streams",
    "print_json",
    "printable",
    "report",
    "stderr",
]

stderr = Console(stderr=True, highlight=False)

INTERRUPTED = 130  # as shells count: 128 and SIGINT's number
_LONG_PREFILL = 512  # tokens; less is over before a bar could be read

NCtx = Annotated[int, typer.Option("--n-ctx", help="Size of the context in tokens.")]
Threads = Annotated[
    int | None, typer.Option("--threads", "-t", help="Threads; by default the physical cores it may use.")
]
GpuLayers = Annotated[
    int | None,
    typer.Option("--gpu-layers", "-ngl", help="Layers on the GPU; by default all, if there is one."),
]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout and nothing else.")]


# --- output ----------------------------------------------------------------------------------------


def prepare_streams() -> None:
    """A model may write characters that the terminal's encoding lacks: show '?' rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # absent where a test has put a StringIO
        if reconfigure is not None:
            reconfigure(errors="replace")


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


def printable(text: str) -> str:
    """Without control characters: what a model writes must not move the cursor or rename the window."""
    return _CONTROL.sub("", text)


def emit(text: str) -> None:
    """Text of a model to stdout, at once; to a file or a pipe it goes byte by byte as it is."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def print_json(value: Any) -> None:
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    sys.stdout.write(json.dumps(value, ensure_ascii=not utf8, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


# --- errors ----------------------------------------------------------------------------------------

_HINTS: dict[type[errors.LlamaRunnerError], str] = {
    errors.ModelNotFoundError: "`llama-runner models` lists the short names that need no file",
    errors.ContextOverflowError: "a larger --n-ctx makes room",
    errors.OutOfMemoryError: "a smaller --n-ctx or a smaller model needs less",
    errors.NativeLibraryError: "`pip install --force-reinstall llama-runner` puts it back",
}


def exit_code(error: errors.LlamaRunnerError) -> int:
    """2 for a wrong call, as for an option that does not exist; 1 for all else."""
    return 2 if isinstance(error, errors.UsageError) else 1


def report(error: errors.LlamaRunnerError) -> None:
    """One line for the error, and one for what to do where that is known."""
    log, error.native_log = error.native_log, ()
    message = " ".join(str(error).split())
    error.native_log = log
    stderr.print(f"error: {printable(message)}", style="red", markup=False, soft_wrap=True)
    hint = next((hint for kind, hint in _HINTS.items() if isinstance(error, kind)), None)
    if hint is None and log:
        hint = "`llama-runner --debug ...` shows what llama.cpp said"
    if hint is not None:
        stderr.print(f"hint: {hint}", markup=False, soft_wrap=True)


# --- progress --------------------------------------------------------------------------------------


class Bars:
    """Progress bars on stderr for one thing after the other; silent where stderr is no terminal.

    They vanish when done, and ``stop`` takes the last one away before text comes.
    """

    def __init__(self) -> None:
        self._enabled = stderr.is_terminal
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._what = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def download(self, what: str, done: int, total: int | None) -> None:
        """For ``download_progress``."""
        self._show(what, done, total, of_bytes=True)

    def load(self, fraction: float) -> bool:
        """For ``progress``; True lets the load go on."""
        self._show("Loading the model", fraction, 1.0)
        return True

    def prefill(self, done: int, total: int) -> None:
        """For ``prefill_progress``."""
        if total >= _LONG_PREFILL:
            self._show(f"Reading {total} tokens", done, total)

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._what = ""

    def _show(self, what: str, done: float, total: float | None, *, of_bytes: bool = False) -> None:
        if not self._enabled:
            return
        if self._progress is None or what != self._what:
            self.stop()
            columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn()]
            columns += [DownloadColumn(), TransferSpeedColumn()] if of_bytes else [TaskProgressColumn()]
            self._progress = Progress(*columns, TimeRemainingColumn(), console=stderr, transient=True)
            self._task = self._progress.add_task(what, total=total)
            self._what = what
            self._progress.start()
        self._progress.update(self._task, completed=done, total=total)
        if total is not None and done >= total:
            self.stop()


# --- the model -------------------------------------------------------------------------------------


def load_runner(
    model: str, bars: Bars, *, n_ctx: int, n_threads: int | None, n_gpu_layers: int | None
) -> LlamaRunner:
    """A runner on ``model``, with bars while it is fetched and loaded."""
    from llama_runner import LlamaRunner

    given = {} if n_gpu_layers is None else {"n_gpu_layers": n_gpu_layers}
    runner = LlamaRunner(
        model, n_ctx=n_ctx, n_threads=n_threads, progress=bars.load, download_progress=bars.download, **given
    )
    bars.stop()
    return runner


def model_facts(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "description": model.desc,
        "file": Path(model.path).name,
        "bytes": model.size,
        "parameters": model.n_params,
        "trained_context": model.n_ctx_train,
    }
