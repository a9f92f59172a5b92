"""Fitting what a ``ContextBuilder`` was given into its budget: what goes first, how much at once, and the account."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from llama_runner.errors import InvalidArgumentError
from llama_runner.prompts._conversation import (
    Message,
    append_text,
    call_ids,
    groups,
    text_of,
    turns,
)
from llama_runner.prompts._tokens import TokenCounter
from llama_runner.prompts.context_report import PARTS, BuiltContext, ContextReport, Cut

__all__ = ["Fitted", "Limits", "Memory", "Offer", "Plan", "Result", "fit"]


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Tokens that a part has at least and at most, and who gives way first: those of a lower priority."""

    minimum: int
    maximum: int | None
    priority: int


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    text: str
    score: float
    pinned: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    text: str
    name: str
    call_id: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Offer:
    """What there is."""

    system: str
    tools: list[Message] | None
    memories: tuple[Memory, ...]
    results: tuple[Result, ...]
    history: tuple[Message, ...]
    headings: Mapping[str, str]


@dataclasses.dataclass(slots=True)
class Plan:
    """What of it goes in. The first two are kept from one build to the next, for the prefix to stay as it is."""

    dropped: frozenset[int] = frozenset()
    """Places in the history that are left out."""
    shortened: Mapping[int, int] = dataclasses.field(default_factory=dict)
    """Places in the history of tool results, and how many tokens they are shortened to."""
    memories: list[Memory] = dataclasses.field(default_factory=list)
    """The best first."""
    results: list[int] = dataclasses.field(default_factory=list)
    """How many tokens each result of this turn may have."""

    def valid_until(self, place: int) -> Plan:
        """The plan for a history that has changed from there on."""
        if self.dropped and max(self.dropped) >= place:  # it goes back behind the cut: begin anew
            return Plan()
        return Plan(self.dropped, {i: n for i, n in self.shortened.items() if i < place})


@dataclasses.dataclass(slots=True)
class Fitted:
    plan: Plan
    total: int
    context: BuiltContext | None
    why: str = ""


def fit(
    counter: TokenCounter, offer: Offer, kept: Plan, limits: Mapping[str, Limits], budget: int, target: float
) -> Fitted:
    """``offer`` within ``budget``, going on from the plan of the build before."""
    fitting = _Fitting(counter, offer, kept, limits, budget, target)
    fitting.trim()
    return fitting.finished()


