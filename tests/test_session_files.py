"""``save`` and ``load``: a session goes on in another process with the same tokens, and nothing wrong is ever used."""

from __future__ import annotations

import asyncio
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import LlamaRunner, Session
from llama_runner.core import LoraAdapter
from llama_runner.errors import ArgumentTypeError, ContextOverflowError, StateError, StorageError
from llama_runner.session.store import MAGIC, PREFIX, read_file
from session_use import add, with_tools
from tiny_adapters import random_pairs, write_lora

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
OTHER_PROCESS = """
import json, sys
from llama_runner import LlamaRunner
with LlamaRunner(sys.argv[1], n_ctx=1024) as runner:
    chat = runner.load_session(sys.argv[2])
    replies = [chat.send(text, max_tokens=10) for text in ("And then?", "Why?")]
    print(json.dumps({"tokens": [r.tokens.tolist() for r in replies], "cached": replies[0].usage.cached_tokens,
                      "messages": chat.to_messages()}))
"""


def tiny(path: Path, **options: Any) -> LlamaRunner:
    return LlamaRunner(path, **{"n_ctx": 512, **options})


def talked(runner: LlamaRunner, **options: Any) -> Session:
    session = runner.session(template=PLAIN, seed=3, **options)
    for text in ("one", "two"):
        session.send(text, max_tokens=6, ignore_eos=True)
    return session


