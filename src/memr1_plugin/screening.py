"""Screening: does a text talk to a model, instead of about somebody's life?

A text is read as people see it, and as a machine would after decoding: other alphabets, hidden characters, base64, hex,
rot13. Each reading is held against `screening_rules`. No model, no network, well under a millisecond a message; what
happens to a text that is caught is `guard`'s business. A determined writer gets past patterns: SECURITY.md says how.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol
from urllib.parse import unquote

from memr1_plugin.screening_languages import LANGUAGES
from memr1_plugin.screening_paraphrases import PARAPHRASES
from memr1_plugin.screening_rules import RULES

MAX_DEPTH = 2
"""Encodings inside encodings that are undone."""
MAX_READINGS = 40
"""Decoded parts of one text that are looked at; a text with more of them is caught for that alone."""


@dataclass(frozen=True)
class Finding:
    """Why a text was caught."""

    rule: str
    """The family of `screening_rules`, "hidden text" or "encoded text"."""
    reading: str
    """How the text was read: "plain", or what was undone ("base64", "rot13", ...)."""
    start: int = 0
    end: int = 0
    """Where, in the reading."""


class Screener(Protocol):
    """Anything that looks at a text before it is remembered."""

    def screen(self, text: str) -> list[Finding]:
        """Return what is wrong with `text`; [] if nothing is."""


class RuleScreener:
    """The screener that every memory has by default."""

    def screen(self, text: str) -> list[Finding]:
        """Return one finding for each family of rules that `text` matches, in any reading."""
        found: dict[str, Finding] = {}
        for n, (reading, read) in enumerate(_readings(text)):
            if n >= MAX_READINGS:
                found.setdefault("encoded text", Finding("encoded text", "too many parts"))
                break
            for finding in _match(reading, read):
                found.setdefault(finding.rule, finding)
        return list(found.values())


@dataclass(frozen=True)
class _Rules:
    """All patterns, and for each text that one of them needs, the places of those that do."""

    patterns: list[tuple[str, re.Pattern[str]]]
    needed: dict[str, list[int]]


@lru_cache(maxsize=1)
def _rules() -> _Rules:
    rules = _Rules([], {})
    for place, (family, needs, pattern) in enumerate(RULES + PARAPHRASES + LANGUAGES):
        rules.patterns.append((family, re.compile(unicodedata.normalize("NFKC", pattern), re.DOTALL)))
        for need in fold(needs).split("|"):
            rules.needed.setdefault(need, []).append(place)
    return rules


def _match(reading: str, text: str) -> Iterator[Finding]:
    if reading in _TELLTALE:
        yield Finding(_TELLTALE[reading], reading)
    folded, rules = fold(text), _rules()
    if reading in _RARELY and not any(word in folded for word in _TRIGGERS):
        return
    there = [need for need in rules.needed if need in folded]
    for place in sorted({place for need in there for place in rules.needed[need]}):
        family, pattern = rules.patterns[place]
        if (match := pattern.search(folded)) is not None:
            yield Finding(family, reading, match.start(), match.end())


# -- one text, as it is seen -------------------------------------------------------------------------------

_LOOKALIKES = str.maketrans("аеорсухіјѕԁɡһԛԝνοαρτυικχе", "aeopcyxijsdghqwvoaptuikxe")
_WORD = re.compile(r"\w+")
_SPACES = re.compile(r"[^\S\n]+")
_LINES = re.compile(r"\s*\n\s*")
_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d\uff07", "''\"\"'")


def fold(text: str) -> str:
    """Return `text` in lower case and one alphabet, without what nobody sees; lines stay lines."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_QUOTES))
        text = "".join(c for c in text if unicodedata.category(c) != "Cf" and not 0xFE00 <= ord(c) <= 0xFE0F)
        text = _WORD.sub(_one_alphabet, text)
    return _LINES.sub("\n", _SPACES.sub(" ", text)).strip().lower()


def _one_alphabet(match: re.Match[str]) -> str:
    word = match[0]
    mixed = not word.isascii() and any(c.isascii() and c.isalpha() for c in word)
    return word.translate(_LOOKALIKES) if mixed else word


# -- one text, as it could be read -------------------------------------------------------------------------

_TELLTALE = {"hidden": "hidden text", "base64": "encoded text", "base32": "encoded text", "hex": "encoded text",
             "binary": "encoded text"}  # fmt: skip
"""Readings that ordinary messages do not have."""
_RARELY = frozenset({"rot13", "backwards"})
_TRIGGERS = (
    "ignore",
    "disregard",
    "forget",
    "instruct",
    "prompt",
    "system",
    "assistant",
    "must",
    "always",
    "http",
    "the ",
)
"""What a text has if it was turned around or shifted and means something turned back."""


