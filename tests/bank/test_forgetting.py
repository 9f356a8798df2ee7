"""Erasing: after `forget` returns, no byte of the text is in any file of the bank."""

from __future__ import annotations

from pathlib import Path

import pytest
from bank_help import ANA, BOB, add, deleting, fact, found, near, updating

from memr1_plugin.bank import bank as bank_module
from memr1_plugin.bank import forgetting
from memr1_plugin.bank.bank import Bank, Forgotten
from memr1_plugin.errors import BankError, UnknownItemError
from memr1_plugin.operations import Rejection
from memr1_plugin.testing import HashEmbedder
from memr1_plugin.types import Answer, Operation, OperationKind, Scope, Turn


def left_in_files(path: str | Path, *words: str) -> list[str]:
    """Which words stand in a file of the bank, in any case; also cut at the front, as FTS5 stores terms."""
    data = b"".join(file.read_bytes().lower() for file in sorted(Path(path).parent.rglob("*")) if file.is_file())
    return [word for word in words if word.encode().lower() in data or word.encode().lower()[3:] in data]


def say(bank: Bank, turn_id: str, text: str, context: str = "", target: int | None = None, scope: Scope = ANA) -> int:
    """Record a turn and apply what it says, as the memory does."""
    turn = Turn(text, "Ana", scope, id=turn_id, session="s")
    bank.record([turn])
    kind = OperationKind.ADD if target is None else OperationKind.UPDATE
    said = fact(text, turn_id=turn_id, context=context)
    [change] = bank.apply(scope, [Operation(kind, said, target)], turns=[turn])
    assert change.item_id is not None
    return change.item_id


def crowd(bank: Bank, n: int = 120) -> None:
    """Other items around, so that pages and segments are shared."""
    for i in range(n):
        add(bank, f"filler number {i} about nothing in particular", BOB if i % 3 else ANA)


@pytest.mark.parametrize("live", [True, False])
def test_a_forgotten_item_leaves_no_byte(bank: Bank, live: bool) -> None:
    """Its text, its earlier texts, the turns it came from, quotes of them in contexts, rejections and feedback."""
    crowd(bank)
    item_id = say(bank, "t1", "My password is xylophonequartz.")
    follower = say(bank, "t2", "Good to know.", context="Ana: My password is xylophonequartz.")
    say(bank, "t3", "I changed it to zephyrmarimba.", context="Ana: Good to know.", target=item_id)
    say(bank, "t4", "I keep kumquatfagott in the cellar.", context="Ana: I changed it to zephyrmarimba.")
    bank.apply(ANA, [], rejections=[Rejection("unparseable", "UPDATE 1: My password is xylophonequartz.")])
    shown = Answer("xylophonequartz", (item_id,), items=tuple(bank.items(ANA, ids=[item_id])), scope=ANA)
    bank.add_feedback(shown, "zephyrmarimba")
    if not live:
        bank.apply(ANA, [deleting(item_id)])
    crowd(bank)
    near(bank, "password")
    assert left_in_files(bank.path, "xylophonequartz", "zephyrmarimba") == ["xylophonequartz", "zephyrmarimba"]
    gone = bank.forget(ANA, item_id)
    assert left_in_files(bank.path, "xylophonequartz", "zephyrmarimba") == []
    assert gone == Forgotten(items=1, changes=2 if live else 3, turns=2, feedback=1)
    assert left_in_files(bank.path, "kumquatfagott") == ["kumquatfagott"]
    assert bank.get(ANA, follower).context == "" and bank.get(ANA, follower).text == "Good to know."
    assert bank.feedback(ANA) == [] and bank.stats(ANA).rejections == {"unparseable": 1}
    assert [turn.id for turn in bank.turns(ANA)] == ["t2", "t4"]
    assert found(bank, "xylophonequartz password", view="context") == [] and item_id not in near(bank, "password")
    assert bank.check() == []


def test_a_forgotten_scope_leaves_no_byte_and_no_name(path: Path, embedder: HashEmbedder) -> None:
    """Its items, turns, history and its very name; others keep all of theirs."""
    viola = Scope(user="quincunxviola")
    with Bank.open(path, embedder, persist_from=1) as bank:
        crowd(bank)
        say(bank, "t1", "My password is xylophonequartz.", scope=viola)
        say(bank, "t2", "And I like tea.", scope=viola)
        bank.record([Turn("Still pending: zephyrmarimba.", scope=viola)])
        near(bank, "password", viola)
        assert len(left_in_files(path, "xylophonequartz", "zephyrmarimba", "quincunxviola")) == 3
    with Bank.open(path, embedder, persist_from=1) as bank:
        others = bank.items(BOB)
        before = found(bank, "filler", BOB, k=200)
        gone = bank.forget(viola)
        assert (gone.items, gone.turns) == (2, 3)
        assert left_in_files(path, "xylophonequartz", "zephyrmarimba", "quincunxviola") == []
        assert bank.items(BOB) == others and found(bank, "filler", BOB, k=200) == before
        assert viola not in bank.scopes() and bank.check() == []
        assert bank.forget(viola) == Forgotten()
        assert found(bank, "password", viola) == near(bank, "password", viola) == []


