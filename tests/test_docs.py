"""The examples of docs/ run as they stand there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from session_use import with_tools

DOCS = Path(__file__).parent.parent / "docs"


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.real_model
@pytest.mark.parametrize("block", range(len(blocks("sessions.md"))))
def test_sessions(
    smollm2: Path,
    block: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"TEMPLATE": with_tools()}
    code = blocks("sessions.md")[block].replace('"smollm2-135m"', repr(str(smollm2)))
    exec(compile(code, f"sessions.md, block {block}", "exec"), names)
    said = capsys.readouterr().out
    assert said.strip()
    if block == 0:
        assert "edit: " in said and "tokens were cached" in said and "* system: " in said
        assert os.path.getsize("chat.kv") > 1000
    if block == 1:
        assert "name='add'" in said and "Usage(" in said
    if block == 3:
        assert "drop: " in said and "gc: " in said and "SessionInfo" in said


@pytest.mark.real_model
def test_a_session_in_a_worker(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = blocks("pool.md")[1].replace('"smollm2-135m"', repr(str(smollm2)))
    exec(compile(code, "pool.md", "exec"), {})
    assert capsys.readouterr().out.strip().endswith("0 5")


def test_there_are_examples() -> None:
    assert len(blocks("sessions.md")) == 5
