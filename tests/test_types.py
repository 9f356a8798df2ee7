"""The nouns check themselves and go to JSON and back."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memr1_plugin.errors import InputError, MemoryR1Error
from memr1_plugin.types import MAX_TURN_CHARS, Answer, Change, MemoryItem, OperationKind, Scope, Turn

AT = datetime(2023, 5, 8, 13, 56, tzinfo=timezone(timedelta(hours=2)))
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=50)


@given(texts.filter(str.strip), texts, texts, texts)
def test_a_turn_goes_to_json_and_back_unchanged(text: str, speaker: str, user: str, session: str) -> None:
    """What the journal stores is what was said, to the character and the time zone."""
    turn = Turn(text, speaker, Scope(user, session=session), AT, session=session, metadata={"n": [1, None]})
    assert Turn.from_json(json.loads(json.dumps(turn.to_json()))) == turn


def test_an_answer_and_a_change_go_to_json_and_back_unchanged() -> None:
    """Nested items, ids and enums survive the round trip."""
    item = MemoryItem(3, Scope("ana"), "I live in Rome.", "Ana", AT, AT, AT, ("t1",), score=0.5)
    answer = Answer("Rome", (3,), False, "Where?", (item,), Scope("ana"), AT)
    change = Change(1, OperationKind.UPDATE, Scope("ana"), 3, item, item.with_score(0.1), AT)
    assert Answer.from_json(json.loads(json.dumps(answer.to_json()))) == answer
    assert Change.from_json(json.loads(json.dumps(change.to_json()))) == change
    assert answer.selected == (item,)


@given(texts, texts, texts, texts)
def test_different_scopes_have_different_keys(a: str, b: str, c: str, d: str) -> None:
    """No choice of names makes one scope's key another's, quotes and brackets included."""
    assert (Scope(a, b).key == Scope(c, d).key) == ((a, b) == (c, d))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (" \n\t", "is empty"),
        ("x" * (MAX_TURN_CHARS + 1), "100,001 characters"),
        ("a\x00b", "NUL at character 1"),
        ("ok \ud800", "lone surrogate"),
        (b"bytes", "is bytes; expected str"),
    ],
)
def test_a_turn_that_cannot_be_stored_is_refused_with_the_reason(text: object, says: str) -> None:
    """The error says what was found, and is the ValueError that anyone would catch."""
    with pytest.raises(InputError, match=says):
        Turn(text)  # type: ignore[arg-type]
    assert issubclass(InputError, ValueError) and issubclass(InputError, MemoryR1Error)


def test_a_time_without_a_zone_is_utc_and_one_out_of_range_is_refused() -> None:
    """Dates are comparable with each other, always."""
    assert Turn("hi", at=datetime(2023, 5, 8)).at == datetime(2023, 5, 8, tzinfo=timezone.utc)
    with pytest.raises(InputError, match="out of range"):
        Turn("hi", at=datetime.max)
    with pytest.raises(InputError, match=r"expected datetime\.datetime"):
        Turn("hi", at="yesterday")  # type: ignore[arg-type]


def test_json_with_an_unknown_field_is_refused_by_name() -> None:
    """A misspelt field of an import file is named, not dropped."""
    with pytest.raises(InputError, match="txt"):
        Turn.from_json({"txt": "hi"})
