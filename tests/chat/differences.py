"""What differs from jinja2, and why: ``PYTHONPATH=tests python -m chat.differences MODEL`` finds it anew.

It writes ``differences.toml``, which the tests hold exactly, and the tables in ``docs/chat-templates.md``. MODEL is any
model file; its vocabulary is all that is read. Look at what changed in the file before you commit it.
"""

from __future__ import annotations

import collections
import datetime
import itertools
import sys
import textwrap
import tomllib
from pathlib import Path

from chat import goldens
from chat.causes import CAUSES, Request
from chat.conversations import CONVERSATIONS, Conversation
from chat.oracle import Refusal, same_day, special_tokens
from llama_runner import errors
from llama_runner.core import ChatTemplate, Model

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "vendor" / "llama.cpp" / "models" / "templates"
FILE = Path(__file__).with_name("differences.toml")
PAGE = ROOT / "docs" / "chat-templates.md"
HEAD = """# Where our prompt is another than jinja2's, held exactly by tests/test_chat_templates.py and written by
# tests/chat/differences.py. Under each template: the causes (see tests/chat/causes.py), and for which conversations
# (see tests/chat/conversations.py) they explain the whole of the difference, none of them left out. `refused: ...` is
# what llama.cpp cannot render; `both refuse` is no difference, and held all the same.
"""
BOTH_REFUSE = "both refuse"
REFUSED = {
    "refused: a list in a list": (
        'Unknown operator "in" between Array',
        "Jinja: `in` does not look for a list in a list; a schema with `type` a list cannot be rendered.",
    ),
}
SEPARATOR = " + "
WIDTH = 110

# by template, then causes, then conversations
Differences = dict[str, dict[str, list[str]]]


def load_model(path: str | Path) -> Model:
    """A vocabulary that leaves the begin token in the prompt, where jinja2 has it too."""
    return Model(path, vocab_only=True, kv_overrides={"tokenizer.ggml.add_bos_token": False})


def template_names() -> list[str]:
    return sorted(path.stem for path in TEMPLATES.glob("*.jinja"))


def load_template(model: Model, name: str) -> ChatTemplate:
    return ChatTemplate(model, (TEMPLATES / f"{name}.jinja").read_text("utf-8"))


def apply(template: ChatTemplate, conversation: Conversation) -> str:
    return template.apply(
        conversation.messages,
        tools=conversation.tools,
        enable_thinking=conversation.enable_thinking,
        add_generation_prompt=conversation.add_generation_prompt,
    )


class Pair:
    """One template and one conversation: what we render, what jinja2 does, and why not the same."""

    def __init__(self, template: ChatTemplate, conversation: Conversation) -> None:
        self.source = template.source
        self.conversation = conversation
        self.specials = special_tokens(template)
        self.refusal = ""
        self.ours: str | None = None
        self.now = datetime.datetime.now()
        try:
            self.ours, self.now = same_day(lambda: apply(template, conversation))
        except errors.InvalidArgumentError as problem:
            self.refusal = str(problem)

    def by_jinja2(self, causes: tuple[str, ...] = ()) -> str | None:
        """The prompt by jinja2 after the causes have changed the request, None where the template refuses it."""
        request = Request.of(self.source, self.conversation)
        for name in CAUSES:
            if name in causes:
                CAUSES[name](request, self.now)
        try:
            return request.render(*self.specials, self.now)
        except Refusal:
            return None

    def holds(self, causes: str) -> bool:
        """Whether the causes explain the difference, wholly, and each is needed."""
        if causes == BOTH_REFUSE:
            return self.ours is None and self.by_jinja2() is None
        if causes in REFUSED:
            return self.ours is None and REFUSED[causes][0] in self.refusal and self.by_jinja2() is not None
        names = tuple(causes.split(SEPARATOR)) if causes else ()
        if self.ours is None or self.by_jinja2(names) != self.ours:
            return False
        fewer = itertools.combinations(names, len(names) - 1) if names else ()
        return all(self.by_jinja2(rest) != self.ours for rest in fewer)

    def explain(self) -> str:
        """The fewest causes that explain it; empty where there is no difference. Raises LookupError."""
        if self.ours is None:
            known = next((name for name in (BOTH_REFUSE, *REFUSED) if self.holds(name)), None)
            if known is None:
                raise LookupError(f"we refuse it: {self.refusal}")
            return known
        for size in range(5):
            for names in itertools.combinations(CAUSES, size):
                if self.by_jinja2(names) == self.ours:
                    return SEPARATOR.join(names)
        raise LookupError(f"ours: {self.ours!r}\njinja2: {self.by_jinja2()!r}")


