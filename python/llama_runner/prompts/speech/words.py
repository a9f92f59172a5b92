"""Abbreviated words and Roman numerals in English."""

from __future__ import annotations

import re
from collections.abc import Callable

from .abbreviations import split_rules
from .numbers import EnglishNumbers
from .tape import HELD, Tape

__all__ = ["apply", "roman"]

_TITLES = {
    "Dr": "Doctor", "Mr": "Mister", "Mrs": "Missus", "Ms": "Miz", "Prof": "Professor", "Gen": "General",
    "Sen": "Senator",
    "Rep": "Representative", "Gov": "Governor", "Capt": "Captain", "Cmdr": "Commander", "Lt": "Lieutenant",
    "Col": "Colonel",
    "Sgt": "Sergeant", "Maj": "Major", "Adm": "Admiral", "Rev": "Reverend", "Hon": "Honorable",
    "Pres": "President", "Fr": "Father",
    "Mt": "Mount", "Ft": "Fort", "Supt": "Superintendent", "Insp": "Inspector", "Messrs": "Messieurs",
    "Msgr": "Monsignor",
}  # fmt: skip
_PLAIN = {
    "e.g.": "for example", "eg.": "for example", "i.e.": "that is", "ie.": "that is", "etc.": "et cetera",
    "etc": "et cetera",
    "vs.": "versus", "vs": "versus", "v.": "versus", "viz.": "namely", "cf.": "compare",
    "approx.": "approximately", "ca.": "circa",
    "et al.": "and others", "a.k.a.": "also known as", "aka": "also known as", "incl.": "including",
    "excl.": "excluding",
    "resp.": "respectively", "esp.": "especially", "misc.": "miscellaneous", "dept.": "department",
    "Dept.": "Department",
    "govt.": "government", "Govt.": "Government", "Inc.": "Incorporated", "Ltd.": "Limited",
    "Corp.": "Corporation", "Co.": "Company",
    "Bros.": "Brothers", "Jr.": "Junior", "Sr.": "Senior", "Esq.": "Esquire", "Univ.": "University",
    "Assn.": "Association",
    "Assoc.": "Associate", "Asst.": "Assistant", "Ave.": "Avenue", "Blvd.": "Boulevard", "Rd.": "Road",
    "Ln.": "Lane", "Hwy.": "Highway",
    "Apt.": "Apartment", "Bldg.": "Building", "est.": "established", "Est.": "Established", "max.": "maximum",
    "min.": "minimum",
    "avg.": "average", "w/o": "without", "w/": "with", "c/o": "care of", "n/a": "not applicable",
    "N/A": "not applicable",
    "and/or": "and or", "he/she": "he or she", "she/he": "she or he", "his/her": "his or her",
    "him/her": "him or her", "s/he": "she or he",
    "yes/no": "yes or no", "b/c": "because", "tel.": "telephone", "Tel.": "Telephone", "intl.": "international",
    "temp.": "temperature",
    "ext.": "extension", "pts": "points", "pts.": "points", "&c.": "et cetera", "Ph.D.": "P H D", "Ph.D": "P H D",
    "PhD": "P H D", "PhDs": "P H D's", "N.B.": "note",
    "P.S.": "P S", "RSVP": "R S V P",
    "w.r.t.": "with respect to", "wrt": "with respect to", "ft.": "feet", "lb.": "pounds", "lbs.": "pounds",
    "oz.": "ounces",
    "Q&A": "Q and A", "R&D": "R and D", "AT&T": "A T and T", "P&L": "P and L", "B&B": "B and B", "M&A": "M and A",
    "R&B": "R and B",
}  # fmt: skip
_PLAIN = {
    form.capitalize(): said
    for form, said in _PLAIN.items()
    if form.islower() and form.endswith(".") and form not in {"max.", "min.", "temp.", "lb.", "ft.", "oz."}
} | _PLAIN
_NUMBERED = {
    "no": "number", "nos": "numbers", "nr": "number", "fig": "figure", "figs": "figures", "eq": "equation",
    "eqs": "equations", "sec": "section",
    "ch": "chapter", "chap": "chapter", "vol": "volume", "vols": "volumes", "p": "page", "pp": "pages",
    "art": "article", "op": "opus",
    "ed": "edition", "ver": "version", "rev": "revision", "apt": "apartment", "ste": "suite", "ep": "episode",
    "ex": "example",
    "pt": "part", "para": "paragraph", "par": "paragraph", "c": "circa", "ca": "circa", "tab": "table",
    "ext": "extension", "rm": "room",
    "max": "maximum", "min": "minimum", "avg": "average", "est": "estimated",
}  # fmt: skip

