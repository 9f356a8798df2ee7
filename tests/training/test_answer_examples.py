"""Supervised examples of the Answer Agent: what serving shows, and no line that is always right."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra train")

from memr1_plugin.errors import DataError
from memr1_plugin.evaluation.datasets import Conversation, Question
from memr1_plugin.settings import Settings
from memr1_plugin.testing import HashEmbedder
from memr1_plugin.training import examples
from memr1_plugin.training.episodes import AnswerEpisode, answer_episodes
from memr1_plugin.types import Scope, Turn

PETS = ("cat", "dog", "bird", "fish", "horse", "goat", "duck", "hen", "pig", "sheep", "mouse", "rat", "frog", "crab")


@pytest.fixture(scope="module")
def asked() -> list[AnswerEpisode]:
    """Fourteen questions that name the one memory which answers them, and two that nothing answers."""
    scope, at = Scope(user="c"), datetime.fromisoformat("2023-05-08T10:00:00+00:00")
    turns = tuple(
        Turn(f"My {pet} is called Name{n}.", "Ana", scope, at + timedelta(days=n), f"t{n}", session=str(n))
        for n, pet in enumerate(PETS)
    )
    questions = tuple(
        Question(f"q{n}", f"What is Ana's {pet} called?", f"Name{n}", "4", (f"t{n}",)) for n, pet in enumerate(PETS)
    )
    unsaid = tuple(Question(f"u-{pet}", f"Where does Ana's {pet} sleep?", "", unanswerable=True) for pet in PETS[:2])
    return answer_episodes(
        Conversation("c", ("Ana",), turns, questions + unsaid), HashEmbedder(64), settings=Settings(margin=None)
    )


def _places(found: list[AnswerEpisode]) -> list[int]:
    return [place for e in found if e.question.answer for place in e.places()]


def test_an_example_is_what_serving_shows_with_the_answer_and_its_memory(asked: list[AnswerEpisode]) -> None:
    """The prompt begins as serving's does for that question, and the named line holds the answer."""
    made = examples.of_answers(asked, random.Random(0))
    told = [e for e in made if e.completion != " none"]
    assert len(told) == len(PETS)
    for example in told:
        place, answer = example.completion.strip().split(" -> ")
        [line] = [row for row in example.prompt.body.splitlines() if row.startswith(f"{place}. ")]
        assert line.endswith(f"is called {answer}.")


def test_some_questions_are_asked_beside_memories_that_do_not_answer_them(asked: list[AnswerEpisode]) -> None:
    """To say "none" is learned from evidence that retrieval missed and from what nobody said."""
    none = [e.prompt.body for e in examples.of_answers(asked, random.Random(0)) if e.completion == " none"]
    assert any("sleep?" in body for body in none) and any("called?" in body for body in none)
    more = examples.of_answers(asked, random.Random(0), unanswerable=7)
    assert sum("sleep?" in e.prompt.body for e in more) == 2 > sum("sleep?" in body for body in none)


def test_invented_talk_is_ranked_as_real_talk(asked: list[AnswerEpisode]) -> None:
    """Evidence always found first would teach to trust the first line of ten as that of one; nothing is lost."""
    assert set(_places(asked)) == {1}
    for shown in (2, 10):
        short = [replace(e, items=e.items[:shown]) for e in asked]
        moved = [e for seed in range(60) for e in examples.as_in_real_talk(short, random.Random(seed))]
        places = _places(moved)
        first = math.exp(-examples.SURENESS * (shown - 1))
        assert places.count(1) / len(places) == pytest.approx(first, abs=0.06)
        assert {i.id for i in moved[0].items} == {i.id for i in short[0].items}
        assert max(places) > 6 or shown == 2


def test_questions_with_several_memories_come_before_others_when_not_all_are_taken(asked: list[AnswerEpisode]) -> None:
    """They are rare, and what a small model is worst at."""
    first = asked[0]
    both = tuple(dict.fromkeys((*first.question.evidence, *(t for i in first.items[1:2] for t in i.turn_ids))))
    several = replace(first, question=replace(first.question, evidence=both, answer="Name0, and another"))
    told = [e for e in examples.of_answers([*asked[1:], several], random.Random(3), most=4) if e.completion != " none"]
    assert len(told) == 4 and any(e.completion.endswith("Name0, and another") for e in told)


def test_examples_go_to_a_file_and_back(asked: list[AnswerEpisode], tmp_path: Path) -> None:
    """The cache of a data step reads back equal; a damaged line is named."""
    made, path = examples.of_answers(asked, random.Random(0)), tmp_path / "examples.jsonl"
    assert examples.save(made, path) == len(made)
    assert [(e.prompt.body, e.completion) for e in examples.load(path)] == [(e.prompt.body, e.completion) for e in made]
    path.write_text(path.read_text() + "[1]\n")
    with pytest.raises(DataError, match=f"line {len(made) + 1}"):
        examples.load(path)
