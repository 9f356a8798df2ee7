"""Synthetic conversations: reproducible, consistent with their own gold, and varied."""

from __future__ import annotations

from collections import Counter

import pytest

from memr1_plugin.errors import InputError
from memr1_plugin.training import synthetic
from memr1_plugin.training.synthetic import Synthetic
from memr1_plugin.training.topics import fill, slots, topics
from memr1_plugin.types import OperationKind


@pytest.fixture(scope="module")
def told() -> list[Synthetic]:
    """Thirty conversations."""
    return list(synthetic.conversations(11, 30))


def test_a_seed_gives_the_same_conversations() -> None:
    """Conversation n of a seed is the same however many are made."""
    few, many = list(synthetic.conversations(3, 2)), list(synthetic.conversations(3, 4))
    assert few == many[:2]
    assert few[0] != next(synthetic.conversations(4, 1))


def test_every_turn_has_a_gold_operation_that_points_back(told: list[Synthetic]) -> None:
    """UPDATE and DELETE name an earlier turn, which said something worth adding."""
    for one in told:
        order = {turn.id: n for n, turn in enumerate(one.conversation.turns)}
        assert order.keys() == one.gold.keys()
        for turn_id, gold in one.gold.items():
            if gold.kind in (OperationKind.UPDATE, OperationKind.DELETE):
                assert gold.target is not None and order[gold.target] < order[turn_id]
                assert one.gold[gold.target].kind in (OperationKind.ADD, OperationKind.UPDATE)


def test_all_kinds_of_questions_and_operations_occur(told: list[Synthetic]) -> None:
    """Lists, dates, inferences, single facts and unanswerable ones; every operation."""
    categories = Counter(q.category for one in told for q in one.conversation.questions)
    assert set(categories) == {"1", "2", "3", "4", "5"}
    assert min(categories.values()) > 25
    kinds = Counter(gold.kind for one in told for gold in one.gold.values())
    assert set(kinds) == set(OperationKind)


def test_evidence_exists_and_only_unanswerable_questions_lack_it(told: list[Synthetic]) -> None:
    """Each answerable question rests on turns of its own conversation."""
    for one in told:
        ids = {turn.id for turn in one.conversation.turns}
        for question in one.conversation.questions:
            assert set(question.evidence) <= ids
            assert bool(question.evidence) != question.unanswerable
            assert bool(question.answer) != question.unanswerable


def test_no_slot_is_left_in_the_text(told: list[Synthetic]) -> None:
    """Braces and choices of the topic files never reach a conversation."""
    for one in told:
        texts = [t.text for t in one.conversation.turns]
        texts += [s for q in one.conversation.questions for s in (q.text, q.answer)]
        assert not [text for text in texts if set("{}|") & set(text)]


def test_short_answers_are_said_in_their_evidence(told: list[Synthetic]) -> None:
    """Single-fact answers can be read off: most of their words stand in the evidence turn."""
    read = total = 0
    for one in told:
        said = {turn.id: turn.text.lower() for turn in one.conversation.turns}
        for question in one.conversation.questions:
            if question.category == "4" and question.answer not in ("Yes", "No"):
                words = [w.strip('",.') for w in question.answer.lower().split()]
                text = " ".join(said[e] for e in question.evidence)
                read += sum(word in text for word in words) >= 0.5 * len(words)
                total += 1
    assert read / total > 0.9


def test_a_replaced_fact_answers_with_its_newest_value(told: list[Synthetic]) -> None:
    """No question's evidence was replaced or withdrawn later, except when it asks for a date."""
    for one in told:
        gone = {g.target for g in one.gold.values() if g.kind in (OperationKind.UPDATE, OperationKind.DELETE)}
        for question in one.conversation.questions:
            if question.category == "4":
                assert not gone & set(question.evidence), question


def test_topics_are_many() -> None:
    """More than a hundred topics, each with a telling and a question."""
    found = topics()
    assert len(found) > 150
    assert all(topic.said["S"] and topic.asks for topic in found)
    assert len({topic.name for topic in found}) == len(found)


def test_every_topic_says_what_it_is_asked() -> None:
    """Each telling renders with its values, and nearly all answers about one telling are read off it, word by word."""
    small = {
        "his",
        "her",
        "he",
        "she",
        "him",
        "to",
        "by",
        "a",
        "an",
        "the",
        "of",
        "in",
        "and",
        "for",
        "on",
        "with",
        "it",
    }
    hardly, asked = [], 0
    for n, topic in enumerate(t for t in topics() if t.kind == "talk"):
        world = synthetic._new_world(n)
        values = synthetic._values(world, n % 2, distinct=True)
        golds = synthetic._golds(values, world.at)
        said = " ".join(fill(s, values, world.rng) for s in topic.said["S"] + topic.said["R"]).lower()
        assert not set("{}|") & set(said), topic.name
        for ask in topic.asks:
            questions = [fill(q, golds, world.rng) for q in ask.questions]
            answers = [fill(g, golds, world.rng) for g in ask.golds]
            assert all(q.endswith("?") for q in questions) and not set("{}|") & set("".join(questions + answers))
            if ask.kind == "?" and not slots(ask.golds[0]) & {"past", "fut", "pastyear", "now", "month"}:
                words = {w.strip('",.;!').lower() for w in answers[0].split()} - small
                asked += 1
                if words - {"yes", "no"} and sum(w[:4] in said for w in words) < 0.6 * len(words):
                    hardly.append((topic.name, answers[0]))
    assert asked > 1_000 and len(hardly) < 0.03 * asked, hardly


def test_a_negative_count_is_refused() -> None:
    """The error says what was expected."""
    with pytest.raises(InputError, match="expected 0 or more"):
        list(synthetic.conversations(1, -1))
