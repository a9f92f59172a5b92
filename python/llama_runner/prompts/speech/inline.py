"""Inline Markdown, HTML and light LaTeX within a sentence: what is markup goes, what it marks stays."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

from .tape import PAUSE_DASH, Tape, clean

__all__ = ["apply"]

_TICKS = re.compile("`+")
_IMAGE = re.compile(r"!\[([^\[\]]*)\]\([^()\s]*(?:\([^()\s]*\)[^()\s]*)*(?:\s+\"[^\"]*\"|\s+'[^']*')?\s*\)")
_LINK = re.compile(
    r"\[([^\[\]]*)\]\(<?[^()\s<>]*(?:\([^()\s]*\)[^()\s]*)*>?(?:\s+\"[^\"]*\"|\s+'[^']*')?\s*\)"
)
_FOOTNOTE = re.compile(r"\[\^[^\[\]\s]{1,40}\]")
_CITATION = re.compile(r"(?<=[\w.,;!?)\"”])(?:\[[0-9]{1,3}(?:[,–-] ?[0-9]{1,3})*\])+")
_LINK_REFERENCE = re.compile(r"\[([^\[\]]+)\]\[[^\[\]]*\]")
_AUTOLINK = re.compile(r"<((?:https?://|ftp://|mailto:)[^\s<>]+|[^\s<>@]+@[^\s<>@]+)>")
_COMMENT = re.compile(r"<!--.*?-->")
_BREAK_TAG = re.compile(r"<(?:br|hr)\s*/?>", re.IGNORECASE)
_TAG = re.compile(
    r"</?(?:a|abbr|article|aside|b|big|blockquote|body|button|center|cite|code|col|colgroup|dd|del|details|dfn|"
    r"div|dl|dt|em|"
    r"figcaption|figure|font|footer|form|h[1-6]|head|header|html|i|iframe|img|input|ins|kbd|label|li|link|main|"
    r"mark|meta|nav|"
    r"ol|option|p|pre|q|s|samp|script|section|select|small|span|strike|strong|style|sub|summary|sup|svg|table|"
    r"tbody|td|"
    r"template|textarea|tfoot|th|thead|title|tr|tt|u|ul|var|video|audio|source|think)(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
_SUPERSCRIPT = re.compile(r"<sup>\s*([-+]?\w{1,4})\s*</sup>", re.IGNORECASE)
_SUBSCRIPT = re.compile(r"<sub>\s*(\w{1,4})\s*</sub>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
_ESCAPE = re.compile(r"\\([`*_{}\[\]()#+.!|<>~$-])")
_STARS = re.compile(r"\*+")
_UNDERSCORES = re.compile(r"(?<![\w*_])_{1,3}(?=[^\s_])|(?<=[^\s_])_{1,3}(?![\w_])")
_STRIKES = re.compile(r"~~|(?<![=<>!])==(?=\w)(?=[^=]*==)|(?<=\w)==(?![=\w])")


def apply(tape: Tape, read_code: Callable[[str], str]) -> None:
    """Take the markup out; ``read_code`` says what is between backticks."""
    text = tape.text
    if "`" in text:
        _code_spans(tape, read_code)
    if "\\" in text or "$" in text:
        _escapes_and_math(tape)
    if "[" in text:
        tape.rewrite(_IMAGE, lambda image: f" {image[1]} " if image[1].strip() else " ")
        tape.rewrite(_LINK, lambda link: link[1])
        tape.rewrite(_FOOTNOTE, "")
        tape.rewrite(_CITATION, "")
        tape.rewrite(_LINK_REFERENCE, lambda link: link[1])
    if "<" in text:
        if "-->" in tape.text:
            tape.rewrite(_COMMENT, " ")
        tape.rewrite(_AUTOLINK, lambda link: link[1].removeprefix("mailto:"))
        tape.rewrite(_BREAK_TAG, PAUSE_DASH)
        tape.rewrite(_SUPERSCRIPT, lambda raised: f"^{raised[1]}")
        tape.rewrite(_SUBSCRIPT, lambda lowered: lowered[1])
        tape.rewrite(_TAG, "")
    if "&" in text:
        tape.rewrite(_ENTITY, _entity)
    if "*" in text:
        tape.rewrite(_STARS, _stars(tape))
    if "_" in text:
        tape.rewrite(_UNDERSCORES, "")
    if "~~" in text or "==" in text:
        tape.rewrite(_STRIKES, "")


def _entity(match: re.Match[str]) -> str:
    said = clean(html.unescape(match[0]))
    return " " if not said.strip() else said


def _stars(tape: Tape) -> Callable[[re.Match[str]], str]:
    text = tape.text

    def say(match: re.Match[str]) -> str:
        before, after = text[max(0, match.start() - 1) : match.start()], text[match.end() : match.end() + 1]
        spaced = before == " " and after == " "
        between_numbers = before.isalnum() and after.isdecimal()
        return match[0] if spaced or between_numbers else ""

    return say


def _code_spans(tape: Tape, read_code: Callable[[str], str]) -> None:
    """Runs of backticks of one length pair up, as in CommonMark; a run without a partner is dropped."""
    text = tape.text
    runs = [(run.start(), run.end()) for run in _TICKS.finditer(text)]
    later: dict[int, list[int]] = {}
    for index in range(len(runs) - 1, -1, -1):
        later.setdefault(runs[index][1] - runs[index][0], []).append(index)
    out: list[str] = []
    at = index = 0
    while index < len(runs):
        start, end = runs[index]
        places = later[end - start]
        while places and places[-1] <= index:
            places.pop()
        out.append(text[at:start])
        at = end
        if places:
            close = places.pop()
            said = read_code(text[end : runs[close][0]])
            if said:
                out.append(tape.hold(said))
            at = runs[close][1]
            index = close
        index += 1
    out.append(text[at:])
    tape.text = "".join(out)


# --- LaTeX ---------------------------------------------------------------------------------------------

_MATH = re.compile(
    r"\$\$([^$]{1,400})\$\$|(?<![\w$])\$(?=[^\s$])([^$]{1,300}?)(?<=[^\s\\])\$(?![\w$])|\\\((.{1,300}?)\\\)|"
    r"\\\[(.{1,300}?)\\\]"
)
_MATHS_SIGNS = re.compile(r"[\\^_=+<>{}]|^[A-Za-z]$|^-?[0-9.]*[a-z]$")
_COMMAND = re.compile(r"\\([a-zA-Z]+)\*?")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_ROOT = re.compile(r"\\sqrt\s*(?:\[([^\[\]]*)\])?\s*\{([^{}]*)\}")
_STYLED = re.compile(
    r"\\(?:text|mathrm|mathbf|mathit|mathbb|mathcal|operatorname|textbf|emph|boxed|vec|hat|bar|"
    r"overline)\s*\{([^{}]*)\}"
)
_BOUNDED = re.compile(
    r"\\(int|sum|prod)_\{?([^{}^_\\\s]{1,20})\}?\^\{?([^{}^_\\\s]{1,20}?|\\infty)\}?(?![\w{])"
)
_RAISED = re.compile(r"\^\{([^{}]*)\}")
_LOWERED = re.compile(r"_(?:\{([^{}]*)\}|(\w))")
_SIGNS = {
    "times": "×", "cdot": "×", "div": "÷", "pm": "±", "mp": "∓", "leq": "≤", "le": "≤", "geq": "≥", "ge": "≥",
    "neq": "≠", "ne": "≠", "approx": "≈", "equiv": "≡", "infty": "∞", "to": "→", "rightarrow": "→", "Rightarrow": "⇒",
    "implies": "⇒", "iff": "⇔", "sum": "∑", "prod": "∏", "int": "∫", "partial": "∂", "nabla": "∇", "in": "∈",
    "notin": "∉", "subset": "⊂", "cup": "∪", "cap": "∩", "forall": "∀", "exists": "∃", "degree": "°", "circ": "°",
    "ldots": "…", "dots": "…", "cdots": "…", "quad": " ", "qquad": " ", "alpha": "α", "beta": "β", "gamma": "γ",
    "delta": "δ", "epsilon": "ε", "varepsilon": "ε", "zeta": "ζ", "eta": "η", "theta": "θ", "iota": "ι", "kappa": "κ",
    "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "upsilon": "υ",
    "phi": "φ", "varphi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ", "Theta": "Θ",
    "Lambda": "Λ", "Xi": "Ξ", "Pi": "Π", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω", "left": "", "right": "",
    "big": "", "Big": "", "displaystyle": "", "mid": "|",
    "log": "log", "ln": "natural log", "sin": "sine", "cos": "cosine", "tan": "tangent", "lim": "limit", "max": "max",
    "min": "min", "exp": "exp", "mod": "mod", "bmod": "mod", "det": "determinant",
}  # fmt: skip


def _escapes_and_math(tape: Tape) -> None:
    tape.rewrite(_MATH, _math)
    tape.rewrite(_ESCAPE, lambda escaped: "" if escaped[1] in "`*_~" else escaped[1])


def _math(match: re.Match[str]) -> str:
    content = next(group for group in match.groups() if group is not None).strip()
    if match[2] is not None and not _MATHS_SIGNS.search(content):
        return match[0]  # two prices, perhaps
    content = _BOUNDED.sub(r"\\\1 from \2 to \3 of ", content)
    for _ in range(4):  # what is nested deeper is read without its braces
        before = content
        content = _STYLED.sub(lambda styled: styled[1], content)
        content = _FRACTION.sub(lambda parts: f" {parts[1]} over {parts[2]} ", content)
        content = _ROOT.sub(_root, content)
        content = _RAISED.sub(
            lambda raised: f"^{raised[1]}" if re.fullmatch(r"-?\w+", raised[1]) else f"^({raised[1]})",
            content,
        )
        content = _LOWERED.sub(lambda lowered: f" sub {lowered[1] or lowered[2]} ", content)
        if content == before:
            break
    content = _COMMAND.sub(lambda command: f" {_SIGNS.get(command[1], command[1])} ", content)
    return " ".join(re.sub(r"[{}\\&]", " ", content).split())


def _root(match: re.Match[str]) -> str:
    degree = {None: "square", "2": "square", "3": "cube"}.get(match[1])
    return f" {degree} root of {match[2]} " if degree else f" {match[1]}th root of {match[2]} "
