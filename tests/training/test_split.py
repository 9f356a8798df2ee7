"""The split: whole conversations on one side, for good, and none on both."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from memr1_plugin.errors import DataError
from memr1_plugin.evaluation.datasets import Conversation, Question, save
from memr1_plugin.training.recipe import Data
from memr1_plugin.training.split import split
from memr1_plugin.types import Scope, Turn


def talk(name: str, at: datetime, *, questions: int = 1) -> Conversation:
    """A conversation of two turns with words of its own, and some questions."""
    said = (f"I told you all about my {name} yesterday at home.", f"My {name} is quite a big and a very old one.")
    turns = tuple(Turn(t, "Ana", Scope(user=name), at, f"{name}-{n}") for n, t in enumerate(said))
    asked = tuple(
        Question(f"{name}-q{n}", f"What about {name} {n}?", name, "7", (f"{name}-0",)) for n in range(questions)
    )
    return Conversation(name, ("Ana",), turns, asked)


def written(tmp_path: Path, conversations: list[Conversation], name: str = "logs") -> str:
    """Write a file, and return its path."""
    path = tmp_path / f"{name}.jsonl"
    save(conversations, path)
    return str(path)


def test_about_a_tenth_is_held_out_and_logs_that_grow_move_none(tmp_path: Path, monday: datetime) -> None:
    """Of a hundred conversations 5 to 15; fifty more change the side of none; another seed chooses others."""
    told = [talk(f"pet{n}", monday) for n in range(100)]
    first = split(Data(files=(written(tmp_path, told),)))
    held = {c.id for c in first.validation}
    assert 5 <= len(held) <= 15 and len(first.train) == 100 - len(held)
    more = [*told, *(talk(f"car{n}", monday) for n in range(50))]
    grown = split(Data(files=(written(tmp_path, more, "more"),)))
    assert held == {c.id for c in grown.validation if c.id.startswith("pet")}
    assert {c.id for c in split(Data(files=(written(tmp_path, told),)), seed=5).validation} != held


def test_two_conversations_are_one_to_train_on_and_one_to_validate_on(tmp_path: Path, monday: datetime) -> None:
    """However their ids fall."""
    for n in range(20):
        made = split(Data(files=(written(tmp_path, [talk(f"cat{n}", monday), talk(f"dog{n}", monday)]),)))
        assert (len(made.train), len(made.validation)) == (1, 1)


def test_conversations_without_questions_are_never_held_out(tmp_path: Path, monday: datetime) -> None:
    """They would measure nothing."""
    told = [talk("cat", monday, questions=0), talk("dog", monday), talk("cow", monday), talk("hen", monday)]
    made = split(Data(files=(written(tmp_path, told),)))
    assert [len(c.questions) for c in made.validation] == [1]


def test_one_conversation_alone_is_trained_on_and_that_is_said(tmp_path: Path, monday: datetime) -> None:
    """There is nothing to validate on: the split says why."""
    made = split(Data(files=(written(tmp_path, [talk("cat", monday)]),)))
    assert not made.validation and "takes two" in made.how


def test_a_named_validation_is_never_trained_on(tmp_path: Path, monday: datetime) -> None:
    """The same conversation on both sides is refused, also under another id."""
    told = [talk("cat", monday), talk("dog", monday)]
    held = written(tmp_path, [talk("cow", monday)], "held")
    made = split(Data(files=(written(tmp_path, told),), validation=held))
    assert [c.id for c in made.validation] == ["cow"]
    same = written(tmp_path, [replace(talk("dog", monday), id="renamed")], "same")
    with pytest.raises(DataError, match="'dog' first"):
        split(Data(files=(written(tmp_path, told),), validation=same))


def test_copies_of_one_conversation_never_part(tmp_path: Path, monday: datetime) -> None:
    """A log that holds a conversation twice under two ids could be split across it: that is an error."""
    told = [talk("cat", monday), replace(talk("cat", monday), id="cat-again")]
    with pytest.raises(DataError, match="by half of their turns"):
        split(Data(files=(written(tmp_path, told),)))


def test_one_file_can_hold_both_sides(tmp_path: Path, monday: datetime) -> None:
    """`only` and `validation_only` name conversations of one file, as LoCoMo's split does; unknown names are listed."""
    path = written(tmp_path, [talk("cat", monday), talk("dog", monday), talk("cow", monday)])
    made = split(Data(files=(path,), only=("cat",), validation=path, validation_only=("dog",)))
    assert [c.id for c in made.train] == ["cat"] and [c.id for c in made.validation] == ["dog"]
    with pytest.raises(DataError, match=r"no conversation 'emu'; they have \['cat', 'dog', 'cow'\]"):
        split(Data(files=(path,), only=("emu",)))


def test_questions_can_be_left_out(tmp_path: Path, monday: datetime) -> None:
    """By category, and those without evidence where a guess is not wanted."""
    unlinked = replace(talk("cat", monday), questions=(Question("q", "What?", "cat", "8"),))
    path = written(tmp_path, [unlinked, talk("dog", monday)])
    assert split(Data(files=(path,), holdout=0)).questions == 2
    assert split(Data(files=(path,), holdout=0, categories=("8",))).questions == 1
    assert split(Data(files=(path,), holdout=0, unlinked="skip")).questions == 1


def test_no_run_trains_on_half_of_its_files(tmp_path: Path, monday: datetime) -> None:
    """A bad line, or an id that two files share, stops everything."""
    good = written(tmp_path, [talk("cat", monday)])
    bad = tmp_path / "bad.jsonl"
    bad.write_text(
        Path(written(tmp_path, [talk("dog", monday)], "dog")).read_text() + '{"conversation": "c", "turns": 3}\n'
    )
    with pytest.raises(DataError, match=r'bad.jsonl: line 2: "turns" is int; expected list'):
        split(Data(files=(good, str(bad))))
    with pytest.raises(DataError, match="both have a conversation 'cat'"):
        split(Data(files=(good, written(tmp_path, [talk("cat", monday)], "copy"))))
