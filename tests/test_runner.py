"""``LlamaRunner`` on the real model: what a user types, and what is promised about the cache."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from engine_use import wait_for
from llama_runner import Completion, GenerationParams, LlamaRunner, quick
from llama_runner.core import Model
from llama_runner.errors import ClosedError, ContextBusyError, ContextOverflowError, InvalidArgumentError

pytestmark = pytest.mark.real_model

GREEDY = GenerationParams(temperature=0, max_tokens=16)
PARIS = "The capital of France is"


@pytest.fixture(scope="module")
def shared(smollm2: Path):
    with LlamaRunner(smollm2, n_ctx=1024) as made:
        yield made


@pytest.fixture
def runner(shared: LlamaRunner) -> LlamaRunner:
    shared.clear_context()
    return shared


def resident(runner: LlamaRunner) -> dict[int, int]:
    """Tokens of each sequence by llama.cpp's own account."""
    with runner.engine.paused() as context:
        ends = {seq: context.memory.seq_pos_max(seq) + 1 for seq in range(context.n_seq_max)}
    return {seq: n for seq, n in ends.items() if n}


def cached(runner: LlamaRunner, tokens: list[int]) -> int:
    """How many of these tokens the prefix tree has in the KV memory."""
    with runner.engine.paused():
        return runner.engine.residency.tree.match(np.asarray(tokens, dtype=np.int32)).resident


def assert_account_is_true(runner: LlamaRunner) -> None:
    info = runner.get_context_info()
    assert {s.seq_id: s.n_tokens for s in info.sequences} == resident(runner)
    # a cell that several sequences share counts once
    with runner.engine.paused() as context:
        (table,) = context.memory.cells()
    assert info.used == int((table.pos >= 0).sum()) <= sum(resident(runner).values())


def test_answers(runner):
    out = runner.generate(PARIS, params=GREEDY)
    assert isinstance(out, Completion)
    assert out.text.startswith(" Paris")
    assert out.finish_reason == "length"
    assert len(out.tokens) == out.usage.completion_tokens == 16
    assert runner.model.vocab.detokenize(out.tokens) == out.text


def test_usage_counts_what_was_computed(runner):
    first = runner.generate(PARIS, params=GREEDY).usage
    assert (first.prompt_tokens, first.cached_tokens, first.computed_tokens) == (5, 0, 5)
    again = runner.generate(PARIS, params=GREEDY).usage
    assert (again.cached_tokens, again.computed_tokens) == (4, 1)
    longer = runner.generate(PARIS + " Paris, and the capital of Spain is", params=GREEDY).usage
    assert longer.cached_tokens >= 5
    assert longer.prompt_tokens == longer.cached_tokens + longer.computed_tokens
    other = runner.generate("Entirely different words come first here", params=GREEDY).usage
    assert other.cached_tokens == 0
    assert_account_is_true(runner)


def test_a_cached_prefix_changes_no_token(runner):
    fresh = runner.generate(PARIS, params=GREEDY)
    cached = runner.generate(PARIS, params=GREEDY)
    assert cached.usage.cached_tokens > 0
    assert cached.tokens.tolist() == fresh.tokens.tolist()


def test_stateless_calls_do_not_see_each_other(runner):
    alone = runner.generate_stateless("My name is", 12, temperature=0)
    runner.generate_stateless("My name is Zebedee and I live in a lighthouse.", 12, temperature=0)
    assert runner.generate_stateless("My name is", 12, temperature=0) == alone


def test_stateful_remembers_and_computes_only_what_is_new(runner, smollm2):
    prompts = ["The red box holds 17 coins.", " The blue box holds 4 coins.", " The red box holds"]
    answers = [runner.generate_stateful(p, 8, temperature=0) for p in prompts]
    whole = prompts[0] + answers[0] + prompts[1] + answers[1] + prompts[2]
    # the same tokens in one stateless call, in a context of its own
    vocab = runner.model.vocab
    tokens: list[int] = []
    for prompt, answer in zip(prompts, [*answers[:2], ""], strict=True):
        tokens += vocab.tokenize(prompt).tolist() + vocab.tokenize(answer, add_special=False).tolist()
    if vocab.detokenize(tokens) == whole and tokens == runner._stateful.tokens.tolist()[: len(tokens)]:
        with LlamaRunner(smollm2, n_ctx=1024) as other:
            assert other.generate(tokens, max_tokens=8, temperature=0).text == answers[2]
    assert_account_is_true(runner)
    # all but the last sampled token is resident, and survives stateless calls
    assert cached(runner, runner._stateful.tokens.tolist()) == len(runner._stateful.tokens.tolist()) - 1
    runner.generate(PARIS, params=GREEDY)
    assert cached(runner, runner._stateful.tokens.tolist()) == len(runner._stateful.tokens.tolist()) - 1
    runner.clear_context()
    assert resident(runner) == {}
    assert runner.get_context_info().used == 0