_NUMBERED_USE = re.compile(
    rf"(?<![\w.])({'|'.join(sorted(_NUMBERED, key=len, reverse=True))})\. ?(?=[0-9#{HELD}])", re.IGNORECASE
)
_NUMERO = re.compile(r"№ ?|(?<!\w)N[º°] ?(?=[0-9])")
_TITLE_USE = re.compile(
    rf"(?<![\w.])({'|'.join(sorted(_TITLES, key=len, reverse=True))})\.(?= ?[A-Z{HELD}\"“]| and [A-Z])"
)
_TITLE_BARE = re.compile(r"(?<![\w.])(Dr|Mr|Mrs|Ms|Prof|Mt)(?= [A-Z][a-z])")
_DRIVE = re.compile(r"(?<=[a-z0-9\U000f0002-\U000ffffd] )Dr(?:\.|(?=[,.]|$))")
_STREET = re.compile(r"(?<![\w.])St(?:\.|(?= [A-Z][a-z])|(?=,|$))")
_PLAIN_USE = re.compile(
    "(?<![\\w.])(?:"
    + "|".join(re.escape(form) for form in sorted(_PLAIN, key=len, reverse=True))
    + ")(?![\\w/])"
)
_INITIALS = re.compile(r"(?<![\w.'’])((?:[A-Z]\. ?){1,4})(?=[A-Z][a-zà-ÿ'’])")
_LONE_INITIAL = re.compile(r"(?<![\w.'’])([A-HJ-Z])\.(?= [a-z])")
_DIRECTION = re.compile(r"(?<=[0-9] )([NSEW])\.(?= ?[0-9A-Z])")
_DIRECTIONS = {"N": "North", "S": "South", "E": "East", "W": "West"}
_DOTTED = re.compile(r"(?<![\w.])(?:[A-Za-z]\.){2,8}(?:[A-Za-z](?![\w]))?(?:['’]s)?")

_ROMAN = r"(M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3}))"
_ROMAN_NUMBERED = re.compile(
    r"(?<!\w)(Chapter|CHAPTER|chapter|Part|PART|part|Act|act|Scene|scene|Volume|volume|Vol|Book|book|Section|"
    r"section|Article|article|Type|type|Phase|phase|"
    r"Class|class|Level|level|Stage|stage|Grade|grade|Appendix|appendix|Title|title|Figure|figure|Table|table|"
    r"War|Bowl|Mark|Mk|Episode|episode|"
    rf"Round|round|Step|step|Day|Week|Unit|unit|Lesson|lesson|Canto|Fantasy|Apollo|Division|Tier|tier|Schedule|"
    rf"Category|category) {_ROMAN}(?![\w'’])"
)
_KINGS = (
    "Louis|Henry|Elizabeth|Charles|George|Edward|James|William|Richard|Paul|Benedict|Pius|Leo|Napoleon|Catherine|"
    "Peter|Nicholas|"
    "Alexander|Ramses|Ramesses|Philip|Ivan|Frederick|Wilhelm|Francis|Gregory|Innocent|Clement|Urban|Mary|"
    "Emmanuel|Leopold|Gustav|"
    "Adolf|Haakon|Harald|Margrethe|Christian|Carlos|Felipe|Ferdinand|Alfonso|Franz|Joseph|Otto|Constantine|"
    "Darius|Xerxes|Cyrus|Ptolemy|Thutmose|"
    "Amenhotep|Kamehameha|Umberto|Sixtus|Boniface|Celestine|Julius|John|Stephen|Robert|Malcolm|Alexios|Justinian|"
    "Mehmed|Murad|Selim|Abdullah|Rama"
)
_ROMAN_RULER = re.compile(
    rf"(?<!\w)({_KINGS}) {_ROMAN}(?!\w|['’](?:m|ve|ll|d)\b)(?! (?:think|am|know|have|would|will|said|guess|"
    rf"believe|hope|was told)\b)"
)
_ROMAN_NAME = re.compile(r"(?<!\w)([A-Z][a-z]+) (X{0,3}(?:IX|IV|V?I{0,3}))(?![\w'’])")
_ROMAN_CENTURY = re.compile(
    r"(?<!\w)(X{0,3}(?:IX|IV|V?I{0,3}))(?= (?:century|Century|dynasty|Dynasty|Olympiad))"
)
_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}


