"""Journal, operations, history, undo, time: what the bank promises to the rest of the library."""

from __future__ import annotations

import os
import stat
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from bank_help import ANA, BOB, MAY, add, adding, deleting, fact, found, near, updating

from memr1_plugin.bank.bank import Bank
from memr1_plugin.embedding import Vectors
from memr1_plugin.errors import InputError, ModelError, UnknownItemError
from memr1_plugin.operations import Rejection
from memr1_plugin.testing import HashEmbedder
from memr1_plugin.types import Answer, Fact, Operation, OperationKind, Scope, Turn


def test_a_turn_is_new_once(bank: Bank) -> None:
    """The same id in the same scope is one turn however often it is delivered, and the first delivery counts."""
    turn = Turn("I moved.", scope=ANA, id="m1", at=MAY, metadata={"n": 1})
    assert bank.record([turn, turn]) == [True, False]
    assert bank.record([Turn("Something else.", scope=ANA, id="m1"), Turn("I moved.", scope=BOB, id="m1")]) == [
        False,
        True,
    ]
    assert bank.turns(ANA) == [turn]


def test_a_recorded_turn_is_there_after_reopening(path: Path, embedder: HashEmbedder) -> None:
    """Turns come back equal, in the order of recording, and pending until they are managed."""
    turns = [Turn(f"Number {n}.", "Ana", ANA, MAY - timedelta(days=n), f"m{n}", session="s") for n in range(3)]
    with Bank.open(path, embedder) as bank:
        bank.record(turns)
    with Bank.open(path, embedder) as bank:
        assert bank.pending() == bank.pending(ANA) == turns and bank.pending(BOB) == []
        assert bank.pending(limit=1) == turns[:1]
        bank.apply(ANA, [], turns=turns[:2])
        assert bank.pending() == turns[2:]


def test_recent_turns_are_the_newest_in_their_order(bank: Bank) -> None:
    """`limit` keeps the newest, of one session if it is named."""
    turns = [Turn(str(n), scope=ANA, id=str(n), session="ab"[n % 2]) for n in range(6)]
    bank.record(turns)
    assert [t.id for t in bank.turns(ANA, limit=2)] == ["4", "5"]
    assert [t.id for t in bank.turns(ANA, session="a", limit=2)] == ["2", "4"]
    assert bank.turns(BOB) == []


def test_the_previous_turn_is_of_the_same_session(bank: Bank) -> None:
    """A neighbour is what was said before in the same dialogue, not what was recorded before."""
    turns = [Turn(str(n), scope=ANA, id=str(n), session="ab"[n % 2]) for n in range(4)]
    bank.record(turns)
    assert bank.previous_turn(turns[3]) == turns[1] and bank.previous_turn(turns[1]) is None
    unrecorded = Turn("later", scope=ANA, session="a")
    assert bank.previous_turn(unrecorded) == turns[2]
    assert bank.previous_turn(Turn("later", scope=BOB, session="a")) is None


def test_the_four_operations(bank: Bank) -> None:
    """ADD makes an item of the fact, UPDATE gives it the new fact, DELETE a tombstone, NOOP only a line of history."""
    first = bank.apply(ANA, [adding("I live in Rome.", turn_id="t1", context="Bob: where do you live?")])[0]
    assert first.kind is OperationKind.ADD and first.before is None and first.after == bank.get(ANA, 1)
    moved = fact("I live in Bern.", at=MAY + timedelta(days=1), turn_id="t2")
    [second] = bank.apply(ANA, [Operation(OperationKind.UPDATE, moved, 1)])
    item = bank.get(ANA, 1)
    assert (item.text, item.at, item.turn_ids) == ("I live in Bern.", moved.at, ("t1", "t2"))
    assert second.before == first.after and second.after == item
    [third] = bank.apply(ANA, [Operation(OperationKind.NOOP, fact("Yes.", turn_id="t3"))], source="rule")
    assert (third.item_id, third.turn_id, third.source) == (None, "t3", "rule")
    [fourth] = bank.apply(ANA, [deleting(1)])
    assert fourth.after is not None and fourth.after.deleted and bank.items(ANA) == []
    assert bank.history(ANA) == [first, second, third, fourth]
    assert bank.history(ANA, 1, limit=1) == [fourth]
    assert bank.check() == []


