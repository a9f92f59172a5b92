"""``ContextBuilder``: system text, memories, tool results and history, fitted into a number of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Self

from llama_runner._check import check_bool, check_float, check_int, check_text
from llama_runner._schema import check_tools
from llama_runner.core import ChatTemplate
from llama_runner.errors import ArgumentTypeError, ContextOverflowError, InvalidArgumentError, unknown_name
from llama_runner.prompts._conversation import Message, check_history, digest
from llama_runner.prompts._fitting import Limits, Memory, Offer, Plan, Result, fit
from llama_runner.prompts._tokens import TokenCounter
from llama_runner.prompts.context_report import BuiltContext

__all__ = ["ContextBuilder"]

MAX_BUDGET = 2**31 - 1
HEADINGS = {
    "pinned": "Remember:",
    "memories": "Possibly relevant, from memory:",
    "tool_results": "Tool results:",
}


class ContextBuilder:
    """Builds prompts of at most ``budget`` tokens, turn after turn, so that each begins as the one before.

    What is stable comes first: system text with the pinned memories, tools, history; what changes (other memories, tool
    results of this turn) stands at the end of the last user message. When it is too much, the history's oldest turns
    go, at once so many that ``target`` of the budget is left, and stay out: the next turns then find room without
    another cut, and the cached prefix holds. Tokens are those of the chat template's rendering, counted with the
    model's tokenizer.

    One builder serves one conversation, on one thread at a time. Other keywords go to ``ChatTemplate.apply``.
    """

    def __init__(
        self,
        template: ChatTemplate,
        budget: int,
        *,
        target: float = 0.75,
        headings: Mapping[str, str] | None = None,
        **template_kwargs: Any,
    ):
        if not isinstance(template, ChatTemplate):
            raise ArgumentTypeError(f"template is a ChatTemplate, not {type(template).__name__}")
        self.template = template
        self.budget = check_int("budget", budget, 1, MAX_BUDGET)
        self.target = check_float("target", target, 0.1, 1.0)
        self._headings = dict(HEADINGS)
        for name, heading in (headings or {}).items():
            if name not in HEADINGS:
                raise unknown_name(name, HEADINGS, "headings")
            self._headings[name] = _text(f"headings[{name!r}]", heading)
        if "add_generation_prompt" in template_kwargs:
            raise InvalidArgumentError("add_generation_prompt: a context always ends where the answer begins")
        for name, method in (("tools", "tools"), ("messages", "history")):
            if name in template_kwargs:
                raise InvalidArgumentError(f"{name}: give them to ContextBuilder.{method}")
        self._counter = TokenCounter(template, template_kwargs)
        self._limits = {
            "history": Limits(0, None, 1),
            "tool_results": Limits(
                min(self.budget, max(32, self.budget // 64)), max(32, self.budget // 4), 2
            ),
            "memories": Limits(0, max(1, self.budget // 5), 3),
        }
        self._system = ""
        self._tools: list[Message] | None = None
        self._memories: dict[str, Memory] = {}
        self._results: list[Result] = []
        self._history: list[Message] = []
        self._digests: list[bytes] = []
        self._plan = Plan()

    def limit(
        self,
        part: str,
        *,
        minimum: int | None = None,
        maximum: int | None = None,
        priority: int | None = None,
    ) -> Self:
        """Bounds in tokens, and who gives way first: parts of a lower ``priority`` do.

        ``history`` (without the last turn; 0, no maximum, priority 1), ``memories`` (those not pinned, together; 0, a
        fifth of the budget, 3), ``tool_results`` (each; a 64th of the budget or 32, a quarter of it, 2). None leaves a
        value as it is.
        """
        if part not in self._limits:
            raise unknown_name(part, self._limits, "limit")
        old = self._limits[part]
        new = Limits(
            old.minimum if minimum is None else check_int("minimum", minimum, 0, MAX_BUDGET),
            old.maximum if maximum is None else check_int("maximum", maximum, 1, MAX_BUDGET),
            old.priority if priority is None else check_int("priority", priority, -1000, 1000),
        )
        if new.maximum is not None and new.minimum > new.maximum:
            raise InvalidArgumentError(f"{part}: minimum={new.minimum} is above maximum={new.maximum}")
        self._limits[part] = new
        return self

    def system(self, text: str) -> Self:
        """The system text; it replaces the one before, is never cut, and may be empty."""
        self._system = _text("system", text)
        return self

    def tools(self, tools: Iterable[Mapping[str, Any]] | None) -> Self:
        """Descriptions of tools in OpenAI's form, for the chat template; never cut. None takes them away."""
        checked = [dict(tool) for tool in tools or ()]
        check_tools(checked)
        self._tools = checked or None
        return self

    def memory(self, text: str, *, score: float = 0.0, pinned: bool = False) -> Self:
        """A thing remembered: ``pinned`` ones stay, in the system message; of the others those with the best scores.

        The same text again replaces what was said of it.
        """
        text = _text("memory", text).strip()
        if not text:
            raise InvalidArgumentError("memory is empty")
        memory = Memory(text, check_float("score", score, -math.inf, math.inf), check_bool("pinned", pinned))
        if text in self._memories and self._memories[text].pinned != memory.pinned:
            del self._memories[text]  # it comes in at the end of its new part
        self._memories[text] = memory
        return self

    def forget(self, text: str) -> Self:
        """Takes a memory out, pinned or not. Raises InvalidArgumentError where there is none such."""
        text = _text("memory", text).strip()
        if text not in self._memories:
            raise InvalidArgumentError(f"there is no memory {text!r}")
        del self._memories[text]
        return self

    def tool_result(self, text: str, *, name: str = "", call_id: str | None = None) -> Self:
        """A result of this turn. With ``call_id`` it answers that call of the history's last message, as a message of
        its own; without, it stands in the last user message, under ``name``. Too long ones lose their middle."""
        call = None if call_id is None else _text("call_id", call_id)
        if call == "":
            raise InvalidArgumentError("call_id is empty: leave it out where there is no call")
        self._results.append(Result(_text("tool_result", text), _text("name", name), call))
        return self

    def history(self, messages: Iterable[Mapping[str, Any]]) -> Self:
        """All messages so far, oldest first, the user's last one among them; it replaces the history before.

        Raises InvalidArgumentError or ArgumentTypeError, naming the message, and then changes nothing.
        """
        checked = check_history(messages)
        digests = [digest(message) for message in checked]
        same = next(
            (i for i, (a, b) in enumerate(zip(self._digests, digests, strict=False)) if a != b),
            min(len(self._digests), len(digests)),
        )
        self._history, self._digests = checked, digests
        self._plan = self._plan.valid_until(same)
        return self

    def clear(self) -> Self:
        """Forgets what belongs to one turn: memories that are not pinned, and tool results."""
        self._memories = {text: memory for text, memory in self._memories.items() if memory.pinned}
        self._results.clear()
        return self

    def build(self) -> BuiltContext:
        """The conversation, cut to the budget. The same again until something is given or taken away.

        Raises ContextOverflowError with both numbers where what must stay is more than the budget (system, tools,
        pinned memories, the last turn, minima), and InvalidArgumentError for what the chat template refuses. Nothing is
        then changed.
        """
        offer = Offer(
            system=self._system,
            tools=self._tools,
            memories=tuple(self._memories.values()),
            results=tuple(self._results),
            history=tuple(self._history),
            headings=self._headings,
        )
        if not (offer.history or offer.system or offer.memories or offer.results):
            raise InvalidArgumentError("there is nothing to build a context of: give it a history first")
        fitted = fit(self._counter, offer, self._plan, self._limits, self.budget, self.target)
        if fitted.context is None:
            raise ContextOverflowError(fitted.why, fitted.total, self.budget)
        self._plan = fitted.plan
        return fitted.context

    def __repr__(self) -> str:
        return (
            f"ContextBuilder(budget={self.budget}, {len(self._history)} messages, {len(self._memories)} memories, "
            f"{len(self._results)} tool results)"
        )


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ArgumentTypeError(f"{name}={value!r}: it is a str, not {type(value).__name__}")
    return check_text(name, value).decode()
