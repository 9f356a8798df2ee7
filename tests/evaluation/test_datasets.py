"""Every published quirk of the data sets is repaired, every other defect is named."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from memr1_plugin.errors import DataError
from memr1_plugin.evaluation import datasets
from memr1_plugin.evaluation.datasets import Question
from memr1_plugin.types import Scope, Turn

AT = datetime(2023, 5, 8, 13, 56, tzinfo=timezone.utc)
OWN: dict[str, Any] = {
    "conversation": "c1",
    "turns": [
        {"id": "t1", "speaker": "Ana", "text": "I moved to Rome.", "time": "2023-05-08T13:56:00Z"},
        {"id": "t2", "speaker": "bot", "text": "Nice!", "time": "2023-05-08T13:57:00", "role": "assistant"},
    ],
    "questions": [{"question": "Where does Ana live?", "answer": "Rome", "evidence": ["t1"]}],
}
LOCOMO: dict[str, Any] = {
    "sample_id": "conv-1",
    "conversation": {
        "speaker_a": "Ana",
        "speaker_b": "Bob",
        "session_1_date_time": "12:09 am on 13 September, 2023",
        "session_1": [
            {"speaker": "Ana", "dia_id": "D1:1", "text": "Look!", "blip_caption": "a red kayak", "img_url": ["x"]},
            {"speaker": "Bob", "dia_id": "D1:2", "text": "Nice boat."},
        ],
        "session_2_date_time": "1:56 pm on 14 September, 2023",  # some files have dates of sessions they left out
    },
    "qa": [
        {"question": "Which year?", "answer": 2023, "category": 2, "evidence": ["D1:1; D01:02", "D:1:2", "D", "D9:9"]},
        {"question": "Who swam?", "adversarial_answer": "Bob", "category": 5, "evidence": ["D1:2"]},
    ],
}


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_the_projects_jsonl_loads_with_its_defaults(tmp_path: Path) -> None:
    """Ids, speakers, role and the time of asking may be left out; times without a zone are UTC."""
    [conversation] = datasets.load(write(tmp_path, OWN))
    assert conversation.speakers == ("Ana", "bot") and conversation.scope == Scope(user="c1")
    first, second = conversation.turns
    assert first == Turn("I moved to Rome.", "Ana", Scope(user="c1"), AT, "t1")
    assert second.role == "assistant" and second.at == datetime(2023, 5, 8, 13, 57, tzinfo=timezone.utc)
    [question] = conversation.questions
    assert question == Question("c1_q0", "Where does Ana live?", "Rome", evidence=("t1",), asked_at=second.at)


def test_what_is_saved_loads_equal(tmp_path: Path, data_dir: Path) -> None:
    """LoCoMo and LongMemEval written as the project's JSONL read back as the same conversations."""
    before = datasets.load(data_dir / "locomo" / "locomo_dev.json")
    before += datasets.load(next((data_dir / "longmemeval_evidence").glob("*.jsonl")))
    datasets.save(before, tmp_path / "all.jsonl")
    assert datasets.load(tmp_path / "all.jsonl") == before


