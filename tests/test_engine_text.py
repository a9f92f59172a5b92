"""The native loop's text against ``TextAssembler``: whole characters, and stop strings that never leak.

A logits processor forces the tokens, so that any text can be had from a random model.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from fixtures_models import TinyModelFactory
from llama_runner import LlamaRunner
from llama_runner.streaming import TextAssembler

ALPHABETS = ["ab", "abc \n", "aé雪🜁", "<|>/im_end"]


def expected(pieces: list[bytes], stops: list[str]) -> tuple[str, str | None, int]:
    """The text, the stop string, and after how many tokens."""
    assembler = TextAssembler(stops)
    text = ""
    for i, piece in enumerate(pieces):
        text += assembler.push(piece)
        if assembler.stopped is not None:
            return text, assembler.stopped, i + 1
    text += assembler.flush()
    return text, assembler.stopped, len(pieces)


@pytest.mark.parametrize("vocab", ["spm", "bpe"])
def test_any_text_with_any_stop_strings(tiny_model: TinyModelFactory, vocab: str) -> None:
    rng = random.Random(7)
    with LlamaRunner(tiny_model("llama", vocab=vocab), n_ctx=4096, n_threads=1) as runner:
        words = runner.model.vocab
        forced: dict[int, list[int]] = {}

        def force(tokens: list[Any], logits: Any) -> None:
            for row, ids in zip(logits, tokens, strict=True):
                script = forced[int(ids[0])]
                row[:] = -np.inf
                row[script[len(ids) - 1]] = 0.0

        cases = []
        for case in range(300):
            alphabet = rng.choice(ALPHABETS)
            text = "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 30)))
            script = words.tokenize(text, add_special=False, parse_special=False).tolist()
            if rng.random() < 0.3:  # the end of a generation may cut a character in two
                script = script[: rng.randint(1, len(script))]
            stops = [
                "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 4)))
                for _ in range(rng.randint(0, 4))
            ]
            first = 270 + case % 160
            forced[first] = script
            cases.append((first, script, sorted(set(stops))))
            if len(cases) == 100:
                check(runner, cases, force)
                cases = []


def check(runner: LlamaRunner, cases: list[tuple[int, list[int], list[str]]], force: Any) -> None:
    streams = [
        runner.stream(
            [first],
            max_tokens=len(script),
            stop=stops,
            temperature=0,
            ignore_eos=False,
            logits_processor=force,
        )
        for first, script, stops in cases
    ]
    for (_, script, stops), stream in zip(cases, streams, strict=True):
        chunks = list(stream)
        pieces = [runner.model.vocab.token_to_piece(token) for token in script]
        text, match, n = expected(pieces, stops)
        out = stream.completion
        # the loop goes by bytes: it can be certain before the last byte of a character
        assert out.tokens.tolist() == script[: len(out.tokens)]
        assert n - 3 <= len(out.tokens) <= n
        assert (out.text, out.stop_match) == (text, match), (script, stops)
        assert "".join(chunk.text for chunk in chunks) == text
        assert out.finish_reason == ("stop" if match is not None else "length")
        for chunk in chunks[:-1]:
            assert "�" not in chunk.text
