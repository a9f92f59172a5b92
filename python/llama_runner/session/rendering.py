"""From messages to tokens: what the template says, and only what is new of it tokenized."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_runner._check import check_bool, check_choice, check_text
from llama_runner.chat_types import ChatPrompt
from llama_runner.core import ChatTemplate, Vocab
from llama_runner.core.token_attr import TokenAttr
from llama_runner.errors import ArgumentTypeError, InvalidArgumentError

__all__ = ["Options", "Renderer", "common_bytes"]

Tokens = npt.NDArray[np.int32]
Messages = Sequence[Mapping[str, Any]]
OWN_NAMES = frozenset({"messages", "tools", "add_generation_prompt", "enable_thinking"})
RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})
"""Variables that would have a template write another conversation than the session's."""
REASONING_FORMATS = ("auto", "none", "deepseek", "deepseek-legacy")


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What a prompt depends on besides its messages."""

    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool | None = None
    reasoning_format: str = "auto"
    enable_thinking: bool = True
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    only: tuple[Mapping[str, Any], ...] = ()
    """Tools that the answer may call; the prompt tells of all of them, so that it stays the same."""

    def __post_init__(self) -> None:
        """What is wrong with them is said where they are given, and what was given may change afterwards."""
        check_bool("enable_thinking", self.enable_thinking)
        check_choice("reasoning_format", self.reasoning_format, REASONING_FORMATS)
        object.__setattr__(self, "template_kwargs", checked_variables(self.template_kwargs))

    def keywords(self) -> dict[str, Any]:
        """As ``ChatTemplate.render`` takes them."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del found["only"]
        found["tools"] = list(self.tools) or None
        return found


