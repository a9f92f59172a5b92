"""Files of sessions that somebody else wrote, with every checksum right: each is refused by a typed error, unused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import LlamaRunner
from llama_runner.errors import (
    ArgumentTypeError,
    InvalidArgumentError,
    LlamaRunnerError,
    OutOfMemoryError,
    StateError,
    StorageError,
)
from llama_runner.session.store import MAGIC, PREFIX, VERSION, Saved, _digest, read_file

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
Change = Callable[[dict[str, Any]], object]


def sealed(header: bytes, rest: bytes) -> bytes:
    return PREFIX.pack(MAGIC, VERSION, len(header), _digest(header + rest)) + header + rest


class Evil:
    """A runner, and a good file to make bad ones of."""

    def __init__(self, runner: LlamaRunner, folder: Path) -> None:
        self.runner, self.path = runner, folder / "s"
        session = runner.session(template=PLAIN, seed=3)
        for text in ("one", "two"):
            session.send(text, max_tokens=4, ignore_eos=True)
        session.rollback(session.messages[1])
        session.send("three", max_tokens=4, ignore_eos=True)
        session.save(self.path)
        self.good = self.path.read_bytes()
        self.length = PREFIX.unpack_from(self.good)[2]

    @property
    def rest(self) -> bytes:
        return self.good[PREFIX.size + self.length :]

    def changed(self, change: Change) -> bytes:
        header = json.loads(self.good[PREFIX.size : PREFIX.size + self.length])
        change(header)
        return sealed(json.dumps(header).encode(), self.rest)

    def refused(
        self, data: bytes, error: type[LlamaRunnerError] = StateError, match: str | None = None
    ) -> None:
        self.path.write_bytes(data)
        self.runner.clear_context()
        with pytest.raises(error, match=match):
            self.runner.load_session(self.path)
        assert self.runner.get_context_info().used == 0


@pytest.fixture(scope="module")
def evil(tiny_model: TinyModelFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evil]:
    with LlamaRunner(tiny_model("llama"), n_ctx=256) as runner:
        yield Evil(runner, tmp_path_factory.mktemp("evil"))


HEADERS: dict[str, Change] = {
    "a parent that is no place": lambda h: h["nodes"][1].update(parent=0.5),
    "a parent that is a bool": lambda h: h["nodes"][2].update(parent=True),
    "a parent of what nobody reads": lambda h: h["nodes"].append(
        {"id": "a", "data": {}, "finish_reason": None, "parent": 0.5}
    ),
    "a head from behind": lambda h: h.update(head=-1),
    "a head that is a bool": lambda h: h.update(head=True),
    "a tip from behind": lambda h: h.update(tips=[-1]),
    "a tip far away": lambda h: h.update(tips=[10**40]),
    "an option that is none": lambda h: h["options"].update(foo=1),
    "an option less": lambda h: h["options"].pop("owner"),
    "messages as an option": lambda h: h["options"].update(messages=[{"role": "user", "content": "x"}]),
    "an engine as an option": lambda h: h["options"].update(engine=None),
    "an option's value": lambda h: h["options"].update(on_full="explode"),
    "an option's type": lambda h: h["options"].update(enable_thinking=3),
    "an owner": lambda h: h["options"].update(owner=3),
    "a form of reasoning": lambda h: h["options"].update(reasoning_format="zz"),
    "variables in a list": lambda h: h["options"].update(template_kwargs=[1]),
    "variables of a number": lambda h: h["options"].update(template_kwargs=7),
    "a limit of another size": lambda h: h["options"].update(memory_limit=10**9),
    "a priority": lambda h: h["options"].update(priority=1e99),
    "no seed": lambda h: h.pop("seed"),
    "a seed of text": lambda h: h.update(seed="x"),
    "a large seed": lambda h: h.update(seed=10**30),
    "no adapters": lambda h: h.pop("adapters"),
    "tools that are none": lambda h: h.update(tools=[3]),
    "a tool without a name": lambda h: h.update(tools=[{"type": "function"}]),
    "pins of lists": lambda h: h.update(pinned=[[1]]),
    "pins of numbers": lambda h: h.update(pinned=[1]),
    "half a template": lambda h: h.update(template="{% for"),
    "an empty template": lambda h: h.update(template=""),
    "one id for all": lambda h: [node.update(id="same") for node in h["nodes"]],
    "no id": lambda h: h["nodes"][0].update(id=""),
    "another end": lambda h: h["nodes"][1].update(finish_reason="banana"),
    "a message in another form": lambda h: h["nodes"][0]["data"].update(content=["text"]),
    "fewer logits": lambda h: h.update(n_logits=1),
    "no tokens": lambda h: h.update(n_tokens=0),
    "too many tokens": lambda h: h.update(n_tokens=10**300),
    "a number that is none": lambda h: h.update(draws=float("nan")),
}


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_headers(evil: Evil, change: Change) -> None:
    evil.refused(evil.changed(change))


def test_headers_that_are_none(evil: Evil) -> None:
    for text in (b"[]", b"3", b"null", b'""', b"\xff\xfe", b"{", b"[" * 200_000 + b"]" * 200_000):
        evil.refused(sealed(text, evil.rest), match="makes no sense")


def test_tokens_of_another_vocabulary(evil: Evil) -> None:
    evil.path.write_bytes(evil.good)
    saved: Saved = read_file(evil.path)
    header = evil.good[PREFIX.size : PREFIX.size + evil.length]
    for last in (10**9, -1):
        tokens = saved.tokens.copy()
        tokens[-1] = last
        rest = tokens.astype("<i4").tobytes() + saved.logits.tobytes() + bytes(saved.state)
        evil.refused(sealed(header, rest), match="another vocabulary")
    rest = saved.tokens.tobytes() + (saved.logits * np.nan).tobytes() + bytes(saved.state)
    evil.refused(sealed(header, rest), match="not what was saved")


def test_a_file_larger_than_memory_is_not_read(evil: Evil, tmp_path: Path) -> None:
    path = tmp_path / "big"
    for data, error in ((evil.good[: PREFIX.size], OutOfMemoryError), (b"", StateError)):
        path.write_bytes(data)
        os.truncate(path, 1 << 42)  # holes, no blocks
        with pytest.raises(error):
            evil.runner.load_session(path)


def test_paths_that_are_none(evil: Evil, tmp_path: Path) -> None:
    evil.path.write_bytes(evil.good)
    session = evil.runner.load_session(evil.path)
    for path, error in (("a\0b", InvalidArgumentError), (3, ArgumentTypeError), (None, ArgumentTypeError)):
        with pytest.raises(error):
            evil.runner.load_session(path)  # type: ignore[arg-type]
        with pytest.raises(error):
            session.save(path)  # type: ignore[arg-type]
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "link").symlink_to(evil.path)
    os.mkfifo(tmp_path / "pipe")
    for name in ("loop", "pipe", ".", "missing"):
        with pytest.raises((StateError, StorageError)):
            evil.runner.load_session(tmp_path / name)
    assert len(evil.runner.load_session(tmp_path / "link")) == 4


def test_a_full_context_comes_back(evil: Evil, tmp_path: Path) -> None:
    session = evil.runner.session(template=PLAIN)
    session.send("hello", max_tokens=2000, ignore_eos=True)
    assert session.n_tokens == 256
    session.save(tmp_path / "full")
    assert evil.runner.load_session(tmp_path / "full").tokens.tolist() == session.tokens.tolist()


def test_what_cannot_be_written_is_refused_at_once(evil: Evil) -> None:
    """And not when the session is to be saved."""
    for options in (
        {"template_kwargs": {"a": {1, 2}}}, {"template_kwargs": {1: 2}}, {"template_kwargs": [1]},
        {"enable_thinking": 1}, {"reasoning_format": "x"}, {"reasoning_format": 7}, {"owner": 3},
    ):  # fmt: skip
        with pytest.raises((InvalidArgumentError, ArgumentTypeError)):
            evil.runner.session(template=PLAIN, **options)
