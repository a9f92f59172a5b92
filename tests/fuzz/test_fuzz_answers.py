"""No answer of a model ends the process: what it may raise is typed, and a stream comes to the same as the whole."""

from pathlib import Path

from fixtures_models import TinyModelFactory
from fuzz.fuzzing import run_fuzzer


def test_answers(tiny_model: TinyModelFactory) -> None:
    run_fuzzer(Path(__file__).with_name("answers.py"), tiny_model("llama"))
