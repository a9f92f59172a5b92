"""``llama-runner``: the command line. Nothing else in the package imports typer or rich."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated, Any

import typer
import typer.core

from llama_runner.cli import console
from llama_runner.cli.demo import demo
from llama_runner.cli.info import info, models
from llama_runner.cli.run import run
from llama_runner.errors import LlamaRunnerError

__all__ = ["app", "main"]


class _Commands(typer.core.TyperGroup):
    """Turns what a command raises into one line and an exit code, in one place for all of them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LlamaRunnerError as error:
            if ctx.params.get("debug"):
                raise
            console.report(error)
            raise typer.Exit(console.exit_code(error)) from None
        except KeyboardInterrupt:
            if ctx.params.get("debug"):
                raise
            console.stderr.print("interrupted", style="yellow")
            raise typer.Exit(console.INTERRUPTED) from None


app = typer.Typer(
    name="llama-runner",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # --debug asks for Python's own traceback, to be copied into a report
    help="Run language models with llama.cpp inside Python.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llama-runner {importlib.metadata.version('llama-runner')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="LLAMA_RUNNER_DEBUG", help="Show errors with their traceback.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Run language models with llama.cpp inside Python."""


app.command()(demo)
app.command()(run)
app.command()(info)
app.command()(models)


def main() -> None:
    """The entry point. Exit codes: 0, 1 for an error, 2 for a wrong call, 130 for Ctrl-C."""
    console.prepare_streams()
    app(prog_name="llama-runner")  # whatever the file is called that was started