def roman(text: str) -> int:
    """The value of a well-formed Roman numeral."""
    total = 0
    for char, following in zip(text, text[1:] + "I", strict=True):
        value = _VALUES[char]
        total += -value if value < _VALUES[following] else value
    return total


def apply(tape: Tape, say: EnglishNumbers) -> None:
    """Write abbreviations out. Runs before plain numbers, which some abbreviations look for."""
    text = tape.text
    if "." in text or "/" in text or "&" in text:
        tape.rewrite(_NUMBERED_USE, lambda word: f"{tape.hold(_NUMBERED[word[1].lower()])} ")
        tape.sub(_DIRECTION, lambda letter: _DIRECTIONS[letter[1]])
        tape.sub(_DRIVE, lambda _: "Drive")
        tape.sub(_TITLE_USE, lambda title: _TITLES[title[1]])
    tape.rewrite(_NUMERO, lambda _: f"{tape.hold('number')} ")
    tape.sub(_TITLE_BARE, lambda title: _TITLES[title[1]])
    tape.sub(_STREET, _street)
    tape.sub(_PLAIN_USE, _plain)
    if "." in text:
        tape.rewrite(_INITIALS, lambda initials: initials[1].replace(".", " "))
        tape.sub(_DOTTED, _dotted)
        tape.rewrite(_LONE_INITIAL, r"\1")
    tape.rewrite(_ROMAN_NUMBERED, lambda found: _numeral(found, say.cardinal, tape))
    tape.rewrite(_ROMAN_RULER, lambda found: _numeral(found, lambda value: f"the {say.ordinal(value)}", tape))
    tape.rewrite(_ROMAN_NAME, lambda found: _numeral(found, say.cardinal, tape, least=2))
    tape.sub(_ROMAN_CENTURY, lambda found: say.ordinal(roman(found[1])) if found[1] else None)


def _plain(match: re.Match[str]) -> str | None:
    form = match[0]
    if form == "v." and not re.match(" [A-Z]", match.string[match.end() : match.end() + 2]):
        return None
    if form in {"Co.", "Corp.", "Inc.", "Ltd."} and not re.search(
        r"[A-Z][\w&.,'’]* $", match.string[: match.start()][-24:]
    ):
        return None
    return _PLAIN[form]


def _street(match: re.Match[str]) -> str | None:
    before = match.string[: match.start()].rstrip()
    after = match.string[match.end() : match.end() + 24]
    word = before[before.rfind(" ") + 1 :]
    named = bool(word) and (
        word[0].isupper()
        or word[-1].isdecimal()
        or word[-2:] in {"st", "nd", "rd", "th"}
        or ord(word[-1]) >= 0xF0000
    )
    follows = re.match(r" ([A-Z][a-z]+)", after)
    if not match[0].endswith(".") and not (named or follows):
        return None
    if follows and follows[1] not in split_rules("en").starters:
        first = " " not in before
        if not named or first or word.endswith((",", ":")):
            return "Saint"
    return "Street" if named else "Saint" if follows else None


def _dotted(match: re.Match[str]) -> str | None:
    text = match[0]
    ending = ""
    if text.endswith(("'s", "’s")):
        text, ending = text[:-2], "'s"
    letters = text.replace(".", "")
    if len(letters) < 2:
        return None
    return " ".join(letters.upper()) + ending


def _numeral(match: re.Match[str], say: Callable[[int], str], tape: Tape, least: int = 1) -> str:
    numeral = match[2]
    if len(numeral) < least:
        return match[0]
    return f"{match[1]} {tape.hold(say(roman(numeral)))}"