def test_an_update_is_found_by_its_new_words_only(bank: Bank) -> None:
    """Both indexes follow an UPDATE and a DELETE at once."""
    item_id = add(bank, "I live in Rome.")
    add(bank, "My cat is called Rex.")
    assert found(bank, "Rome") == [item_id] and near(bank, "Rome")[0] == item_id
    bank.apply(ANA, [updating(item_id, "I live in Bern.")])
    assert found(bank, "Rome") == [] and found(bank, "Bern") == [item_id] and near(bank, "Bern", k=1) == [item_id]
    bank.apply(ANA, [deleting(item_id)])
    assert found(bank, "Bern") == [] and item_id not in near(bank, "Bern")


def test_the_context_view_finds_an_answer_by_its_question(bank: Bank) -> None:
    """ "context" is indexed with the turn before; "text" is not."""
    item_id = add(bank, "Yes, two of them.", context="Bob: Do you have any parrots?")
    add(bank, "I like tea.")
    assert found(bank, "parrot", view="context") == [item_id] and found(bank, "parrot") == []
    assert near(bank, "parrots", k=1, view="context") == [item_id]


def test_an_operation_on_a_vanished_item_is_a_rejection(bank: Bank) -> None:
    """What another process deleted meanwhile is not an error: it is counted, and the rest of the turn is applied."""
    item_id = add(bank, "I live in Rome.")
    bank.apply(ANA, [deleting(item_id)])
    changes = bank.apply(ANA, [updating(item_id, "I live in Bern."), deleting(99), adding("I like tea.")])
    assert [change.kind for change in changes] == [OperationKind.ADD]
    assert bank.stats(ANA).rejections == {"unknown_id": 2}


def test_rejections_are_counted_with_their_reason(bank: Bank) -> None:
    """Lines of a completion that meant nothing leave a trace, and nothing else."""
    lines = [Rejection("unparseable", "DROP TABLE", fact("x")), Rejection("extra", "ADD")]
    assert bank.apply(ANA, [], rejections=lines) == []
    assert bank.stats(ANA).rejections == {"extra": 1, "unparseable": 1} and bank.stats(BOB).rejections == {}


def test_a_turn_is_managed_once(bank: Bank) -> None:
    """Of two that manage one pending turn exactly one wins; the other changes nothing."""
    turn = Turn("I live in Rome.", scope=ANA, id="m1")
    bank.record([turn])
    operation = adding("I live in Rome.", turn_id="m1")
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda: results.append(len(bank.apply(ANA, [operation], turns=[turn]))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [0] * 7 + [1]
    assert len(bank.items(ANA)) == 1 and len(bank.history(ANA)) == 1


def test_only_the_operations_of_a_lost_turn_are_left_out(bank: Bank) -> None:
    """Of two turns in one call, the one that was managed before is skipped with its operations."""
    old, new = (Turn(text, scope=ANA, id=text) for text in ("old", "new"))
    bank.apply(ANA, [], turns=[old])
    operations = [adding("from the old turn", turn_id="old"), adding("from the new turn", turn_id="new")]
    [change] = bank.apply(ANA, operations, turns=[old, new])
    assert change.turn_id == "new" and [item.text for item in bank.items(ANA)] == ["from the new turn"]


def test_apply_is_all_or_nothing(path: Path) -> None:
    """If one operation cannot be written, none is, and the turn stays pending."""

    class Failing(HashEmbedder):
        def embed(self, texts: object) -> Vectors:
            raise ModelError("the embedder died")

    turn = Turn("I live in Rome.", scope=ANA, id="m1")
    with Bank.open(path, Failing()) as bank:
        bank.record([turn])
        with pytest.raises(ModelError, match="died"):
            bank.apply(ANA, [Operation(OperationKind.NOOP), adding("I live in Rome.")], turns=[turn])
        assert bank.pending() == [turn] and bank.history(ANA) == [] and bank.items(ANA) == []
    with Bank.open(path, HashEmbedder()) as bank:
        bad = Fact("I live in Rome.", "Ana", MAY, metadata={"x": object()})
        with pytest.raises(InputError, match="not JSON"):
            bank.apply(ANA, [Operation(OperationKind.NOOP), Operation(OperationKind.ADD, bad)], turns=[turn])
        assert bank.pending() == [turn] and bank.history(ANA) == []


def test_an_embedder_that_returns_nonsense_is_refused(path: Path) -> None:
    """A vector of the wrong length or not finite never reaches the bank."""

    class Odd(HashEmbedder):
        def embed(self, texts: object) -> Vectors:
            return np.full((1, 64), np.nan, np.float32)

    with Bank.open(path, Odd()) as bank:
        with pytest.raises(ModelError, match="not finite"):
            add(bank, "I live in Rome.")
        with pytest.raises(ModelError, match="expected"):
            bank.apply(ANA, [adding("a"), adding("b")])
        assert bank.items(ANA) == []


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (Operation(OperationKind.DELETE), "expected the id"),
        (Operation(OperationKind.ADD), "neither"),
        (adding("   "), "is empty"),
        (adding("a\x00b"), "NUL"),
        (adding("\ud800"), "lone surrogate"),
        (adding("fine", speaker="x" * 201), "201 characters"),
        (adding("fine", at=datetime(9999, 1, 1)), "out of range"),
    ],
)
def test_what_no_bank_could_hold_is_refused_before_anything_is_written(
    bank: Bank, operation: Operation, words: str
) -> None:
    """The error says what was found; the history stays empty."""
    with pytest.raises(InputError, match=words):
        bank.apply(ANA, [adding("fine"), operation])
    assert bank.history(ANA) == [] and bank.items(ANA) == []