def test_forgetting_is_finished_at_the_next_open(
    path: Path, embedder: HashEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies between the rows and the bytes leaves a note, and the next one cleans the files."""

    def killed(store: object) -> None:
        raise KeyboardInterrupt

    with Bank.open(path, embedder) as bank:
        crowd(bank)
        item_id = say(bank, "t1", "My password is xylophonequartz.")
        monkeypatch.setattr(bank_module, "wipe", killed)
        with pytest.raises(KeyboardInterrupt):
            bank.forget(ANA, item_id)
        monkeypatch.undo()
        assert bank.items(ANA, ids=[item_id]) == [] and left_in_files(path, "xylophonequartz")
    with Bank.open(path, embedder) as bank:
        assert left_in_files(path, "xylophonequartz") == [] and not forgetting.wipe_pending(bank._store)


def test_a_reader_that_stays_is_waited_for_and_named(path: Path, embedder: HashEmbedder) -> None:
    """While another process holds an old view the write-ahead log cannot be emptied: that is said, not hidden."""
    with Bank.open(path, embedder, busy_timeout_s=0.3) as bank, Bank.open(path, embedder) as other:
        item_id = add(bank, "My password is xylophonequartz.")
        with other._store.reading() as connection:
            connection.execute("SELECT * FROM items").fetchall()
            with pytest.raises(BankError, match=r"reader of another process|locked by another"):
                bank.forget(ANA, item_id)
    with Bank.open(path, embedder):
        assert left_in_files(path, "xylophonequartz") == []


def test_an_unknown_item_cannot_be_forgotten(bank: Bank) -> None:
    """Nor can one of another scope; nothing changes."""
    item_id = add(bank, "I live in Rome.")
    for scope, wanted in ((ANA, 99), (BOB, item_id)):
        with pytest.raises(UnknownItemError, match="holds no memory item"):
            bank.forget(scope, wanted)
    assert bank.get(ANA, item_id).text == "I live in Rome."


def test_an_updated_items_old_words_are_forgotten_too(bank: Bank) -> None:
    """The before-image in the history is erased with the item."""
    item_id = add(bank, "My password is xylophonequartz.")
    bank.apply(ANA, [updating(item_id, "My password is secret.")])
    bank.forget(ANA, item_id)
    assert left_in_files(bank.path, "xylophonequartz") == [] and bank.history(ANA, item_id) == []


def test_what_was_told_twice_or_said_back_is_forgotten_too(bank: Bank) -> None:
    """A repeated turn is a NOOP that no item names, and a bot says things back: both kept the words in the journal.

    Worse, a replay of the journal would have brought the memory back. A turn that another memory comes from stays.
    """
    item_id = say(bank, "t1", "My password is xylophonequartz.")
    echo = Turn(
        "So your password is xylophonequartz. Shall I keep: My password is xylophonequartz.", "bot", ANA, id="t2"
    )
    again = Turn("my PASSWORD is  xylophonequartz.", "Ana", ANA, id="t3")
    bank.record([echo, again])
    bank.apply(ANA, [], turns=[echo])
    bank.apply(ANA, [Operation(OperationKind.NOOP, fact(again.text, turn_id="t3"))], turns=[again])
    say(bank, "t4", "My password is xylophonequartz.", scope=BOB)
    other = say(bank, "t5", "Ben says: My password is zephyrmarimba.")
    assert bank.forget(ANA, item_id).turns == 3
    assert [turn.id for turn in bank.turns(ANA)] == ["t5"] and [i.id for i in bank.items(ANA)] == [other]
    assert left_in_files(bank.path, "xylophonequartz") == ["xylophonequartz"]  # Bob's own, another scope
    bank.forget(BOB)
    assert left_in_files(bank.path, "xylophonequartz") == [] and bank.check() == []


def vectors_left(path: Path, vector: bytes) -> list[str]:
    """The files of the bank that hold these bytes of a vector."""
    return [file.name for file in sorted(path.parent.rglob("*")) if file.is_file() and vector in file.read_bytes()]


def test_a_forgotten_vector_leaves_no_byte(path: Path) -> None:
    """A vector tells of its text; it goes from the index files too, also when another process writes one afterwards."""
    embedder = HashEmbedder(16)
    with Bank.open(path, embedder, persist_from=3) as bank, Bank.open(path, embedder, persist_from=3) as other:
        ids = [add(bank, f"number {n} xylophonequartz") for n in range(6)]
        vector = embedder.embed(["Ana: number 2 xylophonequartz"])[0].tobytes()
        near(other, "number")
        with Bank.open(path, embedder, persist_from=3) as third:
            near(third, "number")
        assert len(vectors_left(path, vector)) >= 2
        bank.forget(ANA, ids[2])
        assert vectors_left(path, vector) == []
        other.close()  # it still has the old vectors in memory, and saves its index
        assert vectors_left(path, vector) == []


def test_index_files_of_a_forgetting_that_died_are_cleaned_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that died before it deleted the scope's index file left its vectors there for ever."""
    embedder = HashEmbedder(16)
    with Bank.open(path, embedder, persist_from=3) as bank:
        ids = [add(bank, f"number {n} xylophonequartz") for n in range(6)]
        near(bank, "number")
    vector = embedder.embed(["Ana: number 2 xylophonequartz"])[0].tobytes()

    def killed(scope_id: int) -> None:
        raise KeyboardInterrupt

    bank = Bank.open(path, embedder, persist_from=1 << 60)
    monkeypatch.setattr(bank._indexes, "drop", killed)
    with pytest.raises(KeyboardInterrupt):
        bank.forget(ANA, ids[2])
    bank._store.close()
    assert vectors_left(path, vector)
    with Bank.open(path, embedder, persist_from=3):
        assert vectors_left(path, vector) == []
