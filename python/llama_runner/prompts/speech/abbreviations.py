"""Which full stops end a sentence: tables of abbreviations, by language, and the rules that use them."""

from __future__ import annotations

import dataclasses
import re

__all__ = ["SplitRules", "split_rules"]

_CLOSERS = "\"'”’»›)]}*_~"
_OPENERS = "\"'“‘«‹([{*_`~¿¡„‚#"
_WORD = re.compile(r"[^\W\d_]+")
_SHORT_UNIT = re.compile(r"[0-9][ -]?[a-zA-Z]{1,3}\.$")
_COMPASS = frozenset("NSEW")
_VOWELS = set("aeiouyáéíóúàèìòùäöüâêîôûåæøœ")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


@dataclasses.dataclass(frozen=True, slots=True)
class SplitRules:
    """What a language's full stops mean. Entries are lower case and without the last full stop."""

    titles: frozenset[str] = frozenset()
    """Written with a capital, a sentence goes on after these: Dr. Smith."""
    never: frozenset[str] = frozenset()
    """After these a sentence goes on: e.g. this."""
    numbered: frozenset[str] = frozenset()
    """After these it goes on where a number follows: No. 5."""
    names: frozenset[str] = frozenset()
    """After these it goes on unless a word follows that begins sentences: Acme Inc. Directors; Acme Inc. The …"""
    closing: frozenset[str] = frozenset()
    """After these it ends where a capital follows: 5 p.m. He; but not 5 p.m. Tuesday."""
    starters: frozenset[str] = frozenset()
    """Words that begin sentences."""
    attached: frozenset[str] = frozenset()
    """Words that belong to one of ``closing`` before them: Tuesday."""
    ordinal_dot: bool = False
    """Whether a number with a full stop is an ordinal: am 3. Oktober."""
    extra: frozenset[str] = frozenset()
    """Written forms that a user's lexicon ends with a full stop, as written."""

    def ends(self, left: str, right: str, follows: str, complete: bool) -> bool | None:
        """Whether the sentence ends with ``left``; None where it takes more of the text after it to tell.

        ``right`` is what follows, ``follows`` is that without opening quotes and brackets. Neither is complete unless
        ``complete`` says so.
        """
        bare = left.rstrip(_CLOSERS)
        next_char = follows[:1]
        if not next_char:
            return True
        if next_char in "=+×÷<>≠≤≥*/":  # an operator: 5! = 120
            if len(follows) < 2 and not complete:
                return None
            if follows[1:2] in {" ", "="}:
                return False
        if next_char in ",;:)":
            return False
        if not bare.endswith(".") or bare.endswith(".."):  # ! ? … ...
            return not next_char.islower()
        word = bare[bare.rfind(" ") + 1 :].lstrip(_OPENERS)
        for space in "\n\t\xa0":
            word = word[word.rfind(space) + 1 :]
        stem = word[:-1]
        lower = stem.lower()
        if word in self.extra or not stem:
            return False
        if stem in _COMPASS and next_char.isdecimal():  # 221 W. 34th St.
            return False
        if next_char.islower() and _SHORT_UNIT.search(bare[-8:]):  # 3 in. wide
            return False
        if stem.isdecimal() and len(bare.strip()) == len(word) <= 4:  # 1. is a list's number
            return False
        if lower in self.never or (lower in self.titles and stem[0].isupper()):
            return False
        if lower in self.numbered and (next_char.isdecimal() or next_char in "#§"):
            return False
        if self.ordinal_dot and stem.isdecimal() and len(stem) <= 2 and not bare.endswith(f"Nr. {word}"):
            return self._starts(follows, complete)
        if next_char.islower():
            return not self._goes_on(stem, lower, len(left) > len(bare))
        if right[0] in "([" and (lower in self.closing or lower in self.names):
            return False
        if lower in self.closing:
            return self._closes(follows, complete)
        if lower in self.names or _is_initial(stem) or ("." in stem.strip(".") and _is_dotted(stem)):
            if next_char.isdecimal():
                return lower not in self.names
            return self._starts(follows, complete)
        if stem == "I" and re.match(r"[A-Z]\.", follows):
            return False
        if stem == "I" and len(follows) < 2 and next_char.isupper() and not complete:
            return None
        return True

    def _goes_on(self, stem: str, lower: str, quoted: bool) -> bool:
        """Whether a full stop before a small letter is not the end."""
        if quoted or "." in stem or len(stem) == 1 or lower in self.closing or lower in self.names:
            return True
        if stem in {"Sat", "Sun"}:
            return True
        return stem.isalpha() and not _VOWELS & set(lower) and stem.isascii()

    def _starts(self, follows: str, complete: bool) -> bool | None:
        word = _WORD.match(follows)
        if not word:
            return not follows[:1].isdecimal()
        if word.end() == len(follows) and not complete and word.end() < 20:
            return None
        return word[0] in self.starters

    def _closes(self, follows: str, complete: bool) -> bool | None:
        word = _WORD.match(follows)
        if not word:
            return True
        if word.end() == len(follows) and not complete and word.end() < 20:
            return None
        return word[0] not in self.attached


def _is_initial(stem: str) -> bool:
    return len(stem) == 1 and stem.isupper() and stem != "I"


def _is_dotted(stem: str) -> bool:
    """U.S, Ph.D, J.R.R: short groups of letters."""
    return all(part.isalpha() and len(part) <= 2 for part in stem.split(".") if part)


_MONTHS = "January February March April May June July August September October November December"
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"