def _readings(text: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield (how, text): as it stands, then each way in which it means something else."""
    if depth == 0:
        yield "plain", text
        for name, other in _whole(text):
            if other != text:
                yield name, other
    for name, pattern, decode in _PARTS:
        for match in pattern.finditer(text):
            part = _readable(decode, match[0])
            if part is not None:
                yield name, part
                if depth + 1 < MAX_DEPTH:
                    yield from _readings(part, depth + 1)


def _whole(text: str) -> Iterator[tuple[str, str]]:
    if not text.isascii():
        smuggled = "".join(chr(ord(c) - 0xE0000) for c in text if 0xE0020 <= ord(c) <= 0xE007E)
        if len(smuggled) >= _MIN_SMUGGLED:
            yield "hidden", smuggled
        if len(_ZERO_WIDTH.findall(text)) >= _MIN_ZERO_WIDTH or "\u202e" in text:
            yield "hidden", text.replace("\u202e", "")
    yield "spaced letters", _SPACED.sub(lambda m: _BETWEEN.sub("", m[0]) + " ", text)
    if any(c in text for c in "0134578@$"):
        yield "digits for letters", _LEET_WORD.sub(lambda m: m[0].translate(_LEET), text)
    if text.count("%") >= _MIN_ESCAPES:
        yield "percent", unquote(text)
    if text.count("&") >= _MIN_ESCAPES:
        yield "html", html.unescape(text)
    if text.count("\\u") + text.count("\\x") >= _MIN_ESCAPES:
        yield "escapes", _ESCAPE.sub(lambda m: chr(int(m[1], 16)), text)
    yield "rot13", codecs.encode(text, "rot13")
    yield "backwards", text[::-1]


_MIN_SMUGGLED = 7
"""Invisible tag characters; a flag emoji has at most six."""
_MIN_ZERO_WIDTH = 3
_MIN_ESCAPES = 3
_ZERO_WIDTH = re.compile(r"(?<=[A-Za-z])[\u200b-\u200d\u2060\ufeff](?=[A-Za-z])")
_SPACED = re.compile(r"(?<!\w)(?:[^\W\d_][ .\-_*]){3,}[^\W\d_](?!\w)\s*")
_BETWEEN = re.compile(r"[ .\-_*]|\s+$")
_LEET = str.maketrans("0134578@$!", "oieastbasi")
_LEET_WORD = re.compile(r"[\w@$!]*[A-Za-z][\w@$!]*|\b\d+[A-Za-z]\w*|\b\d\w+")
_ESCAPE = re.compile(r"\\(?:u|x)\{?([0-9A-Fa-f]{2,4})\}?")


def _base64(part: str) -> bytes:
    part = part.rstrip("=").replace("-", "+").replace("_", "/")
    return base64.b64decode(part + "=" * (-len(part) % 4))


def _base32(part: str) -> bytes:
    part = part.rstrip("=")
    return base64.b32decode(part + "=" * (-len(part) % 8))


_NOT_HEX = re.compile(r"0x|\\x|[^0-9A-Fa-f]")


def _hex(part: str) -> bytes:
    return bytes.fromhex(_NOT_HEX.sub("", part))


def _binary(part: str) -> bytes:
    return bytes(int(bits, 2) for bits in re.findall("[01]{8}", part))


_PARTS: tuple[tuple[str, re.Pattern[str], Callable[[str], bytes]], ...] = (
    ("base64", re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}"), _base64),
    ("base32", re.compile(r"\b[A-Z2-7]{24,}={0,6}"), _base32),
    ("hex", re.compile(r"(?:0x|\\x)?[0-9A-Fa-f]{2}(?:(?:0x|\\x|[\s:,])?[0-9A-Fa-f]{2}){9,}"), _hex),
    ("binary", re.compile(r"[01]{8}(?:\s?[01]{8}){4,}"), _binary),
)
_PROSE = re.compile(r"[A-Za-z]{2,}\W+[A-Za-z]{2,}|[A-Za-z0-9+/]{16,}")


def _readable(decode: Callable[[str], bytes], part: str) -> str | None:
    """Return what `part` decodes to, if that is text with words in it."""
    try:
        text = decode(part).decode("utf-8")
    except (ValueError, binascii.Error):
        return None
    printable = sum(c.isprintable() or c.isspace() for c in text)
    return text if printable == len(text) and _PROSE.search(text) else None
