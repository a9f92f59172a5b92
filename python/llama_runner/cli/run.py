"""``llama-runner run``: one prompt, one answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_runner.cli import console
from llama_runner.cli.console import Bars, GpuLayers, JsonOutput, NCtx, Threads
from llama_runner.params import GenerationParams

if TYPE_CHECKING:
    pass

__all__ = ["run"]

_DEFAULT = GenerationParams()


def run(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A GGUF file, hf:owner/repo/file.gguf, or a short name.")
    ],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt; - reads it from stdin.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Most tokens to generate.")] = 256,
    temperature: Annotated[
        float, typer.Option("--temperature", "--temp", help="0 always takes the likeliest token.")
    ] = _DEFAULT.temperature,
    top_k: Annotated[int, typer.Option(help="Sample among the k likeliest; 0 is off.")] = _DEFAULT.top_k,
    top_p: Annotated[
        float, typer.Option(help="Sample among those that reach this probability; 1 is off.")
    ] = _DEFAULT.top_p,
    min_p: Annotated[
        float, typer.Option(help="Drop what is less likely than this times the likeliest; 0 is off.")
    ] = _DEFAULT.min_p,
    repeat_penalty: Annotated[
        float, typer.Option(help="Makes tokens just used less likely; 1 is off.")
    ] = _DEFAULT.repeat_penalty,
    seed: Annotated[int | None, typer.Option(help="Repeats an answer; by default one is drawn.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text to end at; can be given again.")] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on where the model would end.")
    ] = False,
    grammar_file: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, readable=True, help="A GBNF grammar the answer must follow."
        ),
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw", help="Wrap the prompt in the chat template; by default if there is one."
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system message of the chat.")] = None,
    as_json: JsonOutput = False,
    n_ctx: NCtx = 2048,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
) -> None:
    """Answer one prompt; the text streams to stdout."""
    # All that can be wrong with the call is found before a model is fetched and loaded.
    if system is not None and chat is False:
        raise typer.BadParameter("--system needs the chat template, which --raw leaves out")
    params = GenerationParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        seed=seed,
        stop=stop or (),
        ignore_eos=ignore_eos,
        grammar=None if grammar_file is None else _text(grammar_file.read_bytes(), str(grammar_file)),
    )
    if prompt == "-":
        prompt = _text(sys.stdin.buffer.read(), "stdin").removesuffix("\n")
    with (
        Bars() as bars,
        console.load_runner(model, bars, n_ctx=n_ctx, n_threads=threads, n_gpu_layers=gpu_layers) as runner,
    ):
        if chat is None:
            # With --system a model without a template gets an error, not an answer that ignores it.
            chat = system is not None or runner.model.chat_template() is not None
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": prompt})
        stream = runner.stream(
            runner.chat_tokens(messages) if chat else prompt, params=params, prefill_progress=bars.prefill
        )
        ended_line = True
        for chunk in stream:
            bars.stop()
            if chunk.text and not as_json:
                console.emit(chunk.text)
                ended_line = chunk.text.endswith("\n")
        done = stream.completion
        if as_json:
            facts = {"model": console.model_facts(runner.model), "prompt": prompt, "chat": chat}
            console.print_json(facts | done.to_dict())
            return
        if not ended_line:
            console.emit("\n")
        if console.stderr.is_terminal:
            console.stderr.print(
                f"{done.usage.completion_tokens} tokens, {done.timings.tokens_per_second:.1f} tokens/s, "
                f"{done.finish_reason}, seed {done.seed}",
                style="dim",
            )


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{where} is not UTF-8: {error.reason} at byte {error.start}") from None
