"""Export and import: what one file knows, another knows after, and a bad row changes nothing."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from bank_help import ANA, BOB, MAY, add, adding, deleting, fact, found, near, updating

from memr1_plugin.bank.bank import Bank
from memr1_plugin.errors import DataError
from memr1_plugin.testing import HashEmbedder
from memr1_plugin.types import Answer, Operation, OperationKind, Scope, Turn


@pytest.fixture
def rich(bank: Bank) -> Bank:
    """A bank with something of everything."""
    turns = [Turn(f"Number {n}.", "Ana", ANA, MAY + timedelta(days=n), f"t{n}", metadata={"n": n}) for n in range(3)]
    bank.record(turns)
    bank.apply(ANA, [adding("I live in Rome.", turn_id="t0", context="Bob: where?")], turns=turns[:1])
    bank.apply(ANA, [Operation(OperationKind.UPDATE, fact("I live in Bern.", turn_id="t1"), 1)], turns=turns[1:2])
    bank.apply(ANA, [Operation(OperationKind.NOOP, fact("Yes.")), adding("I like tea.")])
    bank.undo(ANA, 2)
    bank.apply(ANA, [deleting(2)])
    add(bank, "I am Bob.", BOB)
    bank.add_feedback(Answer("Rome", (1,), items=tuple(bank.items(ANA)), scope=ANA), "Rome!")
    return bank


def lines(bank: Bank, scope: Scope | None = None) -> list[dict[str, Any]]:
    """Rows, through JSON and back."""
    return [json.loads(json.dumps(row)) for row in bank.export(scope)]


def test_export_and_import_are_inverse(rich: Bank, embedder: HashEmbedder) -> None:
    """Turns, items with tombstones, history, feedback: the other bank exports the same rows and finds the same."""
    with Bank.open(":memory:", embedder) as other:
        assert other.import_(lines(rich)) == len(lines(rich)) - 1
        assert lines(other) == lines(rich)
        assert other.pending() == rich.pending() and other.check() == []
        assert found(other, "Rome") == found(rich, "Rome") and near(other, "Rome") == near(rich, "Rome")
        last = rich.history(ANA)[-1].id
        other.undo(ANA, last)
        rich.undo(ANA, last)
        assert [item.text for item in other.items(ANA)] == [item.text for item in rich.items(ANA)]


def test_an_import_can_be_repeated(rich: Bank, embedder: HashEmbedder) -> None:
    """What is there already is not written again, even after it was changed here."""
    rows = lines(rich)
    assert rich.import_(rows) == 0
    rich.apply(ANA, [updating(1, "I live in Oslo.")])
    assert rich.import_(rows) == 0 and rich.get(ANA, 1).text == "I live in Oslo."


def test_an_imported_journal_keeps_its_order(bank: Bank, embedder: HashEmbedder) -> None:
    """Turns that wait stand between those that do not, as they were said; they once came last."""
    turns = [Turn(f"Number {n}.", "Ana", ANA, MAY, f"t{n}") for n in range(4)]
    bank.record(turns, managed=[False, True, False, True])
    with Bank.open(":memory:", embedder) as other:
        other.import_(lines(bank))
        assert other.turns(ANA) == turns and other.pending() == [turns[0], turns[2]]


def test_import_gives_new_ids_where_the_old_are_taken(rich: Bank, embedder: HashEmbedder) -> None:
    """Ids of items, in their history and in feedback move together."""
    with Bank.open(":memory:", embedder) as other:
        taken = [add(other, f"Already here {n}.") for n in range(5)]
        other.import_(lines(rich))
        [item] = [item for item in other.items(ANA) if item.text == "I live in Rome."]
        assert item.id not in taken and [c.item_id for c in other.history(ANA, item.id)] == [item.id] * 3
        [(answer, _)] = other.feedback(ANA)
        assert answer.used == (item.id,) and answer.items[0].id == item.id
        assert other.check() == []


def test_export_and_import_of_one_scope(rich: Bank, embedder: HashEmbedder) -> None:
    """A scope travels alone, and can arrive under another name."""
    assert all("I am Bob." not in json.dumps(row) for row in lines(rich, ANA))
    carl = Scope(user="carl")
    with Bank.open(":memory:", embedder) as other:
        other.import_(lines(rich, ANA), scope=carl)
        assert other.scopes() == [carl] and found(other, "Rome", carl) == [1] and other.check() == []


def test_hand_written_items_get_a_history(bank: Bank) -> None:
    """Rows without changes are an ADD from "import", so that they can be undone and dated."""
    row = {"type": "item", "id": 7, "scope": ANA.to_json(), "text": "I live in Rome.", "speaker": "Ana"}
    row |= {name: MAY.isoformat() for name in ("at", "created_at", "updated_at")}
    assert bank.import_([row]) == 1
    [change] = bank.history(ANA)
    assert (change.source, change.item_id) == ("import", 7) and bank.items(ANA, as_of=MAY)[0].id == 7
    assert near(bank, "Rome") == found(bank, "Rome") == [7] and bank.check() == []


GOOD = {"type": "turn", "text": "hello", "scope": {}, "id": "x", "at": "2023-05-08T13:56:00+00:00"}
ITEM = {"type": "item", "id": 1, "scope": {}, "text": "a", "speaker": "b"} | {
    name: "2023-05-08T13:56:00+00:00" for name in ("at", "created_at", "updated_at")
}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("text", "expected an object"),
        ({"type": "poem"}, "its \"type\" is 'poem'"),
        ({"type": "bank", "format": 2}, "format is 2"),
        ({**GOOD, "text": ""}, "empty"),
        ({**GOOD, "text": "x" * 200_000}, "200,000 characters"),
        ({**GOOD, "at": "tomorrow"}, "tomorrow"),
        ({**GOOD, "colour": "red"}, "colour"),
        ({**ITEM, "id": "1; DROP TABLE items"}, "expected an integer"),
        ({**ITEM, "text": "a\x00b"}, "NUL"),
        ({**ITEM, "speaker": 3}, "speaker is int"),
        ({k: v for k, v in ITEM.items() if k != "text"}, "text"),
        ({"type": "change", "id": 1, "kind": "EXPLODE", "scope": {}}, "EXPLODE"),
        ({"type": "feedback", "answer": {"text": "a"}}, "correct"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_imported(bank: Bank, bad: Any, words: str) -> None:
    """All or nothing: the message says which row, what was found and what was expected."""
    with pytest.raises(DataError, match="row 2 cannot be imported") as caught:
        bank.import_([GOOD, bad])
    assert words in str(caught.value) and "Nothing was imported" in str(caught.value)
    assert bank.scopes() == []
