"""ContextBuilder: what fits, what goes, that the account is true, and that the prefix stays."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_runner import errors
from llama_runner.core import ChatTemplate, Model
from llama_runner.models import resolve_model
from llama_runner.prompts import BuiltContext, ContextBuilder
from llama_runner.prompts._conversation import groups, turns

pytestmark = pytest.mark.real_model

Messages = list[dict[str, Any]]
TEMPLATES = Path(__file__).resolve().parent.parent / "vendor" / "llama.cpp" / "models" / "templates"
# the model's own, ones with tools at different places, and two that are strict about the order of roles
FILES = (
    "",
    "Qwen-Qwen2.5-7B-Instruct",
    "meta-llama-Llama-3.1-8B-Instruct",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "google-gemma-2-2b-it",
)
TOOL = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Finds pages.",
        "parameters": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
    },
}


@functools.cache
def model() -> Model:
    return Model(resolve_model("smollm2-135m"), vocab_only=True)


@functools.cache
def chat_template(name: str = "") -> ChatTemplate:
    return ChatTemplate(model(), (TEMPLATES / f"{name}.jinja").read_text("utf-8") if name else None)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def call(number: int, result: str) -> Messages:
    call_id = f"call{number:05}"  # nine letters and digits: Mistral's template takes no others
    function = {"name": "search", "arguments": f'{{"q": "sea {number}"}}'}
    return [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "id": call_id, "function": function}],
        },
        {"role": "tool", "content": result, "tool_call_id": call_id, "name": "search"},
    ]


def talk(n: int, words: int = 20) -> Messages:
    """n turns, the last of them without an answer."""
    messages = []
    for i in range(n):
        messages += [
            user(f"Question {i}?" + " the sea" * words),
            assistant(f"Answer {i}." + " is wide" * words),
        ]
    return messages[:-1]


def counted(template: ChatTemplate, built: BuiltContext) -> int:
    """Tokens of what was built, counted without the builder."""
    text = template.apply(built.messages, tools=built.tools)
    assert text == built.prompt
    tokens = template.model.vocab.tokenize(text, add_special=True, parse_special=True)
    assert tokens.tolist() == built.tokens.tolist()
    return len(tokens)


def check_account(template: ChatTemplate, built: BuiltContext) -> None:
    total = counted(template, built)
    assert built.n_tokens == built.report.total == total == sum(built.report.parts.values())
    assert total <= built.report.budget


def check_calls(messages: Messages) -> None:
    """Each result comes after its call, each call has its result."""
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            assert message["tool_call_id"] in waiting
            waiting.remove(message["tool_call_id"])
        else:
            assert not waiting
            waiting = [call["id"] for call in message.get("tool_calls") or ()]
    assert not waiting


# ------------------------------------------------------------------------------------------- what goes in


def test_where_everything_stands() -> None:
    built = (
        ContextBuilder(chat_template(), 2000)
        .system("Be terse.")
        .memory("Her name is Ada.", pinned=True)
        .memory("She likes tea.", score=0.2)
        .memory("She sails.\nOften.", score=0.9)
        .tool_result("12 degrees", name="weather")
        .tool_result("no wind")
        .history([user("Hi."), assistant("Hello."), user("Shall I sail?")])
        .build()
    )
    assert built.messages == [
        {"role": "system", "content": "Be terse.\n\nRemember:\n- Her name is Ada."},
        user("Hi."),
        assistant("Hello."),
        user(
            "Shall I sail?\n\nTool results:\n\nweather:\n12 degrees\n\nno wind\n\n"
            "Possibly relevant, from memory:\n- She likes tea.\n- She sails.\n  Often."
        ),
    ]
    check_account(chat_template(), built)
    assert not built.report.cut and not built.dropped and not built.report.trimmed
    assert built.report.included == {
        "tools": 0, "pinned": 1, "history": 2, "turn": 1, "memories": 2, "tool_results": 2,
    }  # fmt: skip
    assert not built.tokens.flags.writeable


@pytest.mark.parametrize("name", FILES)
def test_the_account_is_true_with_each_template(name: str) -> None:
    template = chat_template(name)
    with_tools = template.capabilities["supports_tools"]
    builder = ContextBuilder(template, 900 if with_tools else 500, target=0.6)
    builder.system("Be terse, and kind.").memory("Ada", pinned=True)
    history: Messages = []
    if with_tools:
        builder.tools([TOOL])
    trims = 0
    for i in range(8):
        history.append(user(f"Question {i}? " + "sea " * 30))
        if with_tools:
            history += call(i, f"result {i} " * 20)
        builder.clear().memory(f"memory {i}").tool_result("data")
        built = builder.history(history).build()
        check_account(template, built)
        check_calls(built.messages)
        assert all(n >= 0 for n in built.report.parts.values()), built.report
        assert built.report.notes == ()
        assert (built.report.parts["tools"] > 40) == with_tools
        trims += built.report.trimmed
        history.append(assistant("answer " * 30))
    assert trims >= 1
    assert built.report.parts["history"] > 0


def test_parts_are_what_they_add() -> None:
    vocab, template = model().vocab, chat_template()

    def n(text: str) -> int:
        return len(vocab.tokenize(text, add_special=False, parse_special=True))

    built = ContextBuilder(template, 2000).system("Be terse.").history(talk(3)).memory("tea").build()
    parts = built.report.parts
    assert parts["system"] == n("Be terse.")
    assert parts["turn"] == n(talk(3)[-1]["content"])
    assert parts["memories"] == n("\n\nPossibly relevant, from memory:\n- tea")
    old = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in talk(3)[:-1])
    assert parts["history"] == n(old)
    assert parts["template"] == n(
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
    )


def test_results_of_calls_and_headings() -> None:
    template = chat_template("Qwen-Qwen2.5-7B-Instruct")
    asked = [user("Weather?"), call(1, "")[0]]
    builder = (
        ContextBuilder(template, 2000, headings={"memories": "Aus dem Gedächtnis:"})
        .tools([TOOL])
        .history(asked)
    )
    built = builder.tool_result("12 degrees", call_id="call00001").memory("tea").build()
    assert built.messages[-1] == {"role": "tool", "content": "12 degrees", "tool_call_id": "call00001"}
    assert built.messages[0] == user("Weather?\n\nAus dem Gedächtnis:\n- tea")
    check_account(template, built)
    assert built.report.parts["tool_results"] > 3
    with pytest.raises(
        errors.InvalidArgumentError, match=r"call_id='call00009'\): the history ends with no such call"
    ):
        builder.tool_result("x", call_id="call00009").build()


def test_parts_of_content_and_template_keywords() -> None:
    parts = [{"type": "text", "text": "Hello"}]
    template = ChatTemplate(model(), "{{ mood }}{% for m in messages %}[{{ m.content }}]{% endfor %}")
    built = (
        ContextBuilder(template, 100, mood="glad")
        .history([user("a") | {"content": parts}])
        .memory("tea")
        .build()
    )
    assert built.prompt.startswith("glad[Hello")
    assert "tea" in built.prompt
    assert parts == [{"type": "text", "text": "Hello"}]


def test_a_context_of_memories_alone() -> None:
    built = ContextBuilder(chat_template(), 200).memory("tea").build()
    assert built.messages == [user("Possibly relevant, from memory:\n- tea")]
    check_account(chat_template(), built)
    built = ContextBuilder(chat_template(), 200).system("Greet.").build()
    assert [m["role"] for m in built.messages] == ["system"]
    check_account(chat_template(), built)


def test_building_again_is_the_same() -> None:
    builder = (
        ContextBuilder(chat_template(), 500).history(talk(20)).memory("a", score=1).tool_result("x " * 900)
    )
    first, again = builder.build(), builder.build()
    assert first.prompt == again.prompt
    assert first.report.trimmed and not again.report.trimmed


# ------------------------------------------------------------------------------------------- what goes out


def common(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> int:
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def test_the_prefix_stays_for_many_turns() -> None:
    template, budget = chat_template(), 1000
    system = "You are terse. " * 10
    builder = ContextBuilder(template, budget).system(system)

    def naive(history: Messages) -> np.ndarray[Any, Any]:
        """Drops the oldest turn while it is too much: the window that everyone writes first."""
        kept = list(history)
        while True:
            text = template.apply([{"role": "system", "content": system}, *kept])
            tokens = model().vocab.tokenize(text, add_special=True, parse_special=True)
            if len(tokens) <= budget:
                return tokens
            kept = kept[2:]

    computed, computed_naive, trims, breaks = 0, 0, [], []
    before = before_naive = np.zeros(0, np.int32)
    history: Messages = []
    for i in range(30):
        history.append(user(f"Question {i}? " + "the sea " * 20))
        builder.clear().memory(
            f"memory of turn {i}"
        )  # what changes each turn does not touch what is before it
        built = builder.history(history).build()
        check_account(template, built)
        same = common(before, built.tokens)
        computed += built.n_tokens - same
        if built.report.trimmed:
            trims.append(i)
            assert built.n_tokens <= 0.75 * budget
            assert built.n_tokens > 0.5 * budget, "more was cut than was asked for"
        elif i:
            # all that was before this turn's question is a prefix of this one
            assert same >= len(before) - 25
        if i and same < len(before) // 2:
            breaks.append(i)
        before = built.tokens
        plain = naive(history)
        computed_naive += len(plain) - common(before_naive, plain)
        before_naive = plain
        history.append(assistant(f"Answer {i}. " + "is wide " * 20))
    assert trims == breaks
    assert 2 <= len(trims) <= 8
    assert computed < 0.4 * computed_naive, (computed, computed_naive)


def test_history_goes_in_whole_turns_the_oldest_first() -> None:
    history: Messages = []
    for i in range(6):
        history += [
            user(f"Q{i} " + "sea " * 20),
            *call(2 * i, "data " * 30),
            *call(2 * i + 1, "more " * 30),
            assistant("A"),
        ]
    history.append(user("Last?"))
    template = chat_template("Qwen-Qwen2.5-7B-Instruct")
    built = ContextBuilder(template, 600).system("s").tools([TOOL]).history(history).build()
    check_account(template, built)
    kept = built.messages[1:]
    assert kept == history[len(history) - len(kept) :]
    assert kept[0]["role"] == "user" and 1 < len(kept) < len(history)
    check_calls(kept)
    assert built.dropped == history[: len(history) - len(kept)]
    assert [c.messages for c in built.report.cut] == [
        tuple(range(6 * i, 6 * i + 6)) for i in range(len(built.dropped) // 6)
    ]
    assert {(c.part, c.action) for c in built.report.cut} == {("history", "dropped")}
    assert built.report.cut[0].what.startswith("Q0 sea")
    assert "over the budget of 600" in built.report.cut[0].reason
    assert f"{built.n_tokens} of 600 tokens" in str(built.report)


def test_a_history_that_goes_back_behind_the_cut_begins_anew() -> None:
    builder = ContextBuilder(chat_template(), 500)
    long = talk(20)
    dropped = len(builder.history(long).build().dropped)
    assert dropped > 10
    # the same conversation, gone on: nothing comes back
    more = [*long, assistant("x"), user("y")]
    assert builder.history(more).build().dropped == long[:dropped]
    # rolled back to before the cut, or another one: all that fits
    assert builder.history(long[:3]).build().dropped == []
    assert builder.history(long).build().report.trimmed
    changed = [user("Other"), *long[1:]]
    assert builder.history(changed).build().report.trimmed


def test_long_results_lose_their_middle() -> None:
    text = "".join(f"line {i}\n" for i in range(3000))
    vocab = model().vocab
    builder = ContextBuilder(chat_template(), 1000).limit("tool_results", maximum=120)
    built = builder.history([user("x")]).tool_result(text, name="read").build()
    content = built.messages[0]["content"]
    assert "read:\nline 0\nline 1\n" in content and content.endswith("\nline 2998\nline 2999\n")
    (marker,) = (line for line in content.split("\n") if "left out" in line)
    shown = content.partition("read:\n")[2]
    n = int(marker.split()[1])
    head, tail = shown.split(f"\n{marker}\n")
    assert len(head) + n + len(tail) == len(text) and text.startswith(head) and text.endswith(tail)
    assert 100 < len(vocab.tokenize(shown, add_special=False)) <= 120
    (cut,) = built.report.cut
    assert (cut.part, cut.action) == ("tool_results", "shortened")
    assert "longer than the maximum of 120" in cut.reason
    assert cut.tokens > 10_000


def test_results_give_way_before_the_question_does() -> None:
    builder = (
        ContextBuilder(chat_template(), 400)
        .history([*talk(3)])
        .limit("tool_results", minimum=40, maximum=300)
    )
    builder.tool_result("old " * 500).tool_result("new " * 500)
    built = builder.build()
    check_account(chat_template(), built)
    assert len(built.messages) == 1, "the history goes first, as it has the lowest priority"
    assert built.messages[0]["content"].startswith(talk(3)[-1]["content"])
    content = built.messages[0]["content"]
    assert 0 < content.count("old ") < content.count("new ")
    assert built.n_tokens > 350, "more was cut than was needed"
    kept = (
        ContextBuilder(chat_template(), 400)
        .history(talk(3))
        .limit("history", priority=9)
        .tool_result("x " * 500)
    )
    kept.limit("tool_results", minimum=10)
    assert len(kept.build().messages) == 5


def test_a_turn_of_many_calls() -> None:
    """An agent's loop: results among the messages are shortened, then the earliest calls go, never halves of them."""
    template = chat_template("Qwen-Qwen2.5-7B-Instruct")
    builder = ContextBuilder(template, 1500).tools([TOOL]).system("s").limit("tool_results", minimum=40)
    history, sizes, trims = [user("Find all.")], [], 0
    before = np.zeros(0, np.int32)
    for i in range(25):
        history += call(i, f"page {i} " + "of the sea " * 60)
        built = builder.history(history).build()
        check_account(template, built)
        check_calls(built.messages)
        assert built.messages[1] == user("Find all.")
        assert built.messages[-1]["content"].startswith(f"page {i} ")
        sizes.append(built.n_tokens)
        trims += built.report.trimmed
        if built.report.trimmed:
            assert built.n_tokens <= 1125
        elif i:
            assert common(before, built.tokens) >= len(before) - 5
        before = built.tokens
    assert 2 <= trims <= 10
    assert {(c.part, c.action) for c in built.report.cut} == {
        ("turn", "dropped"),
        ("tool_results", "shortened"),
    }
    # when the turn is over, what was cut of it stays cut
    history += [assistant("Done."), user("Thanks.")]
    after = builder.history(history).build()
    check_calls(after.messages)
    assert common(before, after.tokens) >= len(before) - 5


