"""A bot's logs: read without losing a line, and checked before they are trained on."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from memr1_plugin.bank.bank import Bank
from memr1_plugin.errors import DataError, InputError
from memr1_plugin.evaluation.datasets import Conversation, Question
from memr1_plugin.testing import HashEmbedder
from memr1_plugin.training import qa_log
from memr1_plugin.types import Answer, Fact, Operation, OperationKind, Scope, Turn


def _lines(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_openai_chats_are_read(tmp_path: Path) -> None:
    """One conversation a line; parts are joined, tool calls without text left out, times kept."""
    path = _lines(
        tmp_path / "chats.jsonl",
        {
            "id": "a",
            "messages": [
                {"role": "developer", "content": "Be kind."},
                {"role": "user", "content": [{"type": "text", "text": "I moved to Rome."}], "timestamp": 1_700_000_000},
                {"role": "assistant", "content": None, "tool_calls": []},
                {"role": "assistant", "content": "Lovely!"},
            ],
        },
    )
    [one] = qa_log.read(path, "openai")
    assert [(t.role, t.text) for t in one.turns] == [
        ("system", "Be kind."),
        ("user", "I moved to Rome."),
        ("assistant", "Lovely!"),
    ]
    assert one.turns[1].at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=timezone.utc)


def test_langchain_dumps_are_read(tmp_path: Path) -> None:
    """What `messages_to_dict` wrote."""
    messages = pytest.importorskip("langchain_core.messages")
    dump = messages.messages_to_dict([messages.HumanMessage("I moved to Rome."), messages.AIMessage("Lovely!")])
    path = tmp_path / "dump.json"
    path.write_text(json.dumps(dump))
    [one] = qa_log.read(path, "langchain")
    assert [(t.role, t.text) for t in one.turns] == [("user", "I moved to Rome."), ("assistant", "Lovely!")]


def test_llama_index_chat_stores_are_read(tmp_path: Path) -> None:
    """What `SimpleChatStore.persist` writes, old (content) and new (blocks), one conversation a key."""
    block = {"block_type": "text", "text": "I moved to Rome."}
    store = {"ana": [{"role": "user", "blocks": [block]}], "bo": [{"role": "user", "content": "Hi there"}]}
    path = tmp_path / "store.json"
    path.write_text(json.dumps({"store": store, "class_name": "SimpleChatStore"}))
    one, two = qa_log.read(path, "llama-index")
    assert (one.id, one.turns[0].text, two.turns[0].text) == ("ana", "I moved to Rome.", "Hi there")


def test_a_bank_with_feedback_is_training_data(monday: datetime) -> None:
    """The journal's turns, and each corrected answer as a question; a confirmed answer keeps its evidence."""
    scope = Scope(user="ana")
    turn = Turn("I moved to Rome.", "Ana", scope, monday, "t1")
    with Bank.open(":memory:", HashEmbedder(16)) as bank:
        bank.record([turn])
        fact = Fact(turn.text, "Ana", monday, "t1")
        bank.apply(scope, [Operation(OperationKind.ADD, fact)], turns=[turn])
        [item] = bank.items(scope)
        answer = Answer("Rome", (item.id,), question="Where does Ana live?", items=(item,), scope=scope)
        bank.add_feedback(answer, "Rome")
        bank.add_feedback(replace(answer, text="Paris", id="other"), "Rome")
        [one] = qa_log.from_bank(bank)
    assert [t.id for t in one.turns] == ["t1"]
    assert [(q.answer, q.evidence) for q in one.questions] == [("Rome", ("t1",)), ("Rome", ())]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"turns": []}, 'line 1: "messages" is missing'),
        ({"messages": [{"content": "x"}]}, 'line 1, message 0: "role" is missing'),
        ({"messages": [{"role": "user", "content": 3}]}, '"content" is int'),
        ({"messages": [{"role": "user", "content": "x", "time": "soon"}]}, "\"time\" is 'soon'"),
        ([1], "line 1 is list"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, row: object, says: str) -> None:
    """Number, field, what was found."""
    with pytest.raises(DataError, match=says.replace("(", r"\(")):
        qa_log.read(_lines(tmp_path / "bad.jsonl", row), "openai")


@pytest.mark.parametrize(
    ("line", "says"),
    [(b"[" * 100_000, "no JSON that can be read"), (b'{"n": ' + b"9" * 5_000 + b"}", "no JSON"), (b"\xff", "UTF-8")],
)
def test_a_file_that_breaks_the_parser_is_an_error_of_ours(tmp_path: Path, line: bytes, says: str) -> None:
    """Brackets too deep, numbers too long and bytes of another encoding once left as Python's own errors."""
    path = tmp_path / "hostile.jsonl"
    path.write_bytes(line)
    with pytest.raises(DataError, match=says):
        qa_log.read(path, "openai")


def test_broken_json_and_unknown_formats_are_refused(tmp_path: Path) -> None:
    """A run never trains on half a file."""
    path = _lines(tmp_path / "half.jsonl", {"messages": []})
    path.write_text(path.read_text() + '\n{"messages": [')
    with pytest.raises(DataError, match="line 2 is no JSON"):
        qa_log.read(path, "openai")
    with pytest.raises(InputError, match="expected one of"):
        qa_log.read(path, "telegram")


def _told(name: str, monday: datetime, *texts: str, questions: tuple[Question, ...] = ()) -> Conversation:
    scope = Scope(user=name)
    turns = tuple(Turn(text, "Ana", scope, monday, f"{name}{n}") for n, text in enumerate(texts))
    return Conversation(name, ("Ana",), turns, questions)


def test_the_check_counts_and_warns(monday: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unlinked and repeated questions, repeated turns, and personal data by kind, with and without the libraries."""
    asked = (
        Question("q1", "Where?", "Rome", "4", ("a0",)),
        Question("q2", "where?", "Oslo"),
        Question("q3", "Who?", "", unanswerable=True),
    )
    told = _told(
        "a", monday, "Write to ana@example.org", "Same thing", "Same thing", "Call +39 06 1234 5678", questions=asked
    )
    report = qa_log.check([told])
    assert (report.conversations, report.turns, report.questions, report.unanswerable) == (1, 4, 3, 1)
    assert report.unlinked == ("q2",)
    assert report.duplicate_questions == ("q2",)
    assert report.duplicate_turns == 1
    assert {(hit.kind, hit.turn) for hit in report.pii} == {("email", "a0"), ("phone", "a3")}
    assert report.blocking == []
    monkeypatch.setitem(sys.modules, "phonenumbers", None)  # without the libraries: patterns
    monkeypatch.delitem(sys.modules, "memr1_plugin.redaction", raising=False)
    assert qa_log.check([told]).pii == report.pii
    assert json.dumps(report.to_json())


def test_leakage_between_splits_blocks(monday: datetime) -> None:
    """The same conversation under another id is found by what was said."""
    long = "We finally painted the kitchen in a very bright yellow"
    report = qa_log.check([_told("a", monday, long)], [_told("b", monday, long)])
    assert report.leaks == ("a",)
    assert any("held-out" in reason for reason in report.blocking)
    assert any("no question" in reason for reason in report.blocking)