def test_stateful_is_unchanged_by_an_error(runner):
    runner.generate_stateful("One, two, three,", 4, temperature=0)
    before = runner._stateful.tokens.tolist()
    cells = cached(runner, before)
    assert cells == len(before) - 1
    with pytest.raises(ContextOverflowError):
        runner.generate_stateful("word " * 3000, 4)
    with pytest.raises(InvalidArgumentError):
        runner.generate_stateful("four, \ud800", 4)
    with pytest.raises(InvalidArgumentError):
        runner.generate_stateful("four,", 4, grammar="this is no grammar ::=")
    assert runner._stateful.tokens.tolist() == before
    assert cached(runner, before) == cells
    runner.generate_stateful(" four,", 4, temperature=0)
    assert_account_is_true(runner)


def test_stateful_takes_one_turn_at_a_time(runner):
    began, results = threading.Event(), []

    def first() -> None:
        results.append(runner.generate_stateful("Count: 1, 2, 3,", 200, temperature=0, ignore_eos=True))

    thread = threading.Thread(target=first)
    thread.start()
    while thread.is_alive() and not runner._stateful._turn.busy:
        began.wait(0.001)
    with pytest.raises(ContextBusyError, match="one turn"):
        runner.generate_stateful("meanwhile", 4)
    runner.clear_context()  # leaves a turn under way alone
    thread.join()
    assert results[0]
    assert len(runner._stateful.tokens.tolist()) > 200
    assert_account_is_true(runner)


def test_stream_is_the_completion(runner):
    stream = runner.stream("A poem about 雪 and ❄:", max_tokens=40, seed=3)
    chunks = list(stream)
    assert "".join(chunk.text for chunk in chunks) == stream.completion.text
    assert [t for chunk in chunks for t in chunk.tokens] == stream.completion.tokens.tolist()
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == "length"
    repeat = runner.generate("A poem about 雪 and ❄:", max_tokens=40, seed=3)
    assert repeat.tokens.tolist() == stream.completion.tokens.tolist()


def test_seed_of_the_completion_repeats_it(runner):
    first = runner.generate("Once", max_tokens=24)
    again = runner.generate("Once", max_tokens=24, seed=first.seed)
    assert again.tokens.tolist() == first.tokens.tolist()
    others = [runner.generate("Once", max_tokens=24).text for _ in range(3)]
    assert any(text != first.text for text in others)


