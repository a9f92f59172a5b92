"""Capitals in English: which are spelt, which are words, and what is mixed with digits."""

from __future__ import annotations

import re

from .numbers import EnglishNumbers
from .tape import Letters, Part, Tape

__all__ = ["apply"]

_SPECIAL = {
    "JPEG": "jay peg", "JPG": "jay peg", "MPEG": "em peg", "IEEE": "I triple E", "NAACP": "N double A C P", "NCAA": "N C double A",
    "AAA": "triple A", "MySQL": "my S Q L", "PostgreSQL": "Postgres Q L", "SQLite": "S Q Lite", "NoSQL": "no S Q L", "iOS": "I O S",
    "iPadOS": "I pad O S", "macOS": "mac O S", "tvOS": "T V O S", "watchOS": "watch O S", "OAuth": "O auth", "LaTeX": "lay tech", "TeX": "tech",
    "WiFi": "why fie", "Wi-Fi": "why fie", "wifi": "why fie", "OK": "okay", "SaaS": "sass", "PaaS": "pass", "IaaS": "I A A S", "LoRA": "lora",
    "GIF": "gif", "ChatGPT": "chat G P T", "OpenAI": "open A I", "xAI": "X A I", "DIY": "D I Y", "TV": "T V", "TVs": "T V's", "kHz": "kilohertz",
    "FreeBSD": "free B S D", "OpenSSL": "open S S L", "GraphQL": "graph Q L", "BibTeX": "bib tech", "NumPy": "num pie", "SciPy": "sigh pie",
    "PyPI": "pie P I", "PyTorch": "pie torch", "PyPy": "pie pie", "CPython": "C python", "Cython": "sigh thon", "ASCII": "askee", "CEOs": "C E O's",
    "UI/UX": "U I U X", "I/O": "I O", "TCP/IP": "T C P I P", "CI/CD": "C I C D", "GNU/Linux": "GNU Linux", "mRNA": "M R N A", "tRNA": "T R N A",
    "eBPF": "E B P F", "vRAM": "V RAM", "VRAM": "V RAM", "DRAM": "D RAM", "SDRAM": "S D RAM", "SRAM": "S RAM", "EEPROM": "E E PROM", "CDROM": "C D ROM",
    "llama.cpp": "llama C P P", "Node.js": "node J S", "Next.js": "next J S", "Vue.js": "view J S", ".NET": "dot net", "C++": "C plus plus", "C#": "C sharp",
    "F#": "F sharp", "LLaMA": "llama",
}  # fmt: skip
_WORDS = frozenset(
    "NASA NATO UNICEF UNESCO OPEC AIDS RAM ROM LASER RADAR SONAR SCUBA SIM PIN NAFTA CAPTCHA COVID SWAT FIFA UEFA BASIC CRUD JSON "
    "LAN WAN REST AJAX CUDA RAG NUMA POSIX UNIX BIOS CAD DOS MIDI NASDAQ SARS MERS POTUS SCOTUS FOMO YOLO FEMA OSHA HIPAA "
    "ASEAN DARPA CERN NOAA NIMBY YAML TOML GAN LIDAR EBITDA HVAC SOAP BERT CORS SPA VAT ZIP FAANG SCADA GNU BLAS "
    "LAPACK SIMD RAID SATA CRISPR LED".split()
) - {"HVAC", "LED", "CRUD"}
_SPELT = frozenset(
    "USA UCLA UAE AARP ASAP AAPL IPO CEO CFO CTO COO CIO API APIS AI UI UX EU UK UN US ID IQ IT OS TV PC PR HR VP AC DC AM PM IP IO "
    "VPN FAQ LLM NLP ATM ATV DOA EOF ETA EOD EMEA EULA UEFI IDE IDEA IMAX INRI IOU ISO ISP IUD IRA IRS OEM OCR ODBC OLED UAV URI URL "
    "USAA USB USDA USO ACLU AAA ABA ABC AOL AMD ARN AWS ESPN EPA EKG EEG ESL EV EVS ACID AMA ADHD ANSI HDMI HIV RISC XAI EOS BOS "
    "GUI GPU CPU TPU NPU UUID GUID IDS OOM AOT JIT".split()
) - {"ACID", "RISC", "ANSI", "JIT", "OEM", "IDEA", "IMAX", "EOS", "BOS"} | {"OEM"}
# Words that are shouted now and then: anything else of up to five capitals is an acronym.
_SHOUTED = frozenset(
    (
        "A I AN AND ARE AS AT BE BUT BY CAN DID DO FOR FROM GET GO GOT HAD HAS HE HER HIM HIS HOW IF IN IS ITS JUST LET MAY ME MUST MY "
        "NEW NO NOT NOW OF OFF OLD ON ONE OR OUR OUT OWN RUN SAY SEE SHE SO TEN THE TO TOO TOP TWO UP USE VERY WAS WAY WE WHO WHY WILL "
        "WITH YES YET YOU YOUR ALL ANY ALSO BAD BIG BEST BEEN BOTH CALL CODE COME DATA DAY DONE DONT DOWN EACH EASY END EVEN EVER FAST "
        "FIND FREE FULL FUN GIVE GOOD GREAT HAVE HELP HERE HIGH HOLD HOME HOT INTO ITEM KEEP KEY KILL KNOW LAST LATE LEFT LESS LIFE "
        "LIKE LIST LIVE LONG LOOK LOSE LOST LOT LOVE LOW MADE MAIN MAKE MANY MIND MINE MORE MOST MOVE MUCH NAME NEED NEVER NEXT NICE NONE "
        "NOTE FILE ONLY ONTO OPEN OVER PART PAST PLAN PLAY PUT READ REAL RED RIGHT ROLE ROOT SAFE SAID SALE SAME SAVE SEND SENT SET SHOW SIDE "
        "SIZE SOME SOON STAY STEP STILL STOP SUCH SURE TAKE TALK TASK TELL TEST TEXT THAN THAT THEM THEN THERE THESE THEY THIS THOSE "
        "TIME TIP TIPS TITLE TODAY TRUE TRY TURN TYPE UNTIL UPON USED USER WAIT WALK WANT WARN WELL WENT WERE WHAT WHEN WHERE WHICH WHILE WON "
        "WORD WORK WRITE WRONG YEAR ZERO ABOUT ABOVE AFTER AGAIN ALERT ALONE BEGIN BELOW BREAK BRING CHECK CLEAR CLOSE DEATH ENTER ERROR "
        "EVERY FALSE FIRST FOUND GOING GROUP HAPPY INPUT LARGE LEARN LIGHT MATCH MIGHT MONEY NIGHT OTHER OUTER POINT POWER PRESS PRICE "
        "QUICK QUIET REPLY SHALL SMALL SORRY SOUTH SPACE START STATE STORY THANK THING THINK THREE TOTAL TRUST UNDER USING VALUE WATCH "
        "WATER WEEK WHITE WHOLE WHOSE WOMAN WORLD WORRY WOULD WOW YOUNG EXIT FIRE WARM COLD BLUE GREEN BLACK BUY SELL NORTH EAST WEST INFO FIX "
        "TODO SELECT JOIN TABLE ORDER GROUP WHERE LIMIT INDEX DROP NULL OMG NEWS CAR DOG CAT MAN MEN GOD WAR SUN SEA AIR ART AGE ADD ASK BOX BOY EAT "
        "EYE FEW FLY GUN HEY HIT JOB LAW LAY LEG LIE LOG MAP MIX MOM DAD OIL PAY PEN RAW ROW SAD SAT SEX SIT SIX SKY SON TAX TEA TIE WET WIN AGO AM"
    ).split()
) - {"OMG", "AM"}
_VOWELS = set("AEIOUY")

