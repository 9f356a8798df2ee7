"""Plain statements carry gold operations that the Manager's own parser reads."""

from __future__ import annotations

import re
from collections import Counter

import pytest

pytest.importorskip("trl", reason="needs the extra train")

from memr1_plugin.training.statements import conversations, examples


def test_the_same_seed_gives_the_same_examples() -> None:
    """A run can be repeated, and another seed says other things."""
    assert list(examples(1, 20)) == list(examples(1, 20)) != list(examples(2, 20))


def test_every_operation_occurs_and_names_a_memory_that_is_shown() -> None:
    """The gold is one line of the operation language; a target is a number of the prompt's list."""
    kinds: Counter[str] = Counter()
    for example in examples(3, 200):
        match = re.fullmatch(r"(ADD|NOOP)|(UPDATE|DELETE) (\d+)", example.completion)
        assert match is not None
        kinds[match[1] or match[2]] += 1
        if match[3]:
            assert f"\n{match[3]}. [" in "\n" + example.prompt.body
    assert min(kinds.values()) > 10 and kinds["ADD"] > kinds["NOOP"]


def test_a_question_is_answered_by_the_newest_statement_about_it() -> None:
    """What was replaced may have been told too: the gold quotes the turn that holds; some ask what nobody said."""
    told = list(conversations(7, 60))
    asked = [(q, {t.id: t for t in c.turns}) for c in told for q in c.questions]
    assert 0.05 < sum(q.unanswerable for q, _ in asked) / len(asked) < 0.4
    for question, turns in asked:
        if question.unanswerable:
            assert (question.answer, question.evidence) == ("", ())
        else:
            [said] = question.evidence
            assert question.answer in turns[said].text
    assert list(conversations(7, 5)) == told[:5]