def checked_variables(given: Any) -> dict[str, Any]:
    """A copy of a template's variables, as a file can hold them."""
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ArgumentTypeError("template_kwargs is a dict with the names of the template's variables")
    for name in RESERVED & given.keys():
        raise InvalidArgumentError(f"template_kwargs has {name}, which is the session's own to say")
    try:
        text = json.dumps(dict(given), allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as problem:
        raise ArgumentTypeError(f"template_kwargs are JSON values: {problem}") from None
    check_text("template_kwargs", text)
    copy: dict[str, Any] = json.loads(text)
    return copy


class Renderer:
    """One conversation's template, vocabulary, and what was tokenized last.

    The text is rendered as a whole each time, since a template may rewrite what came before. Of its tokens those are
    kept that stand before the last special token which both texts have in common: special tokens part the text, so
    that what is before one and what is behind it are tokenized by themselves.
    """

    def __init__(self, template: ChatTemplate, vocab: Vocab) -> None:
        self.template = template
        self.vocab = vocab
        self._text = b""
        self._tokens: Tokens = np.empty(0, dtype=np.int32)
        self._specials: dict[int, bytes] = {}  # control tokens and their text, as far as they were met
        self._longest: int | None = None

    def copy(self) -> Renderer:
        """For a fork: what is known is known to both."""
        other = Renderer(self.template, self.vocab)
        other._text, other._tokens = self._text, self._tokens
        other._specials, other._longest = self._specials, self._longest
        return other

    def render(self, messages: Messages, options: Options, **more: Any) -> ChatPrompt:
        """The prompt for an answer; keywords are those of ``ChatTemplate.render``."""
        keywords = {**options.keywords(), **more}
        prompt = self.template.render(messages, **keywords)
        if not options.only:
            return prompt
        narrow = self.template.render(messages, **{**keywords, "tools": list(options.only)})
        return dataclasses.replace(
            prompt,
            grammar=narrow.grammar,
            grammar_lazy=narrow.grammar_lazy,
            grammar_triggers=narrow.grammar_triggers,
        )

    def text(self, messages: Messages, options: Options, add_generation_prompt: bool) -> str:
        """The prompt's text alone, for less than ``render`` takes."""
        if (
            OWN_NAMES & options.template_kwargs.keys()
        ):  # the template gets what the caller calls by the same name
            return self.render(messages, options, add_generation_prompt=add_generation_prompt).prompt
        return self.template.apply(
            messages,
            tools=list(options.tools) or None,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=options.enable_thinking,
            **options.template_kwargs,
        )

    def tokens(self, text: str) -> Tokens:
        """The tokens of a rendered text, read-only: exactly those of the whole."""
        data = text.encode()
        kept, at = self._reusable(data)
        if at == 0:
            tokens = self.vocab.tokenize(data, add_special=True, parse_special=True)
        else:
            rest = self.vocab.tokenize(data[at:], add_special=False, parse_special=True)
            tokens = np.concatenate([self._tokens[:kept], rest])
            if self.vocab.add_eos or self.vocab.add_sep:  # what ends a text is added to a whole one alone
                tokens = self.vocab.tokenize(data, add_special=True, parse_special=True)
        tokens.flags.writeable = False
        self._text, self._tokens = data, tokens
        return tokens

    def _reusable(self, data: bytes) -> tuple[int, int]:
        """How many of the last tokens stand, and from which byte on the text is to be tokenized."""
        common = common_bytes(self._text, data)
        # a longer special token may begin before the cut and end behind what is common
        limit = common - self._longest_special()
        if limit <= 0 or len(self._tokens) == 0:
            return 0, 0
        best = (0, 0)
        for token, spelt in self._met(self._tokens).items():
            at = self._text.rfind(spelt, 0, limit)
            if at <= best[1]:
                continue
            places = np.flatnonzero(self._tokens == token)
            # each occurrence of the text is one of the token, or it is not known which is which
            if len(places) == _count(self._text, spelt):
                best = (int(places[_count(self._text[:at], spelt)]), at)
        return best

    def _met(self, tokens: Tokens) -> dict[int, bytes]:
        """The control tokens among ``tokens``, and how they are spelt."""
        control = np.unique(tokens[(self.vocab.attrs[tokens] & TokenAttr.CONTROL) != 0])
        for token in control.tolist():
            if token not in self._specials:
                self._specials[token] = self.vocab.token_to_piece(token, special=True)
        return {token: self._specials[token] for token in control.tolist() if self._specials[token]}

    def _longest_special(self) -> int:
        if self._longest is None:
            attrs = self.vocab.attrs
            special = np.flatnonzero(attrs & (TokenAttr.CONTROL | TokenAttr.USER_DEFINED | TokenAttr.UNKNOWN))
            self._longest = max(
                (len(self.vocab.token_to_piece(int(token), special=True)) for token in special), default=0
            )
        return self._longest

    def token_ids(self, texts: Sequence[str]) -> list[int]:
        """The special tokens that are spelt like these texts; those that are none are left out."""
        found = []
        for text in texts:
            tokens = self.vocab.tokenize(text, add_special=False, parse_special=True)
            if len(tokens) == 1 and self.vocab.token_to_piece(int(tokens[0]), special=True) == text.encode():
                found.append(int(tokens[0]))
        return found

    def spans(self, messages: Messages, text: str, tokens: Tokens) -> list[tuple[int, int]]:
        """From which token to which each message goes: to the end of its content; what is between is the later one's.

        A message that the template leaves out, or writes otherwise, has no tokens of its own: they are the next one's.
        The last one goes to the end.
        """
        data, at, ends = text.encode(), 0, []
        for message in messages:
            for part in _contents(message):
                found = data.find(part, at)
                at = at if found < 0 else found + len(part)
            ends.append(at)
        pieces = [len(self.vocab.token_to_piece(int(token), special=True)) for token in tokens]
        sizes = np.cumsum([0, *pieces])
        sizes -= sizes[-1] - len(
            data
        )  # a token that the template did not write, or a space, stands at the start
        stops = [int(np.searchsorted(sizes, end)) for end in ends]
        if stops:
            stops[-1] = len(tokens)
        return [(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]


def _contents(message: Mapping[str, Any]) -> list[bytes]:
    """What of a message is to be found in a prompt, in the order in which it usually stands there."""
    content = message.get("content")
    texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content or ()]
    texts += [call["function"]["name"] for call in message.get("tool_calls") or ()]
    return [text.strip().encode() for text in texts if text and text.strip()]


def _count(text: bytes, spelt: bytes) -> int:
    return text.count(spelt)


def common_bytes(a: bytes, b: bytes) -> int:
    """How many bytes at the start of two texts are the same."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    left, right = np.frombuffer(a, np.uint8, n), np.frombuffer(b, np.uint8, n)
    return int(np.argmax(left != right))