_SPECIAL_USE = re.compile(
    r"(?<![\w])(?:" + "|".join(re.escape(form) for form in sorted(_SPECIAL, key=len, reverse=True)) + r")(?![\w+#]|-[A-Z])"
)
_JOINED = re.compile(r"(?<![\w/])([A-Z]{1,5})/([A-Z]{1,5})(?![\w/])")
_HTTP = re.compile(r"(?<!\w)(HTTP)/(?=[0-9])")
_CAPITALS = re.compile(r"(?<![\w'’])([A-Z]{2,})(s|['’]s|['’]S|es)?(?![\w])")
_MIXED = re.compile(r"(?<![\w.])(?=[0-9-]*[A-Za-z])(?:[A-Za-z]+-?[0-9]+|[0-9]+-?[A-Z]+[a-z]?)(?:-?[A-Za-z]{0,6}[0-9]*)*(?!\w|\.[0-9])")
_MIXED_DECIMAL = re.compile(r"(?<![\w.])([A-Z][A-Za-z]{0,8})-?([0-9]{1,3})\.([0-9]{1,3})(?![\w]|\.[0-9])")
_PIECE = re.compile(r"[A-Za-z]+|[0-9]+")
_ORDINAL_OR_UNIT = re.compile(r"[0-9]+(?:st|nd|rd|th|s|x|k|m|K|M|B|T)$")
_SINGLE_PLURAL = re.compile(r"(?<![\w])([A-Z])['’]s(?= (?:and|or|in|on)\b|[,.;])")
_INNER_CAPITALS = re.compile(r"(?<![\w])([a-z]+|[A-Z][a-z]+)([A-Z]{2,5})(?![\w])")
_DIGIT_PLURAL = re.compile(r"['’]?s$")


def specials(tape: Tape) -> None:
    """Names with a pronunciation of their own, before anything looks at their parts."""
    tape.sub(_SPECIAL_USE, lambda found: _SPECIAL[found[0]])