def test_the_best_memories_stay() -> None:
    builder = ContextBuilder(chat_template(), 1000).history([user("x")]).limit("memories", maximum=60)
    scores = list(range(20))
    random.Random(1).shuffle(scores)
    for score in scores:
        builder.memory(f"memory number {score}", score=score)
    built = builder.build()
    lines = built.messages[0]["content"].splitlines()[3:]
    assert lines == [f"- memory number {i}" for i in range(20 - len(lines), 20)], "the best one last"
    assert 4 < len(lines) < 12
    assert built.report.parts["memories"] <= 60 + 2
    assert [c.what for c in built.report.cut] == [f"memory number {i}" for i in scores if i < 20 - len(lines)]
    assert "score 3: less relevant" in next(c.reason for c in built.report.cut if c.what == "memory number 3")
    # where the rest leaves little room, fewer; but never below the minimum
    small = (
        ContextBuilder(chat_template(), 100)
        .limit("memories", minimum=20, maximum=90)
        .history([user("sea " * 40)])
    )
    for score in scores:
        small.memory(f"memory number {score}", score=score)
    built = small.build()
    check_account(chat_template(), built)
    assert built.report.parts["memories"] >= 20 and "memory number 19" in built.prompt
    with pytest.raises(errors.ContextOverflowError):
        small.limit("memories", minimum=60).build()


