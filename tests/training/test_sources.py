"""Supervised sources put questions in the person who would ask them."""

from __future__ import annotations

import pytest

pytest.importorskip("trl", reason="needs the extra train")

from collections import Counter

from memr1_plugin.testing import HashEmbedder
from memr1_plugin.training import sources, synthetic


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        ("Where did Ana park her car?", "Where did I park my car?"),
        ("What does Ana do to relax?", "What do I do to relax?"),
        ("When is Ana's interview?", "When is my interview?"),
        ("How long has she lived there?", "How long have I lived there?"),
        ("Who gave it to Ana?", "Who gave it to me?"),
        ("What did Ana buy herself?", "What did I buy myself?"),
        ("Why did Bob sell the car?", ""),
        ("What Ana says is odd?", ""),
    ],
)
def test_a_question_about_the_one_who_asks_is_put_in_the_first_person_or_left_out(asked: str, first: str) -> None:
    """What cannot be turned word by word is left out, never half turned."""
    assert sources.in_first_person(asked, "Ana") == first


def test_a_conversation_told_by_the_user_keeps_its_turns_and_evidence() -> None:
    """Only the speaker's name changes, and each question still rests on turns that are there."""
    told = next(synthetic.conversations(5, 1)).conversation
    mine = sources.as_user(told)
    assert mine.speakers[0] == "user" and [t.text for t in mine.turns] == [t.text for t in told.turns]
    assert {t.speaker for t in mine.turns} == {"user", told.speakers[1]}
    ids = {t.id for t in mine.turns}
    assert mine.questions and all(set(q.evidence) <= ids for q in mine.questions)
    assert not any(told.speakers[0] in q.text for q in mine.questions)


def test_the_manager_sees_enough_that_is_to_be_left_alone() -> None:
    """One operation in five is a NOOP at least, and each kind occurs.

    Of small talk a tenth was kept, from the days when most of a conversation was small talk to decide about; by then a
    rule decided it, 8 % were NOOPs, and a Manager trained so said ADD to what it had been told before.
    """
    examples = sources.operation_examples(sources.Amount(7, 2), HashEmbedder(), plain=10)
    kinds = Counter(e.completion.split()[0] for e in examples)
    assert set(kinds) == {"ADD", "UPDATE", "DELETE", "NOOP"} and 5 * kinds["NOOP"] >= sum(kinds.values())