def changed(path: str, value: Any) -> dict[str, Any]:
    """OWN with the value at "turns.0.time" replaced, or taken out if the value is `...`."""
    row = json.loads(json.dumps(OWN))
    *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    place = row
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return row  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{not json", "line 2 is no JSON"),
        ("[1]", "line 2 is list; expected an object"),
        (changed("conversation", 7), r'line 2: "conversation" is int; expected str'),
        (changed("turns", ...), r'line 2: "turns" is missing; expected list'),
        (changed("turns.0.time", "yesterday"), r'line 2, turn 1: "time" is \'yesterday\'; expected ISO 8601'),
        (changed("turns.1.text", "  "), "line 2, turn 2: the turn's text is empty"),
        (changed("turns.1.text", "\ud800"), "line 2, turn 2: .*surrogate"),
        (changed("turns.1.txt", "x"), "line 2, turn 2: unknown field 'txt'"),
        (changed("turns.1.id", "t1"), "line 2, turn ids: 't1' stands twice"),
        (changed("questions.0.answer", ...), r'line 2, question 1: "answer" is missing'),
        (changed("questions.0.evidence", ["t9"]), "line 2, question 1: \"evidence\" names 't9'"),
        (changed("questions.0.asked_at", 5), r'line 2, question 1: "asked_at" is 5'),
        (changed("questions", "none"), r'line 2: "questions" is str; expected list'),
        (OWN, "conversation ids: 'c1' stands twice"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_field(tmp_path: Path, bad: Any, says: str) -> None:
    """Nothing is skipped in silence: the error says where, what was found and what was expected."""
    with pytest.raises(DataError, match=says):
        datasets.load(write(tmp_path, OWN, bad))


@pytest.mark.parametrize(
    ("text", "says"), [("", "is empty"), ("[]", "is empty"), ("\n\n", "is empty"), ('{"a": 1}', "no known format")]
)
def test_a_file_of_no_known_format_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """An empty file and a file of something else say so, and what would have been read."""
    with pytest.raises(DataError, match=says):
        datasets.load(write(tmp_path, text))


def test_a_broken_list_is_named_with_its_line(tmp_path: Path) -> None:
    """A file cut short says where, also when it is one JSON list over many lines."""
    whole = json.dumps([LOCOMO], indent=1).splitlines()
    with pytest.raises(DataError, match="line 10 is no JSON"):
        datasets.load(write(tmp_path, *whole[:9], "oops", *whole[9:]))


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    """Latin-1 is not guessed at."""
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"conversation": "Köln"}'.encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        datasets.load(path)


def test_an_unanswerable_question_needs_no_answer(tmp_path: Path) -> None:
    """A question may ask for what was never said."""
    row = changed("questions.0", {"question": "What is Ana's PIN?", "unanswerable": True})
    [question] = datasets.load(write(tmp_path, row))[0].questions
    assert question.unanswerable and question.answer == "" and question.evidence == ()


def test_locomos_quirks_are_repaired(tmp_path: Path) -> None:
    """Captions are text, numbers are strings, bad evidence ids mean what they must, and midnight is 0 o'clock."""
    [conversation] = datasets.load(write(tmp_path, json.dumps([LOCOMO], indent=1)))
    first, _ = conversation.turns
    assert first.text == "Look! [shares a photo: a red kayak]" and first.session == "session_1"
    assert first.at == datetime(2023, 9, 13, 0, 9, tzinfo=timezone.utc)
    when, who = conversation.questions
    assert when.answer == "2023" and when.evidence == ("D1:1", "D1:2")
    assert who.unanswerable and who.answer == "" and who.adversarial == "Bob"


def test_one_locomo_conversation_may_stand_alone(tmp_path: Path) -> None:
    """A file of one object, printed over many lines, is a conversation too."""
    assert [c.id for c in datasets.load(write(tmp_path, json.dumps(LOCOMO, indent=1)))] == ["conv-1"]


def test_a_locomo_date_that_is_none_is_named(tmp_path: Path) -> None:
    """The conversation and the session are named."""
    broken = json.loads(json.dumps(LOCOMO).replace("12:09 am on 13 September, 2023", "13.9.23"))
    with pytest.raises(DataError, match=r"\(conv-1\), session_1_date_time is '13.9.23'"):
        datasets.load(write(tmp_path, [broken]))


def test_the_dev_file_has_the_published_counts(data_dir: Path) -> None:
    """The questions without category 5 are the paper's: 152 of train, 81 of validation, 152 and 199 of test."""
    conversations = datasets.load(data_dir / "locomo" / "locomo_dev.json")
    counts = {c.id: sum(not q.unanswerable for q in c.questions) for c in conversations}
    assert counts == {"conv-26": 152, "conv-30": 81, "conv-41": 152, "conv-42": 199}
    assert [len(c.turns) for c in conversations] == [419, 369, 663, 629]
    for conversation in conversations:
        ids = {t.id for t in conversation.turns}
        assert all((set(q.evidence) <= ids and q.answer) or q.unanswerable for q in conversation.questions)
        assert sum(not q.evidence for q in conversation.questions) <= 3


def test_errata_put_answers_and_citations_right(data_dir: Path) -> None:
    """A Saturday that the gold answer calls a Sunday is corrected; questions without errata stay the same."""
    before = datasets.load(data_dir / "locomo" / "locomo_dev.json")
    after = datasets.correct(before, data_dir / "locomo" / "errata.jsonl")
    old, new = before[0].questions[5], after[0].questions[5]
    assert old.answer == "The sunday before 25 May 2023" and "Saturday" in new.answer
    assert after[0].questions[1].evidence == ("D1:14",) and before[0].questions[1].evidence == ("D1:12",)
    assert after[0].questions[0] == before[0].questions[0]


def test_longmemeval_evidence_is_one_conversation_a_question(data_dir: Path) -> None:
    """500 questions with their dates, types and evidence turns; 30 of them ask for what was never said."""
    conversations = datasets.load(next((data_dir / "longmemeval_evidence").glob("*.jsonl")))
    assert len(conversations) == 500 and sum(c.questions[0].unanswerable for c in conversations) == 30
    assert sum(len(c.turns) for c in conversations) == 896
    first = conversations[0]
    assert first.questions[0].evidence == tuple(t.id for t in first.turns)
    assert first.questions[0].asked_at == datetime(2023, 4, 10, 23, 7, tzinfo=timezone.utc)
    assert [t.at for t in first.turns] == sorted(t.at for t in first.turns)


def test_longmemevals_published_form_loads(tmp_path: Path) -> None:
    """Haystack sessions come shuffled and unmarked but for the answer turns; they are put in order."""
    row = {
        "question_id": "q1_abs", "question_type": "multi-session", "question": "Where?", "answer": 3,
        "question_date": "2023/05/30 (Tue) 08:08",
        "haystack_dates": ["2023/05/20 (Sat) 02:21", "2023/05/02 (Tue) 02:21"],
        "haystack_sessions": [[{"role": "user", "content": "Rome.", "has_answer": True}],
                              [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": " "}]],
    }  # fmt: skip
    [conversation] = datasets.load(write(tmp_path, [row]))
    assert [t.text for t in conversation.turns] == ["Hi.", "Rome."]
    [question] = conversation.questions
    assert (question.evidence, question.answer, question.unanswerable) == (("S1:0",), "3", True)