def test_bounds_of_the_history() -> None:
    builder = ContextBuilder(chat_template(), 4000).limit("history", maximum=400).system("s")
    trims = []
    for n in range(1, 40):
        built = builder.history(talk(n, words=5)).build()
        check_account(chat_template(), built)
        assert built.report.parts["history"] <= 400
        if built.report.trimmed:
            trims.append(n)
            assert built.report.parts["history"] <= 300
            assert "the maximum of 400" in built.report.cut[-1].reason
    assert 2 <= len(trims) <= 9
    # with a minimum it stays, and the results give way
    builder = (
        ContextBuilder(chat_template(), 600).limit("history", minimum=300).limit("tool_results", maximum=500)
    )
    built = builder.history(talk(6)).tool_result("sea " * 600).build()
    check_account(chat_template(), built)
    assert built.report.parts["history"] >= 250


def test_forgetting_and_replacing() -> None:
    builder = (
        ContextBuilder(chat_template(), 500)
        .history([user("x")])
        .memory("a")
        .memory(" a ", score=2)
        .memory("b")
    )
    assert builder.build().messages[0]["content"].count("- a") == 1
    builder.memory("a", pinned=True).forget("b").tool_result("r")
    assert builder.build().messages[0] == {"role": "system", "content": "Remember:\n- a"}
    assert [m["content"] for m in builder.clear().build().messages] == ["Remember:\n- a", "x"]
    with pytest.raises(errors.InvalidArgumentError, match="there is no memory 'b'"):
        builder.forget("b")
    assert repr(builder) == "ContextBuilder(budget=500, 1 messages, 1 memories, 0 tool results)"


