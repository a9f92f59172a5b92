"""No JSON schema ends the process: what it may raise is typed, and what it becomes is a grammar."""

from pathlib import Path

from fixtures_models import TinyModelFactory
from fuzz.fuzzing import run_fuzzer


def test_schemas(tiny_model: TinyModelFactory) -> None:
    run_fuzzer(Path(__file__).with_name("schemas.py"), tiny_model("llama"))
