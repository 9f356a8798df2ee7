"""Redaction: secrets and personal data taken out of a text, with a note of what stood there.

Other people's libraries find them: detect-secrets (keys and tokens), phonenumbers (Google's libphonenumber), DataFog
(e-mail addresses, card, account and social security numbers, IP addresses); here is only what joins them. Names of
people are left: a memory without names is no memory. No model is loaded and nothing is sent anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Literal

from memr1_plugin.errors import MissingExtraError

try:
    import phonenumbers
    from datafog.engine import scan
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.plugins.base import RegexBasedDetector
    from detect_secrets.plugins.basic_auth import BasicAuthDetector
    from detect_secrets.plugins.ip_public import IPPublicDetector
except ImportError as error:
    raise MissingExtraError.of(error.name or "datafog", "redact") from error

Span = tuple[int, int, str]
"""Start, end, and what it is ("EMAIL")."""
What = Literal["secrets", "personal", "all"]

_PERSONAL = {
    "EMAIL": "EMAIL", "SSN": "SSN", "CREDIT_CARD": "CARD", "IP_ADDRESS": "IP", "DE_IBAN": "IBAN", "DE_TAX_ID": "TAX_ID",
    "DE_SOCIAL_SECURITY_NUMBER": "SSN", "DE_PASSPORT_NUMBER": "PASSPORT",
}  # fmt: skip
"""What DataFog finds that is taken out. Not its dates and postal codes: a memory lives on when and where."""
_MORE_SECRETS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
        r"\bgithub_pat_\w{22,}",
        r"\bsk-(?:ant-|proj-|svcacct-)?[\w-]{20,}",
        r"\bAIza[\w-]{35}",
        r"\bhf_[A-Za-z0-9]{30,}",
        r"\bya29\.[\w-]{20,}",
        r"(?i)\bbearer\s+[\w.~+/-]{20,}=*",
        r"(?<=://)[^\s/:@]+:[^\s/:@]+(?=@)",
    )
)
"""Kinds of secrets that detect-secrets 1.5 does not know, or knows the first line of."""
_SAID_SECRET = re.compile(
    r"(?i)\b(?:password|passwort|passwd|pass ?phrase|pin(?: code)?|api[ _-]?key|secret key|access token)\b"
    r"[^\S\n]*(?:is|are|was|ist|:|=|->)[^\S\n]*[\"'`]?(?P<value>(?=\S*[\d!@#$%^&*_])[^\s\"'`,;]{4,})"
)
"""A secret that somebody names: "my password is hunter2!". What follows must not look like a plain word."""
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")


class LibraryRedactor:
    """Takes out secrets, personal data, or both. Redacting twice is redacting once. Thread-safe."""

    def __init__(self, what: str = "all", *, region: str = "US") -> None:
        """Choose what goes.

        Args:
            what: "secrets", "personal" or "all".
            region: the country whose phone numbers are known without their country code.
        """
        finders: dict[str, list[Callable[[str], Iterator[Span]]]] = {
            "secrets": [_secrets],
            "personal": [_personal, lambda text: _phones(text, region)],
        }
        self._finders = [find for name, group in finders.items() if what in (name, "all") for find in group]

    def redact(self, text: str) -> str:
        """Return `text` with each find replaced by its kind in brackets: "write to [EMAIL]"."""
        parts, at = [], 0
        for start, end, kind in self._spans(text):
            parts += [text[at:start], f"[{kind}]"]
            at = end
        return "".join([*parts, text[at:]]) if parts else text

    def kinds(self, text: str) -> list[str]:
        """Return the kinds of what `redact` would take out, in order: ["EMAIL", "PHONE"]."""
        return [kind for _, _, kind in self._spans(text)]

    def _spans(self, text: str) -> Iterator[Span]:
        return _apart(span for find in self._finders for span in find(text))


def _apart(spans: Iterator[Span]) -> Iterator[Span]:
    """Yield spans from left to right, overlapping ones as the longer."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda s: (s[0], -s[1])):
        if kept and span[0] < kept[-1][1]:
            start, end, kind = kept[-1]
            kept[-1] = (start, max(end, span[1]), kind)
        else:
            kept.append(span)
    yield from kept


@lru_cache(maxsize=1)
def _secret_patterns() -> list[tuple[re.Pattern[str], str]]:
    """Return detect-secrets' patterns; not its guesses by entropy and key words, which are for source code."""
    left_out = (BasicAuthDetector, IPPublicDetector)
    found: list[tuple[re.Pattern[str], str]] = []
    plugins: Mapping[str, type[RegexBasedDetector]] = get_mapping_from_secret_type_to_class()
    for name, plugin in plugins.items():
        if issubclass(plugin, RegexBasedDetector) and not issubclass(plugin, left_out):
            found += [(pattern, name) for pattern in plugin().denylist]
    return found


def _secrets(text: str) -> Iterator[Span]:
    for pattern, _ in _secret_patterns():
        yield from ((*match.span(), "SECRET") for match in pattern.finditer(text))
    for pattern in _MORE_SECRETS:
        yield from ((*match.span(), "SECRET") for match in pattern.finditer(text))
    for match in _SAID_SECRET.finditer(text):
        yield (*match.span("value"), "SECRET")


def _personal(text: str) -> Iterator[Span]:
    found = scan(text, engine="regex", entity_types=list(_PERSONAL), locales=["de"])
    for entity in found.entities:
        # A bare number of nine digits is an order number more often than a social security number.
        if entity.type in _PERSONAL and not (entity.type == "SSN" and entity.text.isdigit()):
            yield entity.start, entity.end, _PERSONAL[entity.type]
    for match in _IBAN.finditer(text):
        if _is_iban(match[0]):
            yield (*match.span(), "IBAN")


def _is_iban(text: str) -> bool:
    """True if the check digits are right (ISO 13616: the number modulo 97 is 1)."""
    plain = text.replace(" ", "")
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _phones(text: str, region: str) -> Iterator[Span]:
    for match in phonenumbers.PhoneNumberMatcher(text, region, leniency=phonenumbers.Leniency.VALID):
        yield match.start, match.end, "PHONE"
