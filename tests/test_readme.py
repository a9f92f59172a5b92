"""The README's Python runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.real_model
@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_example_runs(smollm2, block, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = BLOCKS[block].replace('"model.gguf"', repr(str(smollm2)))
    names: dict[str, object] = {}
    exec(compile(code, f"README.md, block {block}", "exec"), names)
    said = capsys.readouterr().out
    if "chat" in names:
        assert "edit: " in said and "tokens were cached" in said and Path("chat.kv").stat().st_size > 1000
        assert names["answer"].text.strip() in ("red", "green", "blue")  # type: ignore[attr-defined]
    elif "branches" in names:
        assert said.count("tokens were cached") == 4
    elif "runner" in names:
        assert "Paris" in said
    else:
        assert names["ctx"].memory.seq_pos_max(2) == names["ctx"].memory.seq_pos_max(3)  # type: ignore[attr-defined]


def test_there_are_examples():
    assert len(BLOCKS) >= 3
