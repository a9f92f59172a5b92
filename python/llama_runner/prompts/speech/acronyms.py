"""Capitals in English: which are spelt, which are words, and what is mixed with digits."""

from __future__ import annotations

import re

from .numbers import EnglishNumbers
from .tape import Letters, Part, Tape

__all__ = ["apply"]

_SPECIAL = {
    "JPEG": "jay peg", "JPG": "jay peg", "MPEG": "em peg", "IEEE": "I triple E", "NAACP": "N double A C P",
    "NCAA": "N C double A",
    "AAA": "triple A", "MySQL": "my S Q L", "PostgreSQL": "Postgres Q L", "SQLite": "S Q Lite",
    "NoSQL": "no S Q L", "iOS": "I O S",
    "iPadOS": "I pad O S", "macOS": "mac O S", "tvOS": "T V O S", "watchOS": "watch O S", "OAuth": "O auth",
    "LaTeX": "lay tech", "TeX": "tech",
    "WiFi": "Wi-Fi", "Wi-Fi": "Wi-Fi", "wifi": "Wi-Fi", "OK": "okay", "SaaS": "sass", "PaaS": "pass",
    "IaaS": "I A A S", "LoRA": "lora",
    "GIF": "gif", "ChatGPT": "chat G P T", "OpenAI": "open A I", "xAI": "X A I", "DIY": "D I Y", "TV": "T V",
    "TVs": "T V's", "kHz": "kilohertz",
    "FreeBSD": "free B S D", "OpenSSL": "open S S L", "GraphQL": "graph Q L", "BibTeX": "bib tech",
    "NumPy": "num pie", "SciPy": "sigh pie",
    "PyPI": "pie P I", "PyTorch": "pie torch", "PyPy": "pie pie", "CPython": "C python", "Cython": "sigh thon",
    "ASCII": "askee", "CEOs": "C E O's",
    "UI/UX": "U I U X", "I/O": "I O", "TCP/IP": "T C P I P", "CI/CD": "C I C D", "GNU/Linux": "GNU Linux",
    "mRNA": "M R N A", "tRNA": "T R N A",
    "eBPF": "E B P F", "vRAM": "V RAM", "VRAM": "V RAM", "DRAM": "D RAM", "SDRAM": "S D RAM", "SRAM": "S RAM",
    "EEPROM": "E E PROM", "CDROM": "C D ROM",
    "llama.cpp": "llama C P P", "Node.js": "node J S", "Next.js": "next J S", "Vue.js": "view J S",
    ".NET": "dot net", "C++": "C plus plus", "C#": "C sharp",
    "F#": "F sharp", "LLaMA": "llama",
}  # fmt: skip
_WORDS = frozenset(
    (
        "AIDS AJAX ASEAN BASIC BERT BIOS BLAS CAD CAPTCHA CERN CORS COVID CRISPR CUDA DARPA DOS EBITDA FAANG "
        "FEMA FIFA FOMO GAN GNU HIPAA JSON LAN LAPACK LASER LIDAR MERS MIDI NAFTA NASA NASDAQ NATO NIMBY NOAA "
        "NUMA OPEC OSHA PIN POSIX POTUS RADAR RAG RAID RAM REST ROM SARS SATA SCADA SCOTUS SCUBA SIM SIMD "
        "SOAP SONAR SPA SWAT TOML UEFA UNESCO UNICEF UNIX VAT WAN YAML YOLO ZIP"
    ).split()
)
_SPELT = frozenset(
    (
        "AAA AAPL AARP ABA ABC AC ACLU ADHD AI AM AMA AMD AOL AOT API APIS ARN ASAP ATM ATV AWS CEO CFO CIO "
        "COO CPU CTO DC DOA EEG EKG EMEA EOD EOF EPA ESL ESPN ETA EU EULA EV EVS FAQ GPU GUI GUID HDMI HIV HR "
        "ID IDE IDS INRI IO IOU IP IPO IQ IRA IRS ISO ISP IT IUD LLM NLP NPU OCR ODBC OEM OLED OOM OS PC PM "
        "PR TPU TV UAE UAV UCLA UEFI UI UK UN URI URL US USA USAA USB USDA USO UUID UX VP VPN XAI"
    ).split()
)
# Words that are shouted now and then: anything else of up to five capitals is an acronym.
_SHOUTED = frozenset(
    (
        "A ABOUT ABOVE ADD AFTER AGAIN AGE AGO AIR ALERT ALL ALONE ALSO AN AND ANY ARE ART AS ASK AT BAD BE "
        "BEEN BEGIN BELOW BEST BIG BLACK BLUE BOTH BOX BOY BREAK BRING BUT BUY BY CALL CAN CAR CAT CHECK "
        "CLEAR CLOSE CODE COLD COME DAD DATA DAY DEATH DID DO DOG DONE DONT DOWN DROP EACH EAST EASY EAT END "
        "ENTER ERROR EVEN EVER EVERY EXIT EYE FALSE FAST FEW FILE FIND FIRE FIRST FIX FLY FOR FOUND FREE FROM "
        "FULL FUN GET GIVE GO GOD GOING GOOD GOT GREAT GREEN GROUP GUN HAD HAPPY HAS HAVE HE HELP HER HERE "
        "HEY HIGH HIM HIS HIT HOLD HOME HOT HOW I IF IN INDEX INFO INPUT INTO IS ITEM ITS JOB JOIN JUST KEEP "
        "KEY KILL KNOW LARGE LAST LATE LAW LAY LEARN LEFT LEG LESS LET LIE LIFE LIGHT LIKE LIMIT LIST LIVE "
        "LOG LONG LOOK LOSE LOST LOT LOVE LOW MADE MAIN MAKE MAN MANY MAP MATCH MAY ME MEN MIGHT MIND MINE "
        "MIX MOM MONEY MORE MOST MOVE MUCH MUST MY NAME NEED NEVER NEW NEWS NEXT NICE NIGHT NO NONE NORTH NOT "
        "NOTE NOW NULL OF OFF OIL OLD ON ONE ONLY ONTO OPEN OR ORDER OTHER OUR OUT OUTER OVER OWN PART PAST "
        "PAY PEN PLAN PLAY POINT POWER PRESS PRICE PUT QUICK QUIET RAW READ REAL RED REPLY RIGHT ROLE ROOT "
        "ROW RUN SAD SAFE SAID SALE SAME SAT SAVE SAY SEA SEE SELECT SELL SEND SENT SET SEX SHALL SHE SHOW "
        "SIDE SIT SIX SIZE SKY SMALL SO SOME SON SOON SORRY SOUTH SPACE START STATE STAY STEP STILL STOP "
        "STORY SUCH SUN SURE TABLE TAKE TALK TASK TAX TEA TELL TEN TEST TEXT THAN THANK THAT THE THEM THEN "
        "THERE THESE THEY THING THINK THIS THOSE THREE TIE TIME TIP TIPS TITLE TO TODAY TODO TOO TOP TOTAL "
        "TRUE TRUST TRY TURN TWO TYPE UNDER UNTIL UP UPON USE USED USER USING VALUE VERY WAIT WALK WANT WAR "
        "WARM WARN WAS WATCH WATER WAY WE WEEK WELL WENT WERE WEST WET WHAT WHEN WHERE WHICH WHILE WHITE "
        "WHOLE WHOSE WHY WILL WIN WITH WOMAN WON WORD WORK WORLD WORRY WOULD WOW WRITE WRONG YEAR YES YET YOU "
        "YOUNG YOUR ZERO"
    ).split()
)
_VOWELS = set("AEIOUY")