# ------------------------------------------------------------------------------------------- any conversation

CONVERSATIONS = st.lists(
    st.tuples(st.integers(0, 60), st.lists(st.integers(0, 200), max_size=3), st.integers(0, 60)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    plan=CONVERSATIONS,
    budget=st.integers(60, 1500),
    target=st.floats(0.1, 1.0),
    memories=st.lists(st.tuples(st.integers(0, 30), st.floats(-1, 1), st.booleans()), max_size=6),
    results=st.lists(st.integers(0, 400), max_size=3),
)
def test_any_conversation(
    plan: list[tuple[int, list[int], int]], budget: int, target: float, memories: Any, results: list[int]
) -> None:
    template = chat_template("Qwen-Qwen2.5-7B-Instruct")
    builder = ContextBuilder(template, budget, target=target).system("s")
    for i, (words, score, pinned) in enumerate(memories):
        builder.memory(f"m{i} " + "tea " * words, score=score, pinned=pinned)
    for words in results:
        builder.tool_result("data " * words)
    history: Messages = []
    for i, (words, calls, answer) in enumerate(plan):
        history.append(user(f"q{i} " + "sea " * words))
        for j, n in enumerate(calls):
            history += call(10 * i + j, "page " * n)
        try:
            built = builder.history(history).build()
        except errors.ContextOverflowError as error:
            assert error.n_tokens > error.n_ctx == budget  # noqa: PT017
            assert f"{error.n_tokens} tokens, and the budget is {budget}" in str(error)  # noqa: PT017
        else:
            check_account(template, built)
            check_calls(built.messages)
            asked = [m["content"] for m in built.messages if m["role"] == "user"]
            assert asked[-1].startswith(history[turns(history)[-1][0]]["content"])
            assert len(built.dropped) + len(built.messages) - (built.messages[0]["role"] == "system") == len(
                history
            )
        history.append(assistant("a " * answer))


# ------------------------------------------------------------------------------------------- refusals


def test_a_budget_too_small_names_both_numbers_and_changes_nothing() -> None:
    builder = ContextBuilder(chat_template(), 60).history(talk(5, words=3))
    before = builder.build()
    builder.system("sea " * 100)
    with pytest.raises(
        errors.ContextOverflowError, match=r"takes (\d+) tokens, and the budget is 60: .*system 10\d"
    ) as caught:
        builder.build()
    assert (caught.value.n_ctx, caught.value.n_tokens > 100) == (60, True)
    assert isinstance(caught.value, ValueError)
    again = builder.system("").build()
    assert (again.prompt, again.report.trimmed) == (before.prompt, False)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("text", "history is a list of messages, not str"),
        ({"role": "user"}, "history is a list of messages, not dict"),
        (3, "history is a list of messages, not int"),
        (["a"], r"history\[0\] is a dict"),
        (
            [user("a"), {"role": "system", "content": "b"}],
            r"history\[1\] has role 'system': give that text to",
        ),
        ([{"role": "robot", "content": "b"}], r"history\[0\] has role 'robot': it is one of 'user'"),
        ([user("a") | {"content": 3}], r"history\[0\]: content is a str or a list of parts, not int"),
        (
            [{"role": "tool", "content": "r"}],
            r"history\[0\] is a tool's result, and no message with its call",
        ),
        ([user("a"), assistant("b"), {"role": "tool", "content": "r"}], r"history\[2\] is a tool's result"),
        (
            [user("a"), call(1, "")[0], call(2, "r")[1]],
            r"history\[2\] answers the call 'call00002': .* 'call00001'",
        ),
        ([assistant("b") | {"tool_calls": 3}], r"history\[0\]: tool_calls is a list, not int"),
        ([user("a") | {"x": {1}}], "messages are JSON values"),
    ],
)
def test_histories_that_are_none(messages: Any, says: str) -> None:
    builder = ContextBuilder(chat_template(), 100).history([user("before")])
    with pytest.raises(errors.UsageError, match=says) as caught:
        builder.history(messages)
    assert isinstance(caught.value, (ValueError, TypeError))
    assert builder.build().messages == [user("before")]