def apply(tape: Tape, say: EnglishNumbers) -> None:
    """Spell what is spelt. Runs before plain numbers, since it says digits that are part of a name."""
    text = tape.text
    if text.islower():
        tape.sub(_MIXED, lambda found: _mixed(found[0], say))
        return
    tape.rewrite(_HTTP, "HTTP ")
    tape.rewrite(_JOINED, lambda found: f"{found[1]} {found[2]}")
    tape.sub(_MIXED_DECIMAL, lambda found: _mixed_decimal(found, say))
    tape.sub(_MIXED, lambda found: _mixed(found[0], say))
    shouting = _is_shouted(tape.text)
    tape.sub(_CAPITALS, lambda found: _capitals(found[1], found[2] or "", shouting))
    tape.sub(_INNER_CAPITALS, _inner)


def _is_shouted(text: str) -> bool:
    """Whether a whole sentence is in capitals, so that they tell nothing."""
    letters = [char for char in text if char.isalpha()]
    return len(letters) > 12 and " " in text.strip() and sum(char.isupper() for char in letters) > 0.8 * len(letters)


def _capitals(word: str, ending: str, shouting: bool) -> Part | None:
    plural = "'s" if ending.startswith(("s", "'", "’")) else ""
    if word in _SPELT or (word + "S" in _SPELT):
        return Letters(word, plural)
    if word in _WORDS:
        return word + ("s" if ending == "s" else plural)
    if word in _SHOUTED or (shouting and len(word) > 2):
        return None if not word.isascii() else word.lower() + ending.lower()
    if len(word) > 5 and (len(word) > 8 or _pronounceable(word)):
        return (word + ending).lower()
    if len(word) > 3 and _pronounceable(word):
        return word + ending
    return Letters(word, plural)


def _pronounceable(word: str) -> bool:
    """Whether it reads like a word: vowels, no more than two consonants between them, no odd beginning."""
    run = vowels = 0
    for char in word:
        if char in _VOWELS:
            run = 0
            vowels += 1
        else:
            run += 1
            if run > 2:
                return False
    if vowels == 0 or vowels * 5 < len(word) or (run > 1 and word[-2:] not in _CODAS):
        return False
    return word[1] in _VOWELS or word[0] in _VOWELS or word[:2] in _ONSETS


_ONSETS = frozenset("BL BR CH CL CR DR FL FR GL GR KN PL PR QU SC SH SK SL SM SN SP ST SW TH TR TW WH WR PH".split())
_CODAS = frozenset("CH CK CT FT LD LF LK LL LM LP LT MP ND NG NK NT PT RD RF RK RL RM RN RP RT SH SK SP SS ST TH TT".split())


def _mixed(text: str, say: EnglishNumbers) -> str | None:
    """MP3, H2O, GPT-4, COVID-19, x86: letters, words and numbers one after the other."""
    if _ORDINAL_OR_UNIT.match(text) or re.fullmatch(r"[a-z]{4,}-[0-9]+|[0-9]+-[A-Za-z]{3,}.*", text):
        return None
    ending = ""
    if re.search(r"[0-9]s$", text):
        text, ending = text[:-1], "s"
    if len(text) > 40:
        return None
    out: list[str] = []
    for piece in _PIECE.findall(text):
        if piece[0].isdecimal():
            out.append(_mixed_number(piece, bool(out) and len(out[-1]) == 1, say))
        else:
            out.append(_mixed_letters(piece))
    said = " ".join(out)
    return said + ("'s" if said[-2:-1] == " " else "s") if ending else said


def _mixed_number(digits: str, after_letter: bool, say: EnglishNumbers) -> str:
    if digits[0] == "0" or len(digits) > 4:
        return say.digits(digits)
    if len(digits) == 3:
        return say.pairwise(int(digits))
    if len(digits) == 4:
        return say.year(int(digits))
    return say.cardinal(int(digits))


def _mixed_letters(piece: str) -> str:
    if piece in _WORDS or piece in _SHOUTED and len(piece) > 2:
        return piece
    if piece.isupper():
        return piece if len(piece) > 3 and piece not in _SPELT and _pronounceable(piece) else " ".join(piece)
    return piece.upper() if len(piece) == 1 else " ".join(piece.upper()) if not _VOWELS & set(piece.upper()) and len(piece) < 4 else piece


def _mixed_decimal(match: re.Match[str], say: EnglishNumbers) -> str:
    return f"{_mixed_letters(match[1])} {say.cardinal(int(match[2]))} point {say.digits(match[3])}"


def _inner(match: re.Match[str]) -> str | None:
    word, capitals = match[1], match[2]
    if capitals in _WORDS or (len(capitals) > 3 and _pronounceable(capitals)):
        return None
    head = word.upper() if len(word) == 1 else word
    return f"{head} {' '.join(capitals)}"