def read() -> Differences:
    return tomllib.loads(FILE.read_text("utf-8"))


def find(model: Model, known: Differences) -> Differences:
    found: Differences = {}
    for name in template_names():
        template = load_template(model, name)
        by_causes: dict[str, list[str]] = collections.defaultdict(list)
        for key, conversation in CONVERSATIONS.items():
            pair = Pair(template, conversation)
            guesses = ["", *known.get(name, {}), *by_causes]
            causes = next((guess for guess in guesses if pair.holds(guess)), None)
            if causes is None:
                try:
                    causes = pair.explain()
                except LookupError as problem:
                    print(f"{name}, {key}: not explained\n{problem}", file=sys.stderr)
                    continue
            if causes:
                by_causes[causes].append(key)
        if by_causes:
            found[name] = dict(by_causes)
    return found


def as_toml(differences: Differences) -> str:
    lines = [HEAD]
    for name, by_causes in differences.items():
        lines.append(f'["{name}"]')
        for causes, keys in sorted(by_causes.items()):
            items = ", ".join(f'"{key}"' for key in keys)
            line = f'"{causes}" = [{items}]'
            if len(line) > WIDTH:
                block = textwrap.fill(
                    items, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
                )
                line = f'"{causes}" = [\n{block},\n]'
            lines.append(line)
        lines.append("")
    return "\n".join(lines)


def as_table(differences: Differences) -> str:
    """By cause: how many templates, and how many pairs of a template and a conversation."""
    templates: dict[str, set[str]] = collections.defaultdict(set)
    pairs: collections.Counter[str] = collections.Counter()
    for name, by_causes in differences.items():
        for causes, keys in by_causes.items():
            for cause in causes.split(SEPARATOR):
                templates[cause].add(name)
                pairs[cause] += len(keys)
    whys = {name: apply.__doc__ or "" for name, apply in CAUSES.items()}
    whys.update({name: why for name, (_, why) in REFUSED.items()})
    lines = ["| cause | what | templates | prompts |", "| --- | --- | --- | --- |"]
    for name, why in whys.items():
        which = ", ".join(sorted(templates[name])) if len(templates[name]) <= 2 else str(len(templates[name]))
        lines.append(f"| `{name}` | {why.replace('|', chr(92) + '|')} | {which} | {pairs[name]} |")
    total = len(template_names()) * len(CONVERSATIONS)
    differing = sum(len(k) for d in differences.values() for c, k in d.items() if c != BOTH_REFUSE)
    refused = sum(len(d.get(BOTH_REFUSE, ())) for d in differences.values())
    lines.append(
        f"\nOf {total} prompts ({len(template_names())} templates, {len(CONVERSATIONS)} conversations) "
        f"{total - differing - refused} are the same to the byte, {refused} are refused by both, and "
        f"{differing} differ for these reasons and no other.\n"
    )
    return "\n".join(lines)


def page_with(differences: Differences) -> str:
    """The page with its tables as they should be."""
    text = PAGE.read_text("utf-8")
    tables = {
        "differences": as_table(differences),
        "answers": goldens.as_table("differs", goldens.DIFFERS),
        "again": goldens.as_table("again", goldens.AGAIN),
    }
    for name, table in tables.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        text = text[: text.index(begin) + len(begin)] + table + text[text.index(end) :]
    return text


if __name__ == "__main__":
    found = find(load_model(sys.argv[1]), read() if FILE.exists() else {})
    FILE.write_text(as_toml(found), "utf-8")
    PAGE.write_text(page_with(found), "utf-8")
