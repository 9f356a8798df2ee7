"""Secrets and personal data are taken out; dates, amounts and names stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("datafog", reason="the extra `redact` is not installed")
pytest.importorskip("detect_secrets", reason="the extra `redact` is not installed")

from memr1_plugin import Memory, Settings
from memr1_plugin.redaction import LibraryRedactor
from memr1_plugin.testing import HashEmbedder, ScriptedModel

BOTH = LibraryRedactor("all")
# Put together here, so that scanners of source code do not take these for real ones.
KEY = "AKIA" + "IOSFODNN7EXAMPLE"
GITHUB = "ghp_" + "abcdefghijklmnopqrstuvwxyz0123456789"
FOUND = [
    ("write to ana@example.org", "write to [EMAIL]"),
    ("call +49 30 901820 or (415) 555-2671", "call [PHONE] or [PHONE]"),
    ("card 4111 1111 1111 1111", "card [CARD]"),
    ("DE89 3704 0044 0532 0130 00 or GB82WEST12345698765432", "[IBAN] or [IBAN]"),
    ("SSN 536-90-4399 at 10.0.0.1", "SSN [SSN] at [IP]"),
    (f"{KEY} and {GITHUB}", "[SECRET] and [SECRET]"),
    ("my password is hunter2! and the pin: 4711", "my password is [SECRET] and the pin: [SECRET]"),
    ("https://bob:s3cr3t@host.example/x", "https://[SECRET]/x"),
    ("sk-" + "proj-abcdefghij0123456789ABCDEFGHIJ", "[SECRET]"),
    ("-----BEGIN RSA PRIVATE " + "KEY-----\nabc\n-----END RSA PRIVATE KEY-----", "[SECRET]"),
]


@pytest.mark.parametrize(("text", "left"), FOUND, ids=[left for _, left in FOUND])
def test_what_must_not_be_kept_is_taken_out(text: str, left: str) -> None:
    """Each kind is replaced by its name, and redacting again changes nothing."""
    assert BOTH.redact(text) == left
    assert BOTH.redact(left) == left


@pytest.mark.parametrize(
    "text",
    ["On 5/8/2023 at 13:56 I ran 12 km in 61 minutes.", "Order 123456789 came on 2023-05-08.", "The password is wrong.",
     "Ana and Bob paid $1,200.50 for flight LH 1234 in seat 12A.", "I was born on 3 May 1990 in 10115 Berlin."],
)  # fmt: skip
def test_what_a_memory_lives_on_stays(text: str) -> None:
    """When, where, how much and who is not redacted."""
    assert BOTH.redact(text) == text


def test_secrets_and_personal_data_are_two_kinds() -> None:
    """Each can be taken out alone."""
    text = f"ana@example.org has {KEY}"
    assert LibraryRedactor("secrets").redact(text) == "ana@example.org has [SECRET]"
    assert LibraryRedactor("personal").redact(text) == f"[EMAIL] has {KEY}"


def test_ordinary_conversations_are_left_alone(data_dir: Path) -> None:
    """Of LoCoMo's first dev conversation not one turn is changed."""
    first = json.loads((data_dir / "locomo" / "locomo_dev.json").read_text(encoding="utf-8"))[0]["conversation"]
    turns = [turn["text"] for session in first.values() if isinstance(session, list) for turn in session]
    assert len(turns) > 300
    assert [turn for turn in turns if BOTH.redact(turn) != turn] == []


def test_a_memory_takes_secrets_out_before_it_writes(tmp_path: Path) -> None:
    """`Settings(redact="all")` is all it takes; no byte of the secret is in the file."""
    with Memory.open(
        tmp_path / "bot.db", engine=ScriptedModel.heuristic(), embedder=HashEmbedder(), settings=Settings(redact="all")
    ) as memory:
        [change] = memory.observe(f"My key is {KEY}, write to ana@example.org.")
        assert change.after is not None and change.after.text == "My key is [SECRET], write to [EMAIL]."
    assert KEY.encode() not in (tmp_path / "bot.db").read_bytes()
