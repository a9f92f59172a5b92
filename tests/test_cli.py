"""The command line as a user starts it: a process of its own, its two streams and its exit code."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

MODEL = "smollm2-135m"
COMMAND = [sys.executable, "-c", "from llama_runner.cli import main; main()"]
# Wide and plain, whatever the terminal that the tests run in.
ENVIRONMENT = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "PYTHONUTF8": "1"} | {
    "LLAMA_RUNNER_DEBUG": ""
}

real_model = pytest.mark.real_model


def cli(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, timeout=300, check=False, env=ENVIRONMENT
    )


def succeed(*arguments: str, stdin: bytes = b"") -> str:
    done = cli(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b"", "stderr is for terminals and errors"
    return done.stdout.decode()


def as_json(*arguments: str, stdin: bytes = b"") -> Any:
    return json.loads(succeed(*arguments, "--json", stdin=stdin))


def fail(code: int, *arguments: str, stdin: bytes = b"") -> str:
    done = cli(*arguments, stdin=stdin)
    told = done.stderr.decode()
    assert done.returncode == code, told
    assert "Traceback" not in told
    assert done.stdout == b""
    return told


# --- without a model -------------------------------------------------------------------------------


def test_version() -> None:
    try:
        version = importlib.metadata.version("llama-runner")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("runs from the source tree, which has no version")
    assert succeed("--version") == f"llama-runner {version}\n"


def test_help_names_the_commands_and_no_arguments_is_a_wrong_call() -> None:
    told = succeed("--help")
    assert all(name in told for name in ("demo", "run", "info", "models"))
    assert cli().returncode == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "MODEL"),
        (["run", MODEL, "hi", "--temprature", "1"], "--temperature"),
        (["run", MODEL, "hi", "--top-k", "many"], "valid integer"),
        (["run", MODEL, "hi", "--temperature", "-1"], "error: temperature must be"),
        (["run", MODEL, "hi", "--max-tokens", "0"], "error: max_tokens must be 1 or more"),
        (["run", MODEL, "hi", "--stop", ""], "error: stop must not hold an empty string"),
        (["run", MODEL, "hi", "--raw", "--system", "x"], "--system needs the chat template"),
        (["run", MODEL, "hi", "--grammar-file", "does-not-exist.gbnf"], "does-not-exist.gbnf"),
        (["fly"], "fly"),
    ],
)
def test_wrong_calls_exit_with_2_and_say_what_is_wrong(arguments: list[str], words: str) -> None:
    assert words in fail(2, *arguments)


def test_stdin_that_is_no_text() -> None:
    assert "stdin is not UTF-8" in fail(2, "run", MODEL, "-", stdin=b"\xff\xfe")


def test_debug_shows_the_traceback() -> None:
    done = cli("--debug", "run", MODEL, "hi", "--temperature", "-1")
    assert done.returncode == 1
    assert b"Traceback" in done.stderr


def test_models() -> None:
    assert MODEL in succeed("models")
    assert as_json("models")[MODEL]["bytes"] > 10_000_000


def test_a_missing_model_is_one_line_and_a_hint(tmp_path: Path) -> None:
    told = fail(1, "run", str(tmp_path / "absent.gguf"), "hi").splitlines()
    assert len(told) == 2
    assert told[0].startswith("error: ")
    assert "absent.gguf" in told[0]
    assert told[1].startswith("hint: ")


def test_a_damaged_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF and no more")
    assert fail(1, "run", str(tmp_path / "damaged.gguf"), "hi").startswith("error: ")


def test_info() -> None:
    facts = as_json("info")
    assert facts
    told = succeed("info")
    assert all(key.replace("_", " ") in told for key in facts)


# --- run -------------------------------------------------------------------------------------------

GREEDY = ["--temperature", "0", "--max-tokens", "12", "--seed", "1"]


@real_model
def test_run_answers_in_the_chat_template() -> None:
    assert "Rayleigh" in succeed("run", MODEL, "Why is the sky blue?", *GREEDY)


@real_model
def test_run_json_is_one_object_and_the_text_that_streams() -> None:
    arguments = ["run", MODEL, "The capital of France is", "--raw", *GREEDY]
    values = as_json(*arguments)
    assert succeed(*arguments).removesuffix("\n") == values["text"].removesuffix("\n")
    usage = values["usage"]
    assert usage["prompt_tokens"] == usage["cached_tokens"] + usage["computed_tokens"]
    assert 1 <= usage["completion_tokens"] <= 12
    assert values["chat"] is False
    assert values["seed"] == 1
    assert values["model"]["parameters"] > 100_000_000


@real_model
def test_run_reads_stdin_without_its_last_line_break() -> None:
    prompt = "The capital of France is"
    by_argument = as_json("run", MODEL, prompt, "--raw", *GREEDY)
    by_stdin = as_json("run", MODEL, "-", "--raw", *GREEDY, stdin=prompt.encode() + b"\n")
    assert by_stdin["prompt"] == prompt
    assert by_stdin["tokens"] == by_argument["tokens"]


@real_model
def test_the_same_seed_gives_the_same_text() -> None:
    arguments = ["run", MODEL, "Tell me a story.", "--max-tokens", "24", "--temp", "1.2"]
    first = as_json(*arguments)
    again = as_json(*arguments, "--seed", str(first["seed"]))
    assert again["tokens"] == first["tokens"]


@real_model
def test_stop_ends_the_text() -> None:
    values = as_json("run", MODEL, "Count: one, two, three,", "--raw", "--stop", ",", "--stop", "\n", *GREEDY)
    assert values["finish_reason"] == "stop"
    assert values["stop_match"] in (",", "\n")
    assert "," not in values["text"]
    assert "\n" not in values["text"]


@real_model
def test_ignore_eos_goes_on_to_the_limit() -> None:
    values = as_json("run", MODEL, "Say hi.", "--ignore-eos", "--max-tokens", "64")
    assert values["finish_reason"] == "length"
    assert values["usage"]["completion_tokens"] == 64


@real_model
def test_grammar_file(tmp_path: Path) -> None:
    (tmp_path / "answer.gbnf").write_text('root ::= "yes" | "no"')
    values = as_json("run", MODEL, "Is water wet?", "--grammar-file", str(tmp_path / "answer.gbnf"))
    assert values["text"] in ("yes", "no")


@real_model
def test_system_message_is_part_of_the_prompt() -> None:
    without = as_json("run", MODEL, "Hi", *GREEDY)["usage"]["prompt_tokens"]
    told = as_json(
        "run", MODEL, "Hi", "--system", "You are a very long-winded pirate from the North.", *GREEDY
    )
    assert told["usage"]["prompt_tokens"] != without


@real_model
def test_a_prompt_longer_than_the_context_names_the_way_out() -> None:
    told = fail(1, "run", MODEL, "word " * 2000, "--n-ctx", "256")
    assert told.startswith("error: ")
    assert "--n-ctx" in told


@real_model
@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_exits_with_130() -> None:
    arguments = ["run", MODEL, "Once upon a time", "--raw", "--ignore-eos", "--max-tokens", "2000"]
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(20), "text comes before the end"
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        process.stdout.read()
        told = process.stderr.read().decode()
        assert process.wait(timeout=30) == 130, told
    assert time.monotonic() - start < 10
    assert "Traceback" not in told


@real_model
@pytest.mark.skipif(os.name == "nt", reason="pipes break differently")
def test_a_reader_that_leaves_is_no_traceback() -> None:
    arguments = ["run", MODEL, "Once upon a time", "--raw", "--ignore-eos", "--max-tokens", "2000"]
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(20)
        process.stdout.close()
        told = process.stderr.read().decode()
        assert process.wait(timeout=60) == 1
    assert told == ""


# --- demo ------------------------------------------------------------------------------------------


@real_model
def test_demo_json_adds_up() -> None:
    values = as_json("demo", "--max-tokens", "32")
    assert "Rayleigh" in values["answer"]["text"]
    fork = values["fork"]
    assert len(fork["branches"]) == 4
    assert len({branch["tokens"][0] for branch in fork["branches"]}) == 4
    assert len({branch["text"] for branch in fork["branches"]}) == 4
    assert all(1 <= len(branch["tokens"]) <= 32 for branch in fork["branches"])
    assert fork["prompt_tokens_computed"] > values["answer"]["usage"]["prompt_tokens"]
    assert fork["prompt_tokens_shared"] == 3 * fork["prompt_tokens_computed"]
    assert 0 < fork["decoded_tokens"] <= 4 * 31
    assert fork["tokens_per_second"] > 0


@real_model
def test_demo_is_repeatable() -> None:
    first, again = (as_json("demo", "--max-tokens", "12", "--seed", "7") for _ in range(2))
    assert first["fork"]["branches"] == again["fork"]["branches"]


@real_model
def test_demo_into_a_pipe_is_plain_text() -> None:
    told = succeed("demo", "--max-tokens", "24")
    assert "Rayleigh" in told
    assert all(f"[branch {number}]" in told for number in range(1, 5))
    assert "tokens/s" in told
    assert "shared" in told
    assert "\x1b" not in told


@real_model
@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("columns", ["40", "80", "160"])
def test_demo_on_a_terminal_draws_the_branches_side_by_side(columns: str) -> None:
    import pty

    master, slave = pty.openpty()
    environment = ENVIRONMENT | {"COLUMNS": columns, "LINES": "50", "TERM": "xterm"}
    with subprocess.Popen(
        [*COMMAND, "demo", "--max-tokens", "16"], stdin=slave, stdout=slave, stderr=slave, env=environment
    ) as process:
        os.close(slave)
        shown = bytearray()
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:  # the way in which Linux reports that the other side is closed
                break
            if not data:
                break
            shown += data
        assert process.wait(timeout=60) == 0, shown.decode(errors="replace")
    os.close(master)
    text = shown.decode()
    assert all(f"branch {number}" in text for number in range(1, 5))
    if columns != "40":
        assert any("branch 1" in line and "branch 2" in line for line in text.splitlines())
