"""What the package says of itself, and what importing it costs."""

from __future__ import annotations

import json
import subprocess
import sys

import llama_runner
from llama_runner import build_info


def child(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_build_info_has_the_facts():
    info = build_info()
    assert json.loads(json.dumps(info)) == info
    assert len(info["llama_cpp_commit"]) == 40
    assert info["llama_cpp_release"].startswith("b")
    assert info["backends"]["cpu"]["state"] == "on"
    assert {"cuda", "metal", "vulkan", "hip", "blas", "openmp"} <= info["backends"].keys()
    assert all(
        backend["state"] in ("on", "off") and backend["reason"] for backend in info["backends"].values()
    )
    assert any(device["type"] == "cpu" for device in info["devices"])
    assert info["cpu_features"]
    assert info["physical_cores"] >= 1
    assert info["compiler"] and info["version"]


def test_every_public_name_is_there():
    for name in llama_runner.__all__:
        assert getattr(llama_runner, name) is not None
        assert name in dir(llama_runner)


def test_import_loads_nothing_native_and_no_backend():
    code = """
import sys, llama_runner
assert not [m for m in sys.modules if m.startswith("llama_runner.core")], "native modules"
from llama_runner import LlamaRunner
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
assert "libcuda" not in maps and "libvulkan" not in maps
assert not [m for m in sys.modules if m.split(".")[0] in ("typer", "rich", "huggingface_hub")], "extras"
"""
    assert child(code).stderr == ""


def test_logs_are_silent_by_default_and_reach_logging_when_asked(tiny_model):
    path = tiny_model("llama")
    use = f"from llama_runner.core import *; c = Context(Model({str(path)!r}), n_ctx=256)"
    assert child(use).stderr == child(use).stdout == ""
    done = child(f"import logging; logging.basicConfig(level=logging.INFO); {use}")
    assert "llama_runner.native" in done.stderr
    assert "n_ctx" in done.stderr