class _Fitting:
    def __init__(
        self,
        counter: TokenCounter,
        offer: Offer,
        kept: Plan,
        limits: Mapping[str, Limits],
        budget: int,
        target: float,
    ):
        self.counter = counter
        self.offer = offer
        self.limits = limits
        self.budget = budget
        self.target = target
        self.old = kept
        found = turns(offer.history)
        self.older, self.turn = found[:-1], found[-1] if found else range(0)
        self.plan = Plan(kept.dropped, dict(kept.shortened))
        self.open_calls = call_ids(offer.history)
        for result in offer.results:
            if result.call_id is not None and result.call_id not in self.open_calls:
                raise InvalidArgumentError(
                    f"tool_result(call_id={result.call_id!r}): the history ends with no such call that is open; "
                    f"open are {', '.join(map(repr, self.open_calls)) or 'none'}"
                )
        most = limits["tool_results"].maximum or budget
        self.plan.results = [most] * len(offer.results)
        self.plan.memories = self.best_memories()
        self.rendered = counter.render(*self.conversation(self.plan))

    # ------------------------------------------------------------------------------------------ what goes in

    def best_memories(self) -> list[Memory]:
        """Those that are not pinned, the best first, as many as their maximum lets in; a later one before its equal."""
        loose = [memory for memory in reversed(self.offer.memories) if not memory.pinned]
        loose.sort(key=lambda memory: -memory.score)
        most = self.limits["memories"].maximum
        chosen: list[Memory] = []
        for memory in loose:
            if most is None or self.counter.text(self.memory_block([*chosen, memory])) <= most:
                chosen.append(memory)
        return chosen

    def memory_block(self, memories: Iterable[Memory]) -> str:
        # the best one last, next to what is asked
        return _listed(self.offer.headings["memories"], [memory.text for memory in memories][::-1])

    def result_text(self, plan: Plan, i: int) -> str:
        return self.counter.shorten(self.offer.results[i].text, plan.results[i])

    def volatile(self, plan: Plan, parts: frozenset[str]) -> str:
        """What stands at the end of the last user message."""
        blocks = []
        if "tool_results" in parts:
            loose = [(i, result) for i, result in enumerate(self.offer.results) if result.call_id is None]
            texts = [
                f"{result.name}:\n{text}" if result.name else text
                for i, result in loose
                for text in [self.result_text(plan, i)]
            ]
            if texts:
                blocks.append("\n\n".join([self.offer.headings["tool_results"], *texts]))
        if "memories" in parts and plan.memories:
            blocks.append(self.memory_block(plan.memories))
        return "\n\n".join(blocks)

    def conversation(
        self, plan: Plan, parts: frozenset[str] = frozenset(PARTS)
    ) -> tuple[list[Message], list[Message] | None]:
        """The messages of the plan, or those that the named parts of it make; and the tools."""
        offer = self.offer
        pinned = [memory.text for memory in offer.memories if memory.pinned]
        messages: list[Message] = []
        if offer.system or pinned:
            texts = [
                offer.system if "system" in parts else "",
                _listed(offer.headings["pinned"], pinned) if "pinned" in parts else "",
            ]
            messages.append({"role": "system", "content": "\n\n".join(text for text in texts if text)})
        places = [*(i for turn in self.older for i in turn if "history" in parts)]
        places += [i for i in self.turn if "turn" in parts]
        messages += [self.message(plan, i) for i in places if i not in plan.dropped]
        if "turn" not in parts:
            messages.append({"role": "user", "content": ""})
        elif "tool_results" in parts:
            messages += [
                {
                    "role": "tool",
                    "content": self.result_text(plan, i),
                    "tool_call_id": result.call_id,
                    **({"name": result.name} if result.name else {}),
                }
                for i, result in enumerate(offer.results)
                if result.call_id is not None
            ]
        block = self.volatile(plan, parts)
        if block:
            last = next((i for i in reversed(range(len(messages))) if messages[i]["role"] == "user"), None)
            if last is None:
                messages.append({"role": "user", "content": block})
            else:
                messages[last] = append_text(messages[last], block)
        return messages, offer.tools if "tools" in parts else None

    def message(self, plan: Plan, place: int) -> Message:
        message = self.offer.history[place]
        if message["role"] != "tool":
            return message
        most = min(self.limits["tool_results"].maximum or self.budget, plan.shortened.get(place, self.budget))
        text = text_of(message)
        short = self.counter.shorten(text, most)
        return message if short == text else {**message, "content": short}

    # ------------------------------------------------------------------------------------------ what goes out

    @property
    def total(self) -> int:
        return len(self.rendered[1])

    def cost(self, place: int) -> int:
        """About what a message of the history takes; exact numbers come of rendering."""
        return self.counter.text(text_of(self.message(self.plan, place))) + self.counter.message_overhead()

    def trim(self) -> None:
        """Cuts until the whole is within the budget, or nothing more can be cut."""
        most = self.limits["history"].maximum
        if most is not None and self.history_tokens() > most:
            while self.history_tokens() > most * self.target and self.cut_history(
                int(self.history_tokens() - most * self.target)
            ):
                self.render()
        # what stays cut is cut by a big step, down to the target; what is chosen anew each turn, no more than is needed
        target = int(self.budget * self.target)
        steps: dict[str, list[tuple[Callable[[int], bool], int]]] = {
            "history": [(self.cut_history, target)],
            "tool_results": [(self.cut_results, self.budget), (self.cut_turn, target)],
            "memories": [(self.cut_memories, self.budget)],
        }
        order = sorted(steps, key=lambda part: self.limits[part].priority)
        for cut, goal in [
            *(step for part in order for step in steps[part]),
            (self.cut_last_results, self.budget),
        ]:
            if self.total <= self.budget:
                return
            while self.total > goal and cut(self.total - goal):
                self.render()

    def render(self) -> None:
        self.rendered = self.counter.render(*self.conversation(self.plan))

    def history_tokens(self) -> int:
        """What the history takes: the rendering with it, less that without."""
        if not any(i not in self.plan.dropped for turn in self.older for i in turn):
            return 0
        without = frozenset(PARTS) - {"history"}
        return self.total - self.counter.rendered(*self.conversation(self.plan, without))

    def cut_history(self, excess: int) -> bool:
        """Drops the oldest turns, whole ones, that have at least ``excess`` tokens."""
        dropped = set(self.plan.dropped)
        left = [turn for turn in self.older if not dropped.issuperset(turn)]
        spare = sum(self.cost(i) for turn in left for i in turn) - self.limits["history"].minimum
        cut = 0
        for turn in left:
            cost = sum(self.cost(i) for i in turn)
            if cut >= excess or cut + cost > spare:
                break
            dropped.update(turn)
            cut += cost
        self.plan.dropped = frozenset(dropped)
        return cut > 0

    def cut_results(self, excess: int) -> bool:
        """Shortens this turn's results, the earlier ones first, no further than their minimum."""
        cut = 0
        least = self.limits["tool_results"].minimum
        for i in range(len(self.plan.results)):
            now = self.counter.text(self.result_text(self.plan, i))
            if cut < excess and now > least:
                self.plan.results[i] = max(least, now - (excess - cut))
                cut += now - self.counter.text(self.result_text(self.plan, i))
        return cut > 0

    def cut_turn(self, excess: int) -> bool:
        """Of the last turn, before its last group: shortens results to their minimum, then drops calls with results."""
        earlier = groups(self.offer.history, self.turn)[:-1] if self.turn else []
        return self.shorten_results(earlier, excess, to_minimum=True) or self.cut_calls(earlier, excess)

    def cut_last_results(self, excess: int) -> bool:
        """The last resort: shortens the results that the model is to read next, as far as is needed."""
        last = groups(self.offer.history, self.turn)[-1:] if self.turn else []
        return self.shorten_results(last, excess, to_minimum=False)

    def shorten_results(self, places: Iterable[range], excess: int, *, to_minimum: bool) -> bool:
        cut = 0
        least = self.limits["tool_results"].minimum
        for i in (i for group in places for i in group):
            if self.offer.history[i]["role"] != "tool" or i in self.plan.dropped or cut >= excess:
                continue
            now = self.counter.text(text_of(self.message(self.plan, i)))
            if now > least:
                limit = least if to_minimum else max(least, now - (excess - cut))
                self.plan.shortened = {**self.plan.shortened, i: limit}
                cut += now - self.counter.text(text_of(self.message(self.plan, i)))
        return cut > 0

    def cut_memories(self, excess: int) -> bool:
        """Drops the memories of the lowest scores, as long as their minimum is left."""
        memories = self.plan.memories
        now = before = self.counter.text(self.memory_block(memories))
        while memories and before - now < excess:
            less = self.counter.text(self.memory_block(memories[:-1]))
            if less < self.limits["memories"].minimum:
                break
            memories, now = memories[:-1], less
        changed = len(memories) < len(self.plan.memories)
        self.plan.memories = memories
        return changed

    def cut_calls(self, earlier: Iterable[range], excess: int) -> bool:
        """Drops what came after the user's message, the oldest first; a call goes with its results."""
        cut = 0
        dropped = set(self.plan.dropped)
        for group in earlier:
            if cut >= excess:
                break
            if self.offer.history[group[0]]["role"] != "user" and not dropped.issuperset(group):
                cut += sum(self.cost(i) for i in group)
                dropped.update(group)
        self.plan.dropped = frozenset(dropped)
        return cut > 0

    # ------------------------------------------------------------------------------------------ the account

    def finished(self) -> Fitted:
        parts, notes = self.account()
        if self.total > self.budget:
            must = ", ".join(f"{part} {n}" for part, n in parts.items() if n)
            why = f"what must stay takes {self.total} tokens, and the budget is {self.budget}: {must}"
            return Fitted(self.old, self.total, None, why)
        prompt, tokens = self.rendered
        messages, tools = self.conversation(self.plan)
        tokens.setflags(write=False)
        report = ContextReport(
            budget=self.budget,
            total=self.total,
            parts=parts,
            included=self.included(),
            cut=tuple(self.cuts()),
            trimmed=self.plan.dropped != self.old.dropped or self.plan.shortened != self.old.shortened,
            notes=tuple(notes),
        )
        lost = [dict(self.offer.history[i]) for i in sorted(self.plan.dropped)]
        return Fitted(
            Plan(self.plan.dropped, self.plan.shortened),
            self.total,
            BuiltContext([dict(m) for m in messages], tools, prompt, tokens, lost, report),
        )

    def account(self) -> tuple[dict[str, int], list[str]]:
        """Tokens that each part adds, the history last: short renderings, and the one that there is anyway."""
        counts: dict[str, int] = dict.fromkeys(PARTS, 0)
        notes: list[str] = []
        have: frozenset[str] = frozenset()
        before = 0
        order = ("template", "system", "tools", "pinned", "turn", "memories", "tool_results")
        for part in order:
            have |= {part}
            if part != "template" and not self.has(part):
                continue
            try:
                now = self.counter.rendered(*self.conversation(self.plan, have))
            except (
                InvalidArgumentError
            ):  # the template refuses this much of the conversation, though not all of it
                notes.append(
                    f"{part} is counted with the part after it: the chat template does not render it alone"
                )
                continue
            counts[part], before = now - before, now
        counts["history"] = self.total - before
        return counts, notes

    def has(self, part: str) -> bool:
        if part == "pinned":
            return any(memory.pinned for memory in self.offer.memories)
        found = {
            "system": self.offer.system,
            "tools": self.offer.tools,
            "turn": self.turn,
            "memories": self.plan.memories,
            "tool_results": self.offer.results,
        }
        return bool(found[part])

    def included(self) -> dict[str, int]:
        def count(places: Iterable[int]) -> int:
            return sum(i not in self.plan.dropped for i in places)

        return {
            "tools": len(self.offer.tools or ()),
            "pinned": sum(memory.pinned for memory in self.offer.memories),
            "history": count(i for turn in self.older for i in turn),
            "turn": count(self.turn),
            "memories": len(self.plan.memories),
            "tool_results": len(self.offer.results),
        }

    def cuts(self) -> Iterable[Cut]:
        for turn in [*self.older, self.turn]:
            whole = self.plan.dropped.issuperset(turn)
            for places in [turn] if whole else groups(self.offer.history, turn):
                if places and self.plan.dropped.issuperset(places):
                    yield self.dropping(places)
        for i, message in enumerate(self.offer.history):
            if message["role"] == "tool" and i not in self.plan.dropped:
                yield from self.shortening(
                    text_of(message), text_of(self.message(self.plan, i)), i in self.plan.shortened, (i,)
                )
        for i, result in enumerate(self.offer.results):
            limited = self.plan.results[i] != (self.limits["tool_results"].maximum or self.budget)
            yield from self.shortening(result.text, self.result_text(self.plan, i), limited, ())
        most = self.limits["memories"].maximum
        for memory in self.offer.memories:
            if not memory.pinned and memory not in self.plan.memories:
                reason = (
                    f"score {memory.score:g}: less relevant than what fits into {most} tokens or the budget"
                )
                yield Cut(
                    "memories", "dropped", _excerpt(memory.text), self.counter.text(memory.text), reason
                )

    def dropping(self, places: range) -> Cut:
        texts = [text_of(self.offer.history[i]) for i in places]
        most = self.limits["history"].maximum
        if self.old.dropped.issuperset(places):
            reason = "cut in an earlier build, and stays out for the prefix to stay"
        else:
            reason = f"over the budget of {self.budget}" + (f" or the maximum of {most}" if most else "")
        part = "turn" if places.start in self.turn else "history"
        tokens = sum(map(self.counter.text, texts))
        return Cut(part, "dropped", _excerpt(texts[0]), tokens, reason, tuple(places))

    def shortening(self, text: str, short: str, for_budget: bool, places: tuple[int, ...]) -> Iterable[Cut]:
        if short != text:
            most = self.limits["tool_results"].maximum
            reason = (
                f"over the budget of {self.budget}" if for_budget else f"longer than the maximum of {most}"
            )
            lost = self.counter.text(text) - self.counter.text(short)
            action: Literal["shortened"] = "shortened"
            yield Cut("tool_results", action, _excerpt(text), lost, reason, places)


def _listed(heading: str, texts: list[str]) -> str:
    if not texts:
        return ""
    return "\n".join([heading, *("- " + text.replace("\n", "\n  ") for text in texts)]).lstrip("\n")


def _excerpt(text: str) -> str:
    line = " ".join(text[:200].split())
    return line if len(line) <= 60 else line[:57] + "..."