def is_whole(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_stream_never_breaks_a_character(runner):
    # each of these characters is several tokens
    text = "🜁🜂🜃🜄 ꙮ ✍🏽 𓀀𓁐 𝔘𝔫𝔦"
    tokens = runner.model.vocab.tokenize(text, add_special=False)
    pieces = [runner.model.vocab.token_to_piece(int(token)) for token in tokens]
    assert any(not is_whole(piece) for piece in pieces)
    forced = " | ".join(f'"{c}"' for c in text.split())
    for seed in range(4):
        chunks = list(runner.stream("Symbols:", grammar=f"root ::= ({forced})+", max_tokens=24, seed=seed))
        complete = "".join(c.text for c in chunks[:-1])
        assert "\ufffd" not in complete
        assert complete.encode().decode() == complete


def test_stop_strings_never_leak(runner):
    plain = runner.generate("1, 2, 3, 4, 5,", max_tokens=24, temperature=0).text
    assert "9" in plain
    stop = plain[plain.index("9") - 2 : plain.index("9") + 2]
    stream = runner.stream("1, 2, 3, 4, 5,", max_tokens=24, temperature=0, stop=[stop, "never there"])
    seen = ""
    for chunk in stream:
        seen += chunk.text
        assert stop not in seen
        assert not any(seen.endswith(stop[:n]) and chunk.finish_reason is None for n in range(2, len(stop)))
    assert seen == plain[: plain.index(stop)]
    assert stream.completion.finish_reason == "stop"
    assert stream.completion.stop_match == stop


def test_ends_at_eos_or_goes_on_when_told(runner):
    prompt = runner.chat_tokens([{"role": "user", "content": "Say hi."}])
    ended = runner.generate(prompt, max_tokens=200, temperature=0)
    assert ended.finish_reason == "eos"
    assert runner.model.vocab.is_eog(int(ended.tokens[-1]))
    assert "<|im_end|>" not in ended.text
    longer = runner.generate(prompt, max_tokens=len(ended.tokens) + 10, temperature=0, ignore_eos=True)
    assert longer.finish_reason == "length"
    assert not any(runner.model.vocab.is_eog(int(t)) for t in longer.tokens)


def test_logprobs_are_those_of_the_model(runner):
    out = runner.generate(PARIS, max_tokens=6, temperature=0, logprobs=3)
    assert len(out.logprobs) == 6
    for token, logprob in zip(out.tokens.tolist(), out.logprobs, strict=True):
        assert logprob.token == token == logprob.top[0][0]
        assert logprob.logprob == logprob.top[0][1] < 0
        assert [p for _, p in logprob.top] == sorted((p for _, p in logprob.top), reverse=True)
    sampled = runner.generate(PARIS, max_tokens=6, seed=5, logprobs=0)
    assert all(logprob.top == () for logprob in sampled.logprobs)


def test_grammar_binds_the_answer(runner):
    out = runner.generate(
        "Is the sky blue? Answer:", grammar='root ::= " yes" | " no"', max_tokens=8, temperature=0
    )
    assert out.text in (" yes", " no")
    assert out.finish_reason == "eos"


def test_logit_bias_and_penalties(runner):
    vocab = runner.model.vocab
    paris = int(vocab.tokenize(" Paris", add_special=False)[0])
    assert "Paris" not in runner.generate(PARIS, params=GREEDY, logit_bias={paris: -100.0}).text
    penalized = runner.generate("la la la la la la la la", max_tokens=4, temperature=0, repeat_penalty=10.0)
    assert " la" not in penalized.text


def test_length_ends_at_the_context(runner):
    n = runner.context.n_ctx
    prompt = runner.model.vocab.tokenize("word " * 2000)[: n - 10]
    out = runner.generate(prompt, max_tokens=None, temperature=0, ignore_eos=True)
    assert out.finish_reason == "length"
    assert len(out.tokens) == 10
    assert_account_is_true(runner)


def test_prompt_longer_than_the_context_names_both_numbers(runner):
    prompt = runner.model.vocab.tokenize("word " * 2000)
    with pytest.raises(ContextOverflowError, match=rf"{len(prompt)} tokens .* holds 1024") as caught:
        runner.generate(prompt)
    assert (caught.value.n_tokens, caught.value.n_ctx) == (len(prompt), 1024)
    assert_account_is_true(runner)


def test_idle_prefixes_make_room_and_a_conversation_does_not(runner):
    half = runner.model.vocab.tokenize("word " * 2000)[:500]
    runner.generate(half, max_tokens=4, temperature=0)
    runner.generate(half[::-1].copy(), max_tokens=4, temperature=0)
    assert runner.generate(np.roll(half, 7), max_tokens=4, temperature=0).finish_reason == "length"
    runner.clear_context()
    runner.generate_stateful(half, 4, temperature=0)
    conversation = runner._stateful.tokens.tolist()
    held = cached(runner, conversation)
    assert held == len(conversation) - 1
    with pytest.raises(ContextOverflowError, match="clear_context"):
        runner.generate(np.concatenate([half[::-1], half[:100]]), max_tokens=4)
    assert cached(runner, conversation) == held
    assert_account_is_true(runner)


def test_streams_take_turns(runner):
    alone = [runner.generate(p, params=GREEDY).text for p in (PARIS, "Red, green,")]
    runner.clear_context()
    a, b = (runner.stream(p, params=GREEDY) for p in (PARIS, "Red, green,"))
    while True:
        pair = next(a, None), next(b, None)
        if pair == (None, None):
            break
    # a row of another batch shape can tip a near-tie, so the first tokens are compared
    assert a.completion.text[:12] == alone[0][:12]
    assert b.completion.text[:12] == alone[1][:12]
    assert_account_is_true(runner)


def test_threads_share_a_runner(runner):
    texts: dict[int, str] = {}

    def work(i: int) -> None:
        texts[i] = runner.generate(f"{i}, {i + 1}, {i + 2},", max_tokens=8, temperature=0).text

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 6
    assert all(texts.values())
    assert_account_is_true(runner)


def test_more_streams_than_sequences_wait_their_turn(smollm2):
    with LlamaRunner(smollm2, n_ctx=1024, n_seq_max=4) as runner:
        # its best tokens lead by 2.8 at least: what shares a step with a row moves that by up to 0.7
        streams = [runner.stream("1, 2, 3, 4,", max_tokens=4, temperature=0) for _ in range(9)]
        streams[0].close()
        assert streams[0].completion.finish_reason in ("cancelled", "length")
        texts = {"".join(chunk.text for chunk in stream) for stream in streams[1:]}
        assert len(texts) == 1
        wait_for(lambda: not runner.counters.running)
        assert runner.counters.finished == 9


def test_a_full_queue_refuses(smollm2):
    with LlamaRunner(smollm2, n_ctx=1024, max_running=1, max_waiting=2) as runner:
        streams = [runner.stream("Once", max_tokens=900, ignore_eos=True)]
        wait_for(lambda: runner.counters.running)
        streams += [runner.stream("Hello", max_tokens=4) for _ in range(2)]
        with pytest.raises(ContextBusyError, match=r"2 requests are waiting.*max_waiting"):
            runner.generate("Hello", max_tokens=1)
        streams.pop().close()
        wait_for(lambda: runner.counters.waiting < 2)
        streams.append(runner.stream("Hello", max_tokens=4))
        streams.pop(0).close()
        assert [len(list(stream)) > 0 for stream in streams] == [True, True]


def test_timeout_ends_with_what_there_is(runner):
    out = runner.generate("Count to a million: 1, 2, 3,", max_tokens=900, timeout=2.5, ignore_eos=True)
    assert out.finish_reason == "timeout"
    assert 0 < len(out.tokens) < 900
    prompt = runner.model.vocab.tokenize("word " * 2000)[:900]
    out = runner.generate(prompt, max_tokens=4, timeout=0.02)
    assert (out.finish_reason, out.text) == ("timeout", "")
    assert_account_is_true(runner)
    assert runner.generate(PARIS, params=GREEDY).text.startswith(" Paris")


def test_chat_template(runner):
    messages = [{"role": "user", "content": "Why is the sky blue?"}]
    text = runner.apply_chat_template(messages)
    assert text.endswith("<|im_start|>assistant\n")
    tokens = runner.chat_tokens(messages)
    assert runner.model.vocab.detokenize(tokens, unparse_special=True) == text
    assert "Rayleigh" in runner.generate(tokens, max_tokens=60, temperature=0).text


def test_special_tokens_in_a_plain_prompt_are_text(runner):
    vocab = runner.model.vocab
    tokens = vocab.tokenize("<|im_end|>", add_special=False)
    assert len(tokens) > 1
    assert runner.generate("a <|im_end|> b", max_tokens=1).usage.prompt_tokens > 5


def test_a_model_can_be_shared(smollm2):
    with Model(smollm2) as model:
        with LlamaRunner(model, n_ctx=512) as a, LlamaRunner(model, n_ctx=512) as b:
            assert a.generate(PARIS, params=GREEDY).text == b.generate(PARIS, params=GREEDY).text
        assert not model.closed


def test_use_after_close(smollm2):
    runner = LlamaRunner(smollm2, n_ctx=512)
    stream = runner.stream("Hello", max_tokens=50)
    next(stream)
    runner.close()
    runner.close()
    for call in (
        lambda: runner.generate("x"),
        lambda: runner.stream("x"),
        lambda: runner.generate_stateful("x"),
        lambda: runner.generate_stateless("x"),
        runner.get_context_info,
        runner.clear_context,
        lambda: runner.apply_chat_template([]),
        lambda: runner.chat_tokens([]),
        lambda: next(stream),
        runner.__enter__,
    ):
        with pytest.raises(ClosedError):
            call()
    assert repr(runner) == "<LlamaRunner closed>"
    with pytest.raises(ClosedError, match="closed while this generation was under way"):
        _ = stream.completion


def test_quick(smollm2):
    assert quick.generate_once(smollm2, PARIS, 4, temperature=0).startswith(" Paris")