_SPECIAL |= {"WWI": "World War one", "WWII": "World War two", "WW1": "World War one", "WW2": "World War two"}
_SPECIAL_USE = re.compile(
    r"(?<![\w])(?:"
    + "|".join(re.escape(form) for form in sorted(_SPECIAL, key=len, reverse=True))
    + r")(?![\w+#]|-[A-Z])"
)
_JOINED = re.compile(r"(?<![\w/])([A-Z]{1,5})/([A-Z]{1,5})(?![\w/])")
_HTTP = re.compile(r"(?<!\w)(HTTP)/(?=[0-9])")
_CAPITALS = re.compile(r"(?<![\w'’])([A-Z]{2,})(s|['’]s|['’]S|es)?(?![\w])")
_MIXED = re.compile(
    r"(?<![\w.])(?=[0-9-]*[A-Za-z])(?:[A-Za-z]+-?[0-9]+|[0-9]+-?[A-Z]+[a-z]?)(?:-?[A-Za-z]{0,6}[0-9]*)*(?!\w|\.[0-9])"
)
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
    shouting = _CAPITALS.search(tape.text) is not None and _is_shouted(tape.text)
    tape.sub(_CAPITALS, lambda found: _capitals(found[1], found[2] or "", shouting))
    tape.sub(_INNER_CAPITALS, _inner)


def _is_shouted(text: str) -> bool:
    """Whether a sentence is in capitals of which many are plain words, so that they tell nothing."""
    letters = [char for char in text if char.isalpha()]
    if len(letters) < 12 or sum(char.isupper() for char in letters) < 0.8 * len(letters):
        return False
    words = [found[1] for found in _CAPITALS.finditer(text)]
    return 2 * sum(word in _SHOUTED or (len(word) > 5 and _pronounceable(word)) for word in words) >= len(
        words
    )


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


_ONSETS = frozenset(
    "BL BR CH CL CR DR FL FR GL GR KN PL PR QU SC SH SK SL SM SN SP ST SW TH TR TW WH WR PH".split()
)
_CODAS = frozenset(
    "CH CK CT FT LD LF LK LL LM LP LT MP ND NG NK NT PT RD RF RK RL RM RN RP RT SH SK SP SS ST TH TT".split()
)


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
    if piece in _WORDS or (piece in _SHOUTED and len(piece) > 2):
        return piece
    if piece.isupper():
        return piece if len(piece) > 3 and piece not in _SPELT and _pronounceable(piece) else " ".join(piece)
    return (
        piece.upper()
        if len(piece) == 1
        else " ".join(piece.upper())
        if not _VOWELS & set(piece.upper()) and len(piece) < 4
        else piece
    )


def _mixed_decimal(match: re.Match[str], say: EnglishNumbers) -> str:
    return f"{_mixed_letters(match[1])} {say.cardinal(int(match[2]))} point {say.digits(match[3])}"


def _inner(match: re.Match[str]) -> str | None:
    word, capitals = match[1], match[2]
    if capitals in _WORDS or (len(capitals) > 3 and _pronounceable(capitals)):
        return None
    head = word.upper() if len(word) == 1 else word
    return f"{head} {' '.join(capitals)}"
