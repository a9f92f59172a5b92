"""``llama-runner demo``: a question answered, then the conversation forked into four branches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from llama_runner.cli import console
from llama_runner.cli.branches import ForkResult, fork_branches
from llama_runner.cli.console import Bars, GpuLayers, JsonOutput, NCtx, Threads
from llama_runner.params import GenerationParams

if TYPE_CHECKING:
    from collections.abc import Callable

    from llama_runner import LlamaRunner
    from llama_runner.results import Completion

__all__ = ["demo"]

_N_BRANCHES = 4
_QUESTION = "Why is the sky blue?"
_FOLLOW_UP = "Tell me one more thing about it."


def demo(
    model: Annotated[
        str, typer.Option(help="The model: a file, a source, or a short name.")
    ] = "smollm2-135m",
    question: Annotated[str, typer.Option(help="What to ask.")] = _QUESTION,
    as_json: JsonOutput = False,
    n_ctx: NCtx = 2048,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Most tokens of each answer.")] = 64,
    seed: Annotated[int, typer.Option(help="Another one gives other branches.")] = 1,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
) -> None:
    """Ask a real model a question, then fork the conversation into four."""
    # Greedy: a small model's likeliest answer is its best one. The branches are there to differ.
    params = GenerationParams(max_tokens=max_tokens, temperature=0.0, seed=seed)
    screen = Console(highlight=False, quiet=as_json)
    with (
        Bars() as bars,
        console.load_runner(model, bars, n_ctx=n_ctx, n_threads=threads, n_gpu_layers=gpu_layers) as runner,
    ):
        facts = console.model_facts(runner.model)
        _print_facts(screen, facts)
        messages = [{"role": "user", "content": question}]
        answer = _answer(screen, runner, messages, params, bars)
        messages += [
            {"role": "assistant", "content": answer.text},
            {"role": "user", "content": _FOLLOW_UP},
        ]
        screen.print(
            Text.assemble(("\nyou ", "bold"), _FOLLOW_UP, (f"   (in {_N_BRANCHES} branches)", "dim"))
        )
        tokens = _tokens(runner, messages)
        with _side_by_side(screen) as on_text:
            forked = fork_branches(
                runner.model,
                tokens,
                _N_BRANCHES,
                max_tokens=max_tokens,
                seed=seed,
                n_threads=threads,
                on_text=on_text,
            )
    if as_json:
        console.print_json(
            {
                "model": facts,
                "question": question,
                "answer": answer.to_dict(),
                "follow_up": _FOLLOW_UP,
                "fork": forked.to_dict(),
            }
        )
        return
    if not screen.is_terminal:
        for index, text in enumerate(forked.texts):
            screen.print(Text(f"\n[branch {index + 1}]\n{text.strip()}"), soft_wrap=True)
    _print_cost(screen, answer, forked)


def _tokens(runner: LlamaRunner, messages: list[dict[str, str]]) -> list[int]:
    """In the chat template, or as plain questions and answers for a model that has none."""
    if runner.model.chat_template() is not None:
        return [int(token) for token in runner.chat_tokens(messages)]
    labels = {"user": "Question", "assistant": "Answer"}
    lines = [f"{labels[message['role']]}: {message['content']}" for message in messages]
    tokens: list[int] = runner.model.vocab.tokenize("\n".join([*lines, "Answer:"])).tolist()
    return tokens


def _answer(
    screen: Console,
    runner: LlamaRunner,
    messages: list[dict[str, str]],
    params: GenerationParams,
    bars: Bars,
) -> Completion:
    screen.print(Text.assemble(("\nyou ", "bold"), messages[-1]["content"]))
    stream = runner.stream(_tokens(runner, messages), params=params, prefill_progress=bars.prefill)
    labelled = False
    for chunk in stream:
        bars.stop()
        if not labelled:  # not before, where a bar for the prefill would overwrite it
            screen.print(Text("model ", style="bold"), end="")
            labelled = True
        if not screen.quiet:
            console.emit(chunk.text)
    screen.print()
    done: Completion = stream.completion
    return done


@contextmanager
def _side_by_side(screen: Console) -> Iterator[Callable[[int, str], None] | None]:
    """On a terminal, yields what draws each branch in a box of its own, as its text comes."""
    if screen.quiet or not screen.is_terminal:
        yield None
        return
    texts = [""] * _N_BRANCHES
    # Four columns are readable on a wide terminal, two on a common one.
    across = _N_BRANCHES if screen.width >= 120 else 2 if screen.width >= 60 else 1
    width = screen.width // across - 1

    def draw() -> Group:
        panels = [
            Panel(Text(console.printable(text).strip()), title=f"branch {index + 1}", width=width)
            for index, text in enumerate(texts)
        ]
        rows = [panels[first : first + across] for first in range(0, _N_BRANCHES, across)]
        return Group(*(Columns(row, padding=(0, 1, 0, 0)) for row in rows))

    # It draws by itself ten times a second, whatever the speed of the tokens.
    with Live(get_renderable=draw, console=screen, refresh_per_second=10):

        def on_text(branch: int, text: str) -> None:
            texts[branch] += text

        yield on_text


def _print_facts(screen: Console, facts: dict[str, Any]) -> None:
    screen.print(
        Text.assemble(
            (console.printable(facts["name"]), "bold"),
            f"  {console.printable(facts['description'])}, {facts['parameters'] / 1e6:.0f} M parameters, "
            f"{facts['bytes'] / 1e6:.0f} MB, trained on contexts of {facts['trained_context']} tokens",
        )
    )


def _print_cost(screen: Console, answer: Completion, forked: ForkResult) -> None:
    spent, timings = answer.usage, answer.timings
    lines = (
        "",
        f"answer    {spent.completion_tokens} tokens, {timings.tokens_per_second:.1f} tokens/s",
        f"branches  {forked.decoded_tokens} tokens, {forked.tokens_per_second:.1f} tokens/s, "
        f"{_N_BRANCHES} branches in one batch a step",
        f"prompt    {forked.prompt_tokens} tokens computed once, {forked.prefill_tokens_per_second:.1f} "
        f"tokens/s, and {forked.shared_tokens} shared by seq_cp",
    )
    screen.print(Text("\n".join(lines)), soft_wrap=True)