def test_a_turn_of_another_scope_is_refused(bank: Bank) -> None:
    """Bob's turn cannot be applied in Ana's scope."""
    with pytest.raises(InputError, match="is of scope"):
        bank.apply(ANA, [], turns=[Turn("hello", scope=BOB)])
    with pytest.raises(InputError, match="2 sources for 1"):
        bank.apply(ANA, [adding("x")], sources=["a", "b"])


def test_undo_takes_back_add_update_and_delete(bank: Bank) -> None:
    """After undoing, the item is what it was, in every field and in both indexes."""
    item_id = add(bank, "I live in Rome.", turn_id="t1")
    before = bank.get(ANA, item_id)
    [updated] = bank.apply(ANA, [Operation(OperationKind.UPDATE, fact("I live in Bern.", turn_id="t2"), item_id)])
    bank.undo(ANA, updated.id)
    assert bank.get(ANA, item_id) == before and found(bank, "Rome") == [item_id] and near(bank, "Rome")[0] == item_id
    [deleted] = bank.apply(ANA, [deleting(item_id)])
    undone = bank.undo(ANA, deleted.id)
    assert bank.get(ANA, item_id) == before and found(bank, "Rome") == [item_id]
    assert (undone.source, undone.kind) == ("undo", OperationKind.ADD)
    bank.undo(ANA, bank.history(ANA, item_id)[0].id)
    assert bank.items(ANA) == [] and found(bank, "Rome") == [] and near(bank, "Rome") == []
    assert bank.check() == []


def test_undo_names_the_later_change_that_stands(bank: Bank) -> None:
    """Changes come off like a stack, and the error says which one is on top."""
    item_id = add(bank, "one")
    [second] = bank.apply(ANA, [updating(item_id, "two")])
    [third] = bank.apply(ANA, [updating(item_id, "three")])
    with pytest.raises(InputError, match=f"later change {third.id} .UPDATE"):
        bank.undo(ANA, second.id)
    bank.undo(ANA, third.id)
    bank.undo(ANA, second.id)
    assert bank.get(ANA, item_id).text == "one"
    with pytest.raises(InputError, match="undone already"):
        bank.undo(ANA, second.id)


def test_an_undo_can_be_undone_as_often_as_one_likes(bank: Bank) -> None:
    """Undoing an undo does the change again, and undoing that takes it back again."""
    item_id = add(bank, "one")
    [change] = bank.apply(ANA, [updating(item_id, "two")])
    for text in ("one", "two", "one", "two"):
        change = bank.undo(ANA, change.id)
        assert bank.get(ANA, item_id).text == text
    assert [c.undone for c in bank.history(ANA, item_id)] == [False, False, True, False, True, False]


def test_an_old_undo_cannot_be_undone_over_a_newer_change(bank: Bank) -> None:
    """What came after an undoing would be lost, so it is named instead."""
    item_id = add(bank, "one")
    [second] = bank.apply(ANA, [updating(item_id, "two")])
    undone = bank.undo(ANA, second.id)
    [third] = bank.apply(ANA, [updating(item_id, "three")])
    with pytest.raises(InputError, match=f"later change {third.id}"):
        bank.undo(ANA, undone.id)
    assert bank.get(ANA, item_id).text == "three"


def test_undo_of_nothing_says_so(bank: Bank) -> None:
    """A NOOP, an unknown change and another scope's change are refused in words."""
    [noop] = bank.apply(ANA, [Operation(OperationKind.NOOP)])
    with pytest.raises(InputError, match="nothing to undo"):
        bank.undo(ANA, noop.id)
    with pytest.raises(UnknownItemError, match="has no change 99"):
        bank.undo(ANA, 99)
    with pytest.raises(UnknownItemError, match="has no change"):
        bank.undo(BOB, noop.id)


