"""Text for a speech synthesizer, prepared while it is generated: sentence by sentence, as a reader would say it.

``speakable("It costs $5.50.")`` is "It costs five dollars and fifty cents."; ``SpeechStream`` does the same for a text
that still arrives.
"""

from __future__ import annotations

from .lexicon import Lexicon, Pronunciation
from .normalizer import Sentence, SpeechNormalizer, SpeechStream, speakable
from .options import SpeechOptions
from .voices import languages

__all__ = [
    "Lexicon",
    "Pronunciation",
    "Sentence",
    "SpeechNormalizer",
    "SpeechOptions",
    "SpeechStream",
    "languages",
    "speakable",
]
