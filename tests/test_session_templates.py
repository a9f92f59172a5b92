"""A conversation through every vendored chat template: its tokens are those of the whole, or a typed error says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_runner import LlamaRunner, Session
from llama_runner.core import ChatTemplate
from llama_runner.errors import InvalidArgumentError, MessageError, ModelCapabilityError
from session_use import TEMPLATES, add
from tiny_models import write_with_vocab_of

pytestmark = pytest.mark.real_model
SHORT: dict[str, Any] = {"temperature": 0, "max_tokens": 2, "ignore_eos": True}
CALL = {"id": "c12345678", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
NAMES = sorted(path.name for path in TEMPLATES.glob("*.jinja"))


@pytest.fixture(scope="module")
def runner(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaRunner]:
    """A tiny model with the real one's vocabulary: what counts here is which tokens there are."""
    path = write_with_vocab_of(tmp_path_factory.mktemp("like") / "smollm2.gguf", smollm2)
    with LlamaRunner(path, n_ctx=8192, n_threads=1) as made:
        yield made


def rendered(runner: LlamaRunner, session: Session, messages: list[dict[str, Any]]) -> list[int]:
    """What a stateless call would send."""
    prompt = session.template.render(messages, tools=session.tools.to_list() or None)
    return list(map(int, runner.model.vocab.tokenize(prompt.prompt, add_special=True, parse_special=True)))


def turn(runner: LlamaRunner, session: Session, content: Any) -> None:
    before = session.to_messages()
    new = [{"role": "user", "content": content}] if isinstance(content, str) else [content]
    reply = session.send(content, **SHORT)
    prompt = rendered(runner, session, session.to_messages()[: len(before) + len(new)])
    assert session.tokens[: reply.usage.prompt_tokens].tolist() == prompt
    assert session.tokens[reply.usage.prompt_tokens :].tolist() == reply.tokens.tolist()


def whole(runner: LlamaRunner, session: Session) -> None:
    """After an edit: the tokens of the conversation as it is, where the template writes such a one at all."""
    last = session.messages[-1].role
    try:
        prompt = session.template.render(
            session.to_messages(),
            tools=session.tools.to_list() or None,
            add_generation_prompt=last != "assistant",
        )
    except InvalidArgumentError:
        assert session.n_tokens == 0
        return
    tokens = runner.model.vocab.tokenize(prompt.prompt, add_special=True, parse_special=True)
    assert session.tokens.tolist() == tokens.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_three_turns(runner: LlamaRunner, name: str) -> None:
    template = ChatTemplate(runner.model, (TEMPLATES / name).read_text("utf-8"))
    session = runner.session(template=template, system="You are terse.")
    try:
        turn(runner, session, "One?")
    except InvalidArgumentError:
        assert len(session) == 1 and session.n_tokens == 0
        session = runner.session(template=template)
        turn(runner, session, "One?")
    turn(runner, session, "Two?")
    fork = session.fork()
    turn(runner, session, "Three?")
    turn(runner, fork, "Drei?")
    first = session.messages[-5]
    session.edit(first, "Something else.")
    whole(runner, session)
    turn(runner, session, "Four?")
    session.rollback(first.id)
    whole(runner, session)
    session.drop(session.messages[-1], session.messages[-2])
    fork.sync(fork.to_messages())
    whole(runner, fork)
    fork.gc(0.0)
    whole(runner, fork)
    turn(runner, fork, "Five?")


@pytest.mark.parametrize("name", NAMES)
def test_a_call_and_its_result(runner: LlamaRunner, name: str) -> None:
    template = ChatTemplate(runner.model, (TEMPLATES / name).read_text("utf-8"))
    if not template.capabilities["supports_tools"]:
        with pytest.raises(ModelCapabilityError, match="no place for tools"):
            runner.session(template=template, tools=[add])
        return
    session = runner.session(template=template, tools=[add])
    asked = [
        {"role": "user", "content": "What is 1+2?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
    ]
    session.add(asked)
    result = {"role": "tool", "tool_call_id": CALL["id"], "content": "3"}
    with pytest.raises(MessageError):
        session.send("And then?")
    session.warm().wait()
    turn(runner, session, result)
    turn(runner, session, "And 3+4?")
    session.edit(session.messages[2], "three")
    whole(runner, session)
    session.drop(session.messages[1], session.messages[2])
    whole(runner, session)
    session.sync([*asked, result])
    whole(runner, session)
