"""No template ends the process: what it may raise is typed."""

from pathlib import Path

from fixtures_models import TinyModelFactory
from fuzz.fuzzing import run_fuzzer


def test_templates(tiny_model: TinyModelFactory) -> None:
    run_fuzzer(Path(__file__).with_name("templates.py"), tiny_model("llama"))