def test_as_of_shows_the_items_as_they_stood(bank: Bank) -> None:
    """By what had been said up to a date: a conversation read in today can be asked about its own past."""
    days = [MAY + timedelta(days=n) for n in range(4)]
    item_id = add(bank, "I live in Rome.", at=days[0])
    bank.apply(ANA, [Operation(OperationKind.UPDATE, fact("I live in Bern.", at=days[1]), item_id)])
    other = add(bank, "I like tea.", at=days[2])
    bank.apply(ANA, [Operation(OperationKind.DELETE, fact("I hate tea.", at=days[3]), other)])
    texts = [[item.text for item in bank.items(ANA, as_of=day)] for day in days]
    assert texts == [["I live in Rome."], ["I live in Bern."], ["I live in Bern.", "I like tea."], ["I live in Bern."]]
    assert bank.items(ANA, as_of=days[0] - timedelta(days=1)) == bank.items(BOB, as_of=days[3]) == []
    assert [i.id for i in bank.items(ANA, as_of=days[2], ids=[other, item_id, 99])] == [other, item_id]
    assert len(bank.items(ANA, as_of=days[3], include_deleted=True)) == 2


def test_an_expired_item_is_invisible_at_once(bank: Bank) -> None:
    """Nobody needs to sweep: reads look at the clock."""
    soon = datetime.now(timezone.utc) + timedelta(milliseconds=150)
    [change] = bank.apply(ANA, [adding("The code is 1234.")], expires_at=soon)
    item_id = change.item_id
    assert item_id is not None
    assert found(bank, "code") == near(bank, "code") == [item_id]
    while datetime.now(timezone.utc) <= soon:
        threading.Event().wait(0.02)
    assert found(bank, "code") == near(bank, "code") == bank.items(ANA) == []
    with pytest.raises(UnknownItemError, match="expired at"):
        bank.get(ANA, item_id)
    assert bank.apply(ANA, [updating(item_id, "The code is 5678.")]) == []
    assert bank.expire() == 1 and bank.expire() == 0
    assert bank.history(ANA, item_id)[-1].source == "expiry"
    assert bank.items(ANA, include_deleted=True)[0].deleted and bank.check() == []


def test_expiry_can_be_set_moved_and_lifted(bank: Bank) -> None:
    """A change like others: it has a history and an undo."""
    item_id = add(bank, "The code is 1234.")
    assert near(bank, "code") == [item_id]
    change = bank.set_expiry(ANA, item_id, MAY)
    assert found(bank, "code") == near(bank, "code") == []
    bank.undo(ANA, change.id)
    assert found(bank, "code") == near(bank, "code") == [item_id]
    bank.set_expiry(ANA, item_id, MAY)
    bank.set_expiry(ANA, item_id, None)
    assert found(bank, "code") == near(bank, "code") == [item_id]
    with pytest.raises(UnknownItemError):
        bank.set_expiry(BOB, item_id, None)


def test_metadata_is_kept_and_replaced(bank: Bank) -> None:
    """Metadata is any JSON, and another process reads what was put in."""
    item_id = add(bank, "I live in Rome.")
    change = bank.set_metadata(ANA, item_id, {"tags": ["home"], "n": 1.5, "ü": None})
    assert bank.get(ANA, item_id).metadata == {"tags": ["home"], "n": 1.5, "ü": None}
    bank.undo(ANA, change.id)
    assert bank.get(ANA, item_id).metadata == {}
    with pytest.raises(InputError, match="not JSON"):
        bank.set_metadata(ANA, item_id, {"x": object()})


def test_items_come_by_id_in_pages(bank: Bank) -> None:
    """`ids` keeps the order asked for and leaves out what is not there; `limit` and `offset` page."""
    ids = [add(bank, f"Number {n}.") for n in range(5)]
    bank.apply(ANA, [deleting(ids[1])])
    assert [i.id for i in bank.items(ANA)] == [ids[0], *ids[2:]]
    assert [i.id for i in bank.items(ANA, limit=2, offset=1)] == [ids[2], ids[3]]
    assert [i.id for i in bank.items(ANA, ids=[ids[4], 99, ids[0], ids[1]])] == [ids[4], ids[0]]
    assert [i.id for i in bank.items(ANA, ids=ids[:2], include_deleted=True)] == ids[:2]
    assert bank.items(BOB, ids=ids) == []
    with pytest.raises(UnknownItemError, match="was deleted"):
        bank.get(ANA, ids[1])
    with pytest.raises(UnknownItemError, match="holds no memory item"):
        bank.get(BOB, ids[0])


