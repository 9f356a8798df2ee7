"""Rewards: the worked examples, the corners, and what happens when one cannot be computed."""

from __future__ import annotations

import doctest
import pickle
from dataclasses import FrozenInstanceError

import pytest

from memr1_plugin.agents import answerer
from memr1_plugin.errors import InputError
from memr1_plugin.operations import parse
from memr1_plugin.training import rewards
from memr1_plugin.types import Fact, MemoryItem, Scope, aware

NOW = aware(None)


def _fact(text: str = "I moved.") -> Fact:
    return Fact(text, "Ana", NOW)


def _item(number: int, text: str, *turn_ids: str) -> MemoryItem:
    return MemoryItem(number, Scope(), text, "Ana", NOW, NOW, NOW, turn_ids)


def test_worked_examples_run() -> None:
    """Every reward's worked example gives the value that the page shows."""
    found = doctest.testmod(rewards)
    assert found.attempted >= 8 and found.failed == 0


def test_every_reward_is_a_plain_picklable_function() -> None:
    """A reward crosses to another process: it is found by its name, and holds no state."""
    for name in ("exact_match", "token_f1", "manager_format", "answer_format", "brevity", "compression"):
        function = getattr(rewards, name)
        assert pickle.loads(pickle.dumps(function)) is function and function.__doc__


def test_an_abstention_is_right_only_for_a_question_without_an_answer() -> None:
    """No gold answer: silence is worth 1 and anything said 0; with one, silence is worth 0."""
    for reward in (rewards.exact_match, rewards.token_f1):
        assert reward("", "") == 1.0 and reward("May", "") == 0.0 and reward("", "May") == 0.0


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("ADD\nNOOP", 1.0),
        ("ADD", 0.5),
        ("ADD\nUPDATE 9", 0.5),
        ("what?\n?", 0.0),
        ("ADD\nNOOP\nADD\nADD", 0.5),
        ("", 0.0),
    ],
)
def test_manager_format_is_the_share_of_valid_lines(completion: str, value: float) -> None:
    """Missing, foreign and surplus lines all lower the share."""
    facts = [_fact(), _fact("I sing.")]
    assert rewards.manager_format(parse(completion, facts, [_item(4, "x")]), 2) == value


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        (" none", 1.0),
        (" 1 -> May", 1.0),
        ("1 2 -> May", 1.0),
        (" 1 1 -> May", 0.5),
        (" 3 -> May", 0.5),
        (" 1 -> ", 0.5),
        ("May", 0.0),
    ],
)
def test_answer_format_knows_the_language(completion: str, value: float) -> None:
    """A completion in the language is worth 1, one with a wrong number or no words 0.5, prose 0."""
    assert rewards.answer_format(completion, [_item(7, "x"), _item(9, "y")]) == value


def test_the_gold_completion_of_the_answer_agent_is_worth_full_marks() -> None:
    """What `answerer.completion` writes, the format reward finds valid: one language, not two."""
    items = [_item(n, "x") for n in range(1, 6)]
    assert rewards.answer_format(answerer.completion([2, 5], "May"), items) == 1.0
    assert rewards.answer_format(answerer.completion([], ""), items) == 1.0


def test_evidence_is_held_only_by_an_item_that_still_says_it() -> None:
    """An UPDATE that keeps a turn's id and drops its words has lost the evidence."""
    said = [("t1", "I moved to Berlin."), ("t2", "I have a dog.")]
    assert rewards.held_turns(said, [_item(1, "I moved to Berlin and have a dog", "t1", "t2")]) == {"t1", "t2"}
    assert rewards.held_turns(said, [_item(1, "I have a dog.", "t1", "t2")]) == {"t2"}
    assert rewards.held_turns(said, []) == set()


def test_naming_every_memory_is_not_the_best_answer() -> None:
    """Evidence F1 falls with every memory named in vain; for an unanswerable question naming none is best."""
    scores = [rewards.evidence_f1({"a"}, used) for used in ([["a"]], [["a"], ["b"]], [["b"]], [])]
    assert scores == [1.0, pytest.approx(2 / 3), 0.0, 0.0]
    assert rewards.evidence_f1(set(), []) == 1.0 and rewards.evidence_f1(set(), [["a"]]) == 0.0


def test_a_merged_memory_is_not_punished_for_its_other_turns() -> None:
    """A memory that came from three turns is one memory: one right turn makes it right."""
    assert rewards.evidence_f1({"a"}, [["a", "b", "c"]]) == 1.0
    assert rewards.evidence_f1({"a", "b"}, [["a", "b", "c"]]) == 1.0


def test_a_reward_that_cannot_be_computed_raises() -> None:
    """No evidence, no facts, nothing said, no budget: an error with a remedy, never a zero."""
    with pytest.raises(InputError, match="no evidence"):
        rewards.evidence_coverage(set(), {"t1"})
    with pytest.raises(InputError, match="no facts"):
        rewards.manager_format(parse("", [], []), 0)
    with pytest.raises(InputError, match="0 words were said"):
        rewards.compression(1, 2, 0)
    with pytest.raises(InputError, match="budget"):
        rewards.brevity("May", budget=0)


def test_weights_are_checked_against_what_is_computed() -> None:
    """A weight for an unknown part, a NaN part or no weight at all is refused, and the message names it."""
    with pytest.raises(InputError, match="token_f2"):
        rewards.combine({"token_f1": 1.0}, {"token_f2": 1.0})
    with pytest.raises(InputError, match="token_f1 is nan"):
        rewards.combine({"token_f1": float("nan")}, {"token_f1": 1.0})
    with pytest.raises(InputError, match="not 0"):
        rewards.combine({"token_f1": 1.0}, {"token_f1": 0.0})


def test_a_breakdown_keeps_parts_that_weigh_nothing() -> None:
    """Every part is there to be logged; the total counts the weighted ones; nothing can be changed."""
    found = rewards.combine({"token_f1": 0.5, "brevity": 1.0}, {"token_f1": 2.0})
    assert found.parts["brevity"] == 1.0 and found.total == 1.0
    with pytest.raises(FrozenInstanceError):
        found.parts = {}  # type: ignore[misc]


def test_the_floor_is_below_every_readable_completion() -> None:
    """A completion of which nothing can be read is worth 0, whatever the bank would have answered."""
    worst = rewards.combine(dict.fromkeys(rewards.MANAGER_WEIGHTS, 0.0) | {"compression": 1.0}, rewards.MANAGER_WEIGHTS)
    assert rewards.floor(rewards.MANAGER_WEIGHTS, rewards.MANAGER_WEIGHTS).total == 0.0 < worst.total


def test_default_weights_name_real_parts() -> None:
    """Every default weight is for a part that exists."""
    for weights in (rewards.PAPER_WEIGHTS, rewards.MANAGER_WEIGHTS, rewards.ANSWER_WEIGHTS):
        rewards.check_weights(weights, rewards.PARTS)
