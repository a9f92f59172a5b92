"""Results: invariants, immutability, what they print and what they become in JSON."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Any

import numpy as np
import pytest

from llama_runner.errors import InvalidArgumentError
from llama_runner.results import Chunk, Completion, ContextInfo, SequenceInfo, Timings, TokenLogprob, Usage

TIMINGS = Timings(0.5, 2.0, 0.6, computed_tokens=100, completion_tokens=10)
LOGPROB = TokenLogprob(5, "\ufffd", b"\xf0\x9f", -0.25, ((5, -0.25), (6, float("-inf"))))


def completion(**changes: Any) -> Completion:
    values: dict[str, Any] = {
        "text": "Paris.",
        "tokens": [1, 2],
        "finish_reason": "stop",
        "stop_match": "\n",
        "usage": Usage(5, 2, 3, 2),
        "timings": TIMINGS,
        "logprobs": (LOGPROB,),
        "seed": 42,
    }
    return Completion(**values | changes)


def test_usage_adds_up() -> None:
    usage = Usage(prompt_tokens=5, cached_tokens=2, computed_tokens=3, completion_tokens=4)
    assert usage.total_tokens == 9
    assert usage.to_dict()["total_tokens"] == 9


@pytest.mark.parametrize("counts", [(5, 2, 2, 0), (5, 0, 6, 0), (0, -1, 1, 0), (0, 0, 0, -1)])
def test_usage_that_does_not_add_up(counts: tuple[int, int, int, int]) -> None:
    with pytest.raises(InvalidArgumentError):
        Usage(*counts)


def test_timings() -> None:
    assert TIMINGS.prompt_tokens_per_second == 200
    assert TIMINGS.tokens_per_second == 5
    assert TIMINGS.total_seconds == 2.5
    assert "200.0 tokens/s" in repr(TIMINGS)
    nothing = Timings(0.0, 0.0, 0.0)
    assert nothing.prompt_tokens_per_second == nothing.tokens_per_second == 0.0


def test_completion_owns_its_tokens_and_keeps_them() -> None:
    source = np.array([1, 2, 3], dtype=np.int64)
    result = completion(tokens=source)
    source[0] = 99
    assert result.tokens.tolist() == [1, 2, 3]
    assert result.tokens.dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        result.tokens[0] = 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.text = "other"  # type: ignore[misc]


def test_no_tokens_and_wrong_shape() -> None:
    assert completion(tokens=[]).tokens.shape == (0,)
    with pytest.raises(InvalidArgumentError, match="flat"):
        completion(tokens=[[1, 2]])


def test_completions_compare_by_what_they_say() -> None:
    same = completion(timings=Timings(9.0, 9.0, 9.0))
    assert completion() == same
    assert hash(completion()) == hash(same)
    assert completion() != completion(tokens=[1, 3])
    assert completion() != completion(seed=43)
    assert completion() != "Paris."


def test_completion_reads_well() -> None:
    assert str(completion()) == "Paris."
    told = repr(completion())
    for fact in ("'Paris.'", "stop '\\n'", "2 cached", "seed 42"):
        assert fact in told
    assert len(repr(completion(text="x" * 10_000))) < 250


def test_everything_becomes_strict_json() -> None:
    values = json.loads(json.dumps(completion().to_dict(), allow_nan=False))
    assert values["text"] == "Paris."
    assert values["tokens"] == [1, 2]
    assert values["logprobs"][0]["bytes"] == [0xF0, 0x9F]
    assert values["logprobs"][0]["top"][1] == {"token": 6, "logprob": None}
    assert values["timings"]["tokens_per_second"] == 5
    chunk = Chunk("a", (1,), (LOGPROB,), "length")
    assert json.loads(json.dumps(chunk.to_dict(), allow_nan=False))["finish_reason"] == "length"
    assert Chunk("a").to_dict() == {"text": "a", "tokens": [], "logprobs": None, "finish_reason": None}
    assert str(chunk) == "a"


def test_context_info() -> None:
    info = ContextInfo(100, 25, 4, (SequenceInfo(0, 0, 19, 20), SequenceInfo(1, 0, 14, 15)))
    assert (info.free, info.ratio) == (75, 0.25)
    assert str(info) == "25 of 100 cells used (25%), 2 of 4 sequences"
    assert json.loads(json.dumps(info.to_dict()))["sequences"][1]["n_tokens"] == 15


@pytest.mark.parametrize(("n_ctx", "used"), [(100, 101), (100, -1), (0, 0)])
def test_context_info_that_cannot_be(n_ctx: int, used: int) -> None:
    with pytest.raises(InvalidArgumentError):
        ContextInfo(n_ctx, used, 1)


@pytest.mark.parametrize(
    "value", [completion(), Chunk("a"), TIMINGS, LOGPROB, Usage(1, 0, 1, 0), ContextInfo(1, 0, 1)]
)
def test_copies_and_pickles(value: object) -> None:
    assert pickle.loads(pickle.dumps(value)) == value
    assert copy.deepcopy(value) == value
    assert hash(value) == hash(copy.copy(value))


def test_a_pickled_completion_is_still_read_only() -> None:
    assert not pickle.loads(pickle.dumps(completion())).tokens.flags.writeable