@pytest.mark.parametrize("text", ["a\ud800b", "a\0b"])
def test_text_that_no_model_reads(text: str) -> None:
    builder = ContextBuilder(chat_template(), 100).history([user(text)])
    with pytest.raises(errors.InvalidArgumentError, match=r"surrogate|NUL"):
        builder.build()
    assert builder.history([user("a")]).build().messages == [user("a")]


def test_a_result_that_is_hardly_longer_than_the_marker_stays() -> None:
    builder = (
        ContextBuilder(chat_template(), 200).limit("tool_results", minimum=1, maximum=8).history([user("x")])
    )
    built = builder.tool_result("12 degrees, no wind, no rain").build()
    assert "12 degrees, no wind, no rain" in built.prompt and not built.report.cut
    assert "left out" in builder.clear().tool_result("degrees " * 100).build().prompt


def test_what_a_template_refuses_is_said() -> None:
    builder = ContextBuilder(chat_template("google-gemma-2-2b-it"), 500).history([user("a"), user("b")])
    with pytest.raises(errors.InvalidArgumentError, match="must alternate"):
        builder.build()


def test_bad_arguments() -> None:
    template = chat_template()
    with pytest.raises(errors.ArgumentTypeError, match="template is a ChatTemplate, not str"):
        ContextBuilder("{{ x }}", 100)  # type: ignore[arg-type]
    for budget in (0, -1, 2**31):
        with pytest.raises(errors.InvalidArgumentError, match="budget"):
            ContextBuilder(template, budget)
    with pytest.raises(errors.ArgumentTypeError, match="budget"):
        ContextBuilder(template, 10.0)  # type: ignore[arg-type]
    for target in (0.0, 1.1, float("nan")):
        with pytest.raises(errors.InvalidArgumentError, match="target"):
            ContextBuilder(template, 100, target=target)
    with pytest.raises(errors.UnknownParameterError, match="did you mean 'memories'"):
        ContextBuilder(template, 100, headings={"memory": "x"})
    for name in ("tools", "messages", "add_generation_prompt"):
        with pytest.raises(errors.InvalidArgumentError, match=name):
            ContextBuilder(template, 100, **{name: []})
    builder = ContextBuilder(template, 100)
    with pytest.raises(errors.InvalidArgumentError, match="nothing to build"):
        builder.build()
    with pytest.raises(
        errors.UnknownParameterError, match="limit has no parameter 'memory': did you mean 'memories'"
    ):
        builder.limit("memory")
    with pytest.raises(errors.InvalidArgumentError, match="minimum=50 is above maximum=20"):
        builder.limit("memories", minimum=50)
    with pytest.raises(errors.InvalidArgumentError, match="memory is empty"):
        builder.memory(" ")
    with pytest.raises(errors.InvalidArgumentError, match="score"):
        builder.memory("a", score=float("nan"))
    with pytest.raises(errors.ArgumentTypeError, match="pinned"):
        builder.memory("a", pinned=1)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidArgumentError, match="call_id is empty"):
        builder.tool_result("a", call_id="")
    for method in (builder.system, builder.memory, builder.tool_result):
        with pytest.raises(errors.ArgumentTypeError, match="it is a str"):
            method(3)  # type: ignore[operator]
        with pytest.raises(errors.InvalidArgumentError, match="NUL"):
            method("a\0b")  # type: ignore[operator]
    with pytest.raises(errors.UsageError):
        builder.tools([{"type": "function", "function": {"name": "f", "parameters": {"$ref": "#"}}}])


def test_groups_and_turns() -> None:
    history = [assistant("Hi"), user("a"), *call(1, "r"), assistant("b"), user("c"), user("d")]
    assert turns(history) == [range(0, 1), range(1, 5), range(5, 6), range(6, 7)]
    assert groups(history, range(1, 5)) == [range(1, 2), range(2, 4), range(4, 5)]
    assert turns([]) == []
