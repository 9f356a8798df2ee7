"""Several things named in one breath are all in the answer, and in one turn."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("trl", reason="needs the extra train")

from memr1_plugin.testing import HashEmbedder
from memr1_plugin.training import sources
from memr1_plugin.training.enumerations import conversations

LINES = ["Oh nice, I never tried that.", "What do you do for fun?"]


def test_the_turn_that_is_the_evidence_says_all_of_the_answer() -> None:
    """A LoRA answered "love" where love, faith and strength were said: here no gold is a part of what was listed."""
    told = [(q, {t.id: t.text for t in c.turns}) for c in conversations(5, 40, LINES) for q in c.questions]
    lists = [q for q, _ in told if " and " in q.answer]
    assert len(lists) > 0.7 * len(told) and len({q.answer for q in lists}) > 200
    for question, turns in told:
        [said] = question.evidence
        words = set(re.findall(r"\w+", question.answer.lower())) - {"his", "her", "he", "she", "him"}
        missing = words - set(re.findall(r"\w+", turns[said].lower()))
        assert len(missing) <= len(words) / 4, (question.answer, turns[said])
        assert "{" not in question.text + question.answer + turns[said]


def test_the_same_seed_tells_the_same() -> None:
    """A run can be repeated, and small talk stands between what is told."""
    assert list(conversations(1, 3, LINES)) == list(conversations(1, 3, LINES)) != list(conversations(2, 3, LINES))
    [told] = conversations(1, 1, LINES)
    assert sum(turn.text in LINES for turn in told.turns) == len(told.turns) * 2 / 3


def test_episodes_name_the_turn_among_what_serving_shows() -> None:
    """What is learned from them is the serving prompt."""
    [asked] = sources.list_episodes(sources.Amount(3, 1), HashEmbedder(64), LINES)
    found = [e for e in asked if e.places()]
    assert len(found) > len(asked) / 2
    assert all(e.completion() and e.question.answer in e.completion() for e in found)