@pytest.mark.real_model
def test_another_process_goes_on_with_the_same_tokens(smollm2: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.kv"
    with LlamaRunner(smollm2, n_ctx=1024) as runner:
        chat = runner.session(system="You tell stories.", seed=11)
        chat.send("Tell me one.", max_tokens=24)
        first = chat.messages[-1]
        chat.send("Another.", max_tokens=10)
        chat.rollback(first)
        size = chat.save(path)
        assert size == path.stat().st_size
        unbroken = [chat.send(text, max_tokens=10).tokens.tolist() for text in ("And then?", "Why?")]
        messages, tokens = chat.to_messages(), chat.n_tokens
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, str(smollm2), str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["tokens"] == unbroken and told["messages"] == messages
    assert told["cached"] > 40 and tokens > 80
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["llama", "swa", "mamba", "hybrid"])
def test_every_memory_kind(tiny_model: TinyModelFactory, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    with tiny(tiny_model(kind)) as runner:
        session = talked(runner)
        session.save(path)
        unbroken = [session.send(t, max_tokens=6, ignore_eos=True).tokens.tolist() for t in ("three", "four")]
    with tiny(tiny_model(kind)) as runner:
        again = runner.load_session(path)
        # all that was computed is the row that was compared: the rest was restored
        assert runner.counters.loop["rows"] == 1 and runner.counters.cache.hits == 1
        reply = again.send("three", max_tokens=6, ignore_eos=True)
        assert [
            reply.tokens.tolist(),
            again.send("four", max_tokens=6, ignore_eos=True).tokens.tolist(),
        ] == unbroken
        # once more, where it is in the cache already
        assert runner.load_session(path).n_tokens > 20
        counters = runner.counters.cache
        assert counters.damaged == 0


def test_all_of_it_comes_back(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with tiny(tiny_model("llama")) as runner:
        session = talked(
            runner, on_full="drop", memory_limit=300, owner="me", priority=2, enable_thinking=False,
            template_kwargs={"a": [1]}, params=None, tools=(),
        )  # fmt: skip
        session.pin(session.messages[0])
        left = session.send("left", max_tokens=3, ignore_eos=True)
        session.rollback(session.messages[1])
        session.send("right", max_tokens=3, ignore_eos=True)
        asyncio.run(session.asave(path))
        again = runner.load_session(path)
        assert again.to_messages() == session.to_messages()
        assert [m.id for m in again.messages] == [m.id for m in session.messages]
        assert [m.finish_reason for m in again.messages] == [m.finish_reason for m in session.messages]
        assert str(again.branches) == str(session.branches)
        assert left.message_id in {tip.message.id for tip in again.branches.tips if tip.message}
        for name in (
            "on_full",
            "memory_limit",
            "owner",
            "priority",
            "options",
            "params",
            "seed",
            "_draws",
            "_pinned",
        ):
            assert getattr(again, name) == getattr(session, name), name
        assert again.tokens.tolist() == session.tokens.tolist()
        assert again.template.source == PLAIN
        fresh = runner.session(template=PLAIN)
        fresh.save(path)  # nothing was said yet
        assert len(runner.load_session(path)) == 0


def test_tools_are_given_again(smollm2: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with LlamaRunner(smollm2, n_ctx=1024) as runner:
        session = runner.session(tools=[add], template=with_tools())
        session.send("hello", max_tokens=2)
        session.save(path)
        described = runner.load_session(path)
        assert described.tools["add"].call is None
        assert described.tools.to_list() == session.tools.to_list()
        callable_again = runner.load_session(path, tools=[add])
        assert callable_again.tools["add"].call is add
        assert callable_again.send("more", max_tokens=2).usage.cached_tokens > 100


def test_files_that_are_none(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with tiny(tiny_model("llama")) as runner:
        talked(runner).save(path)
        good = path.read_bytes()
        runner.clear_context()

        def refused(data: bytes, match: str) -> None:
            path.write_bytes(data)
            with pytest.raises(StateError, match=match):
                runner.load_session(path)
            assert runner.get_context_info().used == 0

        for n in (0, 3, PREFIX.size, PREFIX.size + 10, len(good) // 2, len(good) - 1):
            refused(good[:n], "cut off|damaged")
        refused(good + b"x", "damaged")
        rng = np.random.default_rng(0)
        for at in rng.integers(PREFIX.size, len(good), 40):
            refused(good[:at] + bytes([good[at] ^ 1 << int(rng.integers(8))]) + good[at + 1 :], "damaged")
        refused(b"PK\3\4" + good[4:], "no session")
        refused(MAGIC + struct.pack("<I", 99) + good[8:], "version 99")
        for change, match in (
            (lambda h: h.pop("nodes"), "makes no sense"),
            (lambda h: h["nodes"][0].update(parent=3), "before its parent"),
            (lambda h: h["nodes"][0].update(data={"role": "nobody"}), "nobody"),
            (lambda h: h.update(head=99), "makes no sense"),
            (lambda h: h.update(n_tokens=10**9), "too short"),
            (lambda h: h.update(draws=-1), "negative"),
            (lambda h: h["params"].update(temperature=-1), "temperature"),
            (lambda h: h["fingerprint"].update(n_embd=1), "another model|another kind"),
            (lambda h: h.update(adapters="x"), "adapters"),
        ):
            refused(rewritten(good, change), match)
        path.write_bytes(good)
        assert len(runner.load_session(path)) == 4
        for wrong in (tmp_path / "missing", tmp_path):
            with pytest.raises((StorageError, StateError)):
                runner.load_session(wrong)


def rewritten(data: bytes, change: Any, tail: bytes | None = None) -> bytes:
    """A file with another header and a checksum that is right."""
    from llama_runner.session.store import VERSION, _digest

    _, _, length, _ = PREFIX.unpack_from(data)
    header = json.loads(data[PREFIX.size : PREFIX.size + length])
    change(header)
    text = json.dumps(header).encode()
    body = text + (data[PREFIX.size + length :] if tail is None else tail)
    return PREFIX.pack(MAGIC, VERSION, len(text), _digest(body)) + body


def test_another_state_than_was_saved(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    """A file whose every checksum is right, and whose keys and values are other tokens': one row of logits tells."""
    path = tmp_path / "s"
    with tiny(tiny_model("llama")) as runner:
        talked(runner).save(path)
        saved = read_file(path)
        row = saved.logits + 30 * np.random.default_rng(0).standard_normal(len(saved.logits)).astype(
            np.float32
        )
        tail = saved.tokens.astype("<i4").tobytes() + row.tobytes() + bytes(saved.state)
        path.write_bytes(rewritten(path.read_bytes(), lambda header: None, tail))
        runner.clear_context()
        with pytest.raises(StateError, match="not what was saved"):
            runner.load_session(path)
        assert runner.get_context_info().used == 0  # and what was restored is gone
        other = saved.tokens.copy()
        other[3] += 1
        tail = other.astype("<i4").tobytes() + saved.logits.tobytes() + bytes(saved.state)
        path.write_bytes(rewritten(path.read_bytes(), lambda header: None, tail))
        with pytest.raises(StateError, match="other tokens"):
            runner.load_session(path)


def test_another_model_takes_the_messages_alone(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with tiny(tiny_model("llama")) as runner:
        session = talked(runner)
        session.save(path)
    with tiny(tiny_model("swa")) as other:
        with pytest.raises(StateError, match="kv=False"):
            other.load_session(path)
        taken = other.load_session(path, kv=False)
        assert taken.to_messages() == session.to_messages() and taken.n_tokens == 0
        assert taken.send("three", max_tokens=2, ignore_eos=True).usage.cached_tokens == 0
    with (
        tiny(tiny_model("llama"), n_ctx=256, type_k="q8_0", flash_attn=True) as other,
        pytest.raises(StateError, match="kind of context"),
    ):
        other.load_session(path)


def test_no_room_is_an_error(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with tiny(tiny_model("llama"), n_ctx=1024) as runner:
        session = runner.session(template=PLAIN)
        session.send("word " * 300, max_tokens=2, ignore_eos=True)
        assert session.n_tokens > 256
        session.save(path)
        with pytest.raises(StorageError):
            session.save(tmp_path / "no" / "such" / "folder")
        session.save(path)
    with tiny(tiny_model("llama"), n_ctx=256) as small:
        with pytest.raises((StateError, ContextOverflowError)):
            small.load_session(path)
        with pytest.raises(ArgumentTypeError, match="kv"):
            small.load_session(path, kv="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["llama", "swa", "mamba", "hybrid"])
def test_what_nobody_uses_makes_room(tiny_model: TinyModelFactory, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    with tiny(tiny_model(kind), n_ctx=256) as runner:
        session = talked(runner)
        session.save(path)
        runner.clear_context()
        for i in range(20):
            if runner.get_context_info().used + session.n_tokens <= 256:
                runner.generate(f"{i} abc def" * 4, max_tokens=10, ignore_eos=True)
        again = runner.load_session(path)
        assert again.tokens.tolist() == session.tokens.tolist()
        found = runner.engine.foresee(again.tokens)
        assert found.cached_tokens - found.restored_tokens == again.n_tokens - 1


def test_adapters_are_named(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    path, lora = tmp_path / "s", tmp_path / "lora.gguf"
    model_path = tiny_model("llama")
    with tiny(model_path) as runner:
        write_lora(lora, random_pairs(model_path))
        adapter = LoraAdapter(runner.model, lora)
        session = talked(runner, adapters={adapter: 1.0})
        session.save(path)
        unbroken = session.send("three", max_tokens=5, ignore_eos=True).tokens.tolist()
        with pytest.raises(StateError, match="other adapters"):
            runner.load_session(path)
        runner.clear_context()
        again = runner.load_session(path, adapters={adapter: 1.0})
        reply = again.send("three", max_tokens=5, ignore_eos=True)
        assert reply.tokens.tolist() == unbroken and reply.usage.cached_tokens > 20


def test_others_may_generate_meanwhile(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    with tiny(tiny_model("llama"), n_ctx=8192) as runner:
        session = talked(runner)
        with runner.session(template=PLAIN).stream("on and on", max_tokens=7000, ignore_eos=True) as stream:
            next(stream)
            for _ in range(20):
                session.save(tmp_path / "s")
                assert len(runner.load_session(tmp_path / "s")) == 4
            next(stream)