def test_ids_are_never_reused(path: Path, embedder: HashEmbedder) -> None:
    """Not even after the newest item was erased and the bank reopened."""
    with Bank.open(path, embedder) as bank:
        first = add(bank, "I live in Rome.")
        bank.forget(ANA, first)
    with Bank.open(path, embedder) as bank:
        assert add(bank, "I live in Bern.") > first


def test_a_snapshot_is_a_private_copy(bank: Bank) -> None:
    """It has the visible items under their ids, finds them, and what is done to it stays in it."""
    ids = [add(bank, text) for text in ("I live in Rome.", "I like tea.", "My cat is Rex.")]
    bank.apply(ANA, [deleting(ids[1])])
    add(bank, "I am Bob.", BOB)
    copy = bank.snapshot(ANA)
    assert copy.items(ANA) == bank.items(ANA) and copy.items(BOB) == [] and copy.check() == []
    assert found(copy, "Rome") == [ids[0]] and near(copy, "Rome")[0] == ids[0]
    copy.apply(ANA, [updating(ids[0], "I live in Bern."), deleting(ids[2])])
    assert add(copy, "New.") > max(ids)
    assert bank.get(ANA, ids[0]).text == "I live in Rome." and len(bank.items(ANA)) == 2
    again = copy.snapshot(ANA)
    assert [item.text for item in again.items(ANA)] == ["I live in Bern.", "New."]
    assert bank.snapshot(Scope(user="nobody")).scopes() == []


def test_feedback_comes_back_equal(bank: Bank) -> None:
    """An answer with its correction is kept per scope."""
    add(bank, "I live in Rome.")
    answer = Answer("Rome", (1,), False, "Where?", tuple(bank.items(ANA)), ANA)
    bank.add_feedback(answer, "Rome, Italy")
    assert bank.feedback(ANA) == bank.feedback() == [(answer, "Rome, Italy")] and bank.feedback(BOB) == []


def test_stats_count_one_scope_or_all(bank: Bank) -> None:
    """Counts of a scope are that scope's alone."""
    bank.record([Turn("hello", scope=ANA)])
    bank.apply(ANA, [deleting(add(bank, "one")), adding("two")])
    add(bank, "three", BOB)
    ana, both = bank.stats(ANA), bank.stats()
    assert (ana.items, ana.deleted, ana.turns, ana.pending, ana.changes) == (1, 1, 1, 1, {"ADD": 2, "DELETE": 1})
    assert (both.scopes, both.items) == (2, 2) and both.bytes > 0
    assert bank.stats(Scope(user="nobody")).items == 0
    assert bank.scopes() == [ANA, BOB]


def test_the_files_are_their_owners_alone(path: Path, embedder: HashEmbedder) -> None:
    """0600 for the file and its write-ahead log, from the first byte on; folders are made."""
    deep = path.parent / "new" / "folder" / "bank.db"
    with Bank.open(deep, embedder, persist_from=1) as bank:
        add(bank, "I live in Rome.")
        near(bank, "Rome")
        for file in deep.parent.iterdir():
            assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    for file in Path(f"{deep}.index").iterdir():
        assert stat.S_IMODE(os.stat(file).st_mode) == 0o600


def test_searches_refuse_nothing_but_a_wrong_vector(bank: Bank) -> None:
    """Empty scopes, empty queries, k of 0 and zero vectors give nothing; a vector of another length is an error."""
    assert found(bank, "anything") == near(bank, "anything") == []
    add(bank, "I live in Rome.")
    assert found(bank, "") == found(bank, "the of and") == found(bank, "Rome", k=0) == []
    assert bank.search_vectors(ANA, np.zeros(64, np.float32), 5, view="text") == []
    with pytest.raises(InputError, match="has 3 numbers; expected the embedder's 64"):
        bank.search_vectors(ANA, np.ones(3, np.float32), 5, view="text")


def test_a_bank_in_memory_does_all_the_same(embedder: HashEmbedder) -> None:
    """ ":memory:" is private to its object, and threads share it."""
    with Bank.open(":memory:", embedder) as bank, Bank.open(":memory:", embedder) as other:
        threads = [threading.Thread(target=add, args=(bank, f"Number {n} of many.")) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found(bank, "number", k=50)) == len(near(bank, "number", k=50)) == 20
        assert bank.check() == [] and other.items(ANA) == []
        assert bank.forget(ANA).items == 20 and bank.scopes() == []