_ENGLISH = SplitRules(
    titles=_words(
        "dr mr mrs ms messrs prof gen sen rep gov capt cmdr lt col sgt maj adm rev hon pres supt insp mt fr msgr "
        "mme mlle"
    ),
    never=_words("vs v viz cf e.g i.e eg ie approx ca incl excl resp asst assoc attn"),
    numbered=_words(
        "no nos fig figs eq eqs sec secs ch chap vol vols p pp art op tab nr ver rev apt ste bk ep rm "
        "jan feb mar apr jun jul aug sep sept oct nov dec c est tel ext max min avg"
    ),
    names=_words(
        "inc ltd co corp jr sr st ave blvd rd ln hwy bros assn univ dept ft u.s u.k e.u u.n u.s.a d.c l.a n.y "
        "jan feb mar apr jun jul aug sep sept oct nov dec bldg govt eds mon tue tues wed thu thur thurs fri b.c "
        "a.d llc plc"
    ),
    closing=_words(
        "a.m p.m pm etc al ph.d m.d b.a m.a b.sc m.sc m.b.a j.d d.d.s esq lb lbs oz min sec hr hrs yr yrs mi kg "
        "km cm mm "
        "misc avg max temp"
    ),
    starters=_words(
        "The A An He She It They We You I This That These Those There Here His Her Its Their Our My Your But And "
        "Or So If "
        "When While As At In On For From With By To What Who Whose Why How Where Which However Then Now After Before "
        "Although Though Because Since Yes No Not Let Please Also Moreover Once Every Each All Some Many Most "
        "Both Is Are "
        "Was Were Do Does Did Can Could Will Would Should Have Has Had One Two Three Later Today Tomorrow "
        "Yesterday Next "
        "Finally First Second Perhaps Maybe Such Another Other Others Meanwhile Instead Still Yet Under Over "
        "During Until "
        "Between Nobody Everyone Someone Nothing Everything Something"
    ),
    attached=_words(
        f"{_DAYS} {_MONTHS} EST EDT CST CDT MST MDT PST PDT UTC GMT BST CET CEST IST JST ET CT MT PT"
    ),
)

_GERMAN = SplitRules(
    titles=_words("dr prof hr fr frl dipl ing st"),
    never=_words(
        "z z.b d d.h u u.a bzw ca evtl ggf inkl exkl max min vgl s o o.ä bspw sog zzgl abzgl i.d.r u.u v.a z.t "
        "nr abs bd "
        "tel geb gest lt"
    ),
    closing=_words("usw etc usf m.e"),
    names=_words("jan feb apr aug sept okt nov dez str"),
    starters=_words(
        "Der Die Das Er Sie Es Wir Ich Ihr Dann Da Und Aber Ein Eine Einer In Im Am An Auf Bei Mit Nach Von Zu "
        "Für Wenn "
        "Als Wie Was Wer Wo Warum Dies Diese Dieser Dieses Hier Dort So Doch Oder Auch Danach Später Heute Man Mein "
        "Sein Unser Alle Jeder Viele Nur Nun Jetzt Trotzdem Deshalb"
    ),
    ordinal_dot=True,
)
_FRENCH = SplitRules(
    titles=_words("m mm mme mlle dr pr st ste"),
    never=_words("p.ex p ex cf env av apr j.-c"),
    numbered=_words("n no fig art chap vol p pp"),
    closing=_words("etc"),
)
_SPANISH = SplitRules(
    titles=_words("sr sra srta d dña dr dra prof ud uds"),
    never=_words("p.ej p ej av avda aprox"),
    numbered=_words("núm nº no pág págs art cap vol fig tel"),
    closing=_words("etc"),
    names=_words("ee.uu ee uu"),
)
_ITALIAN = SplitRules(
    never=_words("sig sig.ra dott dott.ssa prof ing avv on es p.es s cfr ca"),
    numbered=_words("n pag art cap fig vol"),
    closing=_words("ecc etc"),
)
_PORTUGUESE = SplitRules(
    never=_words("sr sra srta dr dra prof profa av p.ex ex aprox"),
    numbered=_words("n nº pág art cap fig vol"),
    closing=_words("etc"),
)
_DUTCH = SplitRules(
    never=_words("dhr mevr mw dr prof drs ir ing bijv b.v d.w.z o.a m.b.t i.p.v a.u.b ca nl max min st"),
    numbered=_words("nr art blz p fig"),
    closing=_words("enz etc"),
)
_POLISH = SplitRules(
    never=_words("p dr prof inż mgr np tzn tj ul al św im ok m.in"), closing=_words("itd itp")
)
_RUSSIAN = SplitRules(
    never=_words("г-н г-жа д-р проф т.е т.к т.н напр ул им св см стр рис"), closing=_words("т.д т.п др г гг")
)
_COMMON = SplitRules(titles=_words("dr prof mr mrs st"), never=_words("nr"))

_TABLES = {
    "en": _ENGLISH,
    "de": _GERMAN,
    "fr": _FRENCH,
    "es": _SPANISH,
    "it": _ITALIAN,
    "pt": _PORTUGUESE,
    "nl": _DUTCH,
    "pl": _POLISH,
    "ru": _RUSSIAN,
}


def split_rules(language: str, extra: frozenset[str] = frozenset()) -> SplitRules:
    """The rules of a language (``de``, not ``de-AT``), or what nearly all have in common."""
    return dataclasses.replace(_TABLES.get(language, _COMMON), extra=extra)
