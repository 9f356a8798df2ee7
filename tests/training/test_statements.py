"""Plain statements carry gold operations that the Manager's own parser reads."""

from __future__ import annotations

import re
from collections import Counter

import pytest

pytest.importorskip("trl", reason="needs the extra train")

from memr1_plugin.training.statements import ATTRIBUTES, conversations, examples


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
            assert f"\n{match[3]}. " in "\n" + example.prompt.body
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


def test_one_sentence_may_say_what_was_and_what_is() -> None:
    """A LoRA that had seen few of them answered Lisbon to "I moved to Berlin, I don't live in Lisbon any more."."""
    both = [
        (question.answer, turns[question.evidence[0]].text)
        for c in conversations(11, 80)
        for turns in [{t.id: t for t in c.turns}]
        for question in c.questions
        if question.evidence and " any more" in turns[question.evidence[0]].text
    ]
    assert len({text for _, text in both}) > 5
    for answer, text in both:
        over = re.search(r"(?:don't live in|not as a|don't have|don't drink) ([\w ]+?) any more", text)
        assert answer in text and (over is None or over[1] != answer)


def test_every_attribute_has_a_question_in_good_form_for_everybody() -> None:
    """Nothing is told of which nothing can be asked, and no placeholder stays."""
    asked = {q.text for c in conversations(5, 300) for q in c.questions}
    assert not [text for text in asked if "{" in text or "}" in text]
    assert all(attribute.asks and attribute.told for attribute in ATTRIBUTES)
