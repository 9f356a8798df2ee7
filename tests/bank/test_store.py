"""The file: versions, locks, full disks, foreign databases. Each failure says what was found and what to do."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from bank_help import ANA, BOB, add, adding, found, near

from memr1_plugin.bank import migrations
from memr1_plugin.bank.bank import Bank
from memr1_plugin.bank.store import Store
from memr1_plugin.errors import BankBusyError, BankError, BankVersionError, EmbedderMismatchError
from memr1_plugin.testing import HashEmbedder
from memr1_plugin.types import Turn


def test_a_file_of_a_newer_version_is_refused(path: Path, embedder: HashEmbedder) -> None:
    """It is left as it is, and the message says to upgrade."""
    Bank.open(path, embedder).close()
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO migrations VALUES (99, 'from the future', '2030')")
    connection.close()
    with pytest.raises(BankVersionError, match=r"schema version 99; this memr1-plugin knows up to \d+.*upgrade"):
        Bank.open(path, embedder)


def test_migrations_run_once_in_order_each_with_its_record(path: Path) -> None:
    """A file of an older version is brought up to date when it is opened, and keeps its rows."""
    store = Store(path)
    later = (*migrations.MIGRATIONS, ("a table more", ("CREATE TABLE more (x)", "INSERT INTO more VALUES (1)")))
    assert migrations.migrate(store.writing, str(path), later) == 1
    assert migrations.migrate(store.writing, str(path), later) == 0
    with store.reading() as connection:
        assert connection.execute("SELECT x FROM more").fetchall() == [(1,)]
        names = [row[0] for row in connection.execute("SELECT name FROM migrations ORDER BY version")]
    assert names[-1] == "a table more" and len(names) == len(later)
    store.close()


def test_a_migration_that_fails_leaves_nothing_behind(path: Path) -> None:
    """A step and its record are one transaction."""
    store = Store(path)
    broken = (*migrations.MIGRATIONS, ("broken", ("CREATE TABLE half (x)", "CREATE NONSENSE")))
    with pytest.raises(BankError, match="NONSENSE"):
        migrations.migrate(store.writing, str(path), broken)
    with store.reading() as connection:
        assert connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'half'").fetchone() is None
    store.close()


def test_another_programs_database_is_not_touched(path: Path, embedder: HashEmbedder) -> None:
    """A SQLite file with other tables, and a file that is no database, are refused."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE bookmarks (url)")
    connection.close()
    with pytest.raises(BankError, match=r"another program .tables \['bookmarks'\]"):
        Bank.open(path, embedder)
    text = path.with_name("notes.txt")
    text.write_text("Dear diary, " * 100)
    with pytest.raises(BankError, match="not a memory bank"):
        Bank.open(text, embedder)
    assert text.read_text().startswith("Dear diary")
    with pytest.raises(BankError, match="cannot be opened"):
        Bank.open(path.parent, embedder)


def test_another_embedder_is_refused_with_the_remedy(path: Path) -> None:
    """Vectors of two embedders cannot be compared; re-embedding makes the bank the new one's."""
    with Bank.open(path, HashEmbedder(64)) as bank:
        ids = [add(bank, "I live in Rome.", context="Bob: where?"), add(bank, "I like tea.")]
    with pytest.raises(EmbedderMismatchError, match=r"hash-64 .dim 64.; the embedder given is hash-32.*memr1 reembed"):
        Bank.open(path, HashEmbedder(32))
    with Bank.open(path, HashEmbedder(32), reembed=True) as bank:
        assert near(bank, "Rome")[0] == ids[0] and near(bank, "where", k=1, view="context") == [ids[0]]
        assert bank.check() == []
    with Bank.open(path, HashEmbedder(32)) as bank:
        assert bank.reembed(HashEmbedder(16)) == 2 and near(bank, "tea", k=1) == [ids[1]]


def test_a_bank_reembedded_by_another_process_is_noticed(path: Path) -> None:
    """A process that still holds the old embedder is told so, and writes no vector that fits nothing."""
    with Bank.open(path, HashEmbedder(64)) as old:
        add(old, "I live in Rome.")
        near(old, "Rome")
        Bank.open(path, HashEmbedder(32), reembed=True).close()
        with pytest.raises(EmbedderMismatchError):
            add(old, "I like tea.")
        with pytest.raises(EmbedderMismatchError):
            near(old, "Rome")


def test_a_locked_bank_says_busy_and_not_sqlites_words(path: Path, embedder: HashEmbedder) -> None:
    """After the busy timeout a write fails whole, and reads go on meanwhile."""
    with Bank.open(path, embedder, busy_timeout_s=0.2) as bank:
        add(bank, "I live in Rome.")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert found(bank, "Rome") == near(bank, "Rome") == [1]
        with pytest.raises(BankBusyError, match=r"locked by another writer for more than 0.2 s. Nothing was written"):
            bank.record([Turn("I moved.", scope=ANA)])
        other.execute("ROLLBACK")
        other.close()
        assert bank.record([Turn("I moved.", scope=ANA)]) == [True]


def test_a_writer_waits_for_another(bank: Bank) -> None:
    """Within the busy timeout a held lock is only a delay."""
    other = sqlite3.connect(bank.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.3, lambda: other.execute("ROLLBACK")).start()
    start = time.monotonic()
    assert bank.record([Turn("I moved.", scope=ANA)]) == [True]
    assert time.monotonic() - start > 0.2
    other.close()


def test_the_queue_inside_a_process_is_no_lock_of_another(path: Path, embedder: HashEmbedder) -> None:
    """The busy timeout is for other processes; threads that wait for each other used to run into it in a crowd."""
    with Bank.open(path, embedder, busy_timeout_s=0.2) as bank:
        started = threading.Event()

        def hold() -> None:
            with bank._store.writing():
                started.set()
                time.sleep(0.6)

        holder = threading.Thread(target=hold)
        holder.start()
        started.wait()
        assert bank.record([Turn("I moved.", scope=ANA)]) == [True]
        holder.join()


def test_a_full_disk_loses_nothing_that_was_acknowledged(bank: Bank) -> None:
    """The write that does not fit fails whole, in words; the bank is sound and goes on when there is room."""
    add(bank, "I live in Rome.")
    with bank._store.outside_transaction() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 3}")
    with pytest.raises(BankError, match="no disk space left"):
        bank.record([Turn("x" * 50_000, scope=ANA, id="large")])
    assert bank.turns(ANA) == [] and bank.check() == []
    with bank._store.outside_transaction() as connection:
        connection.execute("PRAGMA max_page_count = 1000000")
    assert bank.record([Turn("x" * 50_000, scope=ANA, id="large")]) == [True]


def test_a_bank_that_cannot_be_written_says_so(bank: Bank) -> None:
    """A read-only file is an error in words, not a traceback of SQLite's."""
    with bank._store.outside_transaction() as connection:
        connection.execute("PRAGMA query_only = ON")
    with pytest.raises(BankError, match=r"cannot be written .*Make the file and its folder writable"):
        add(bank, "I live in Rome.")


def test_a_damaged_file_is_reported(path: Path, embedder: HashEmbedder) -> None:
    """Overwritten pages are an error that names the way out, never a wrong answer."""
    with Bank.open(path, embedder) as bank:
        bank.apply(ANA, [adding(f"number {n} " + "word " * 50) for n in range(100)])
    data = bytearray(path.read_bytes())
    data[4096 * 3 :] = b"\xff" * (len(data) - 4096 * 3)
    path.write_bytes(data)
    with pytest.raises(BankError, match=r"damaged|not a memory bank|SQLite failed"), Bank.open(path, embedder) as bank:
        bank.items(ANA)


def test_a_closed_bank_says_that_it_is_closed(bank: Bank) -> None:
    """Every use after close is a BankError; closing twice is not."""
    bank.close()
    bank.close()
    for use in (lambda: add(bank, "x"), lambda: found(bank, "x"), bank.pending, bank.check):
        with pytest.raises(BankError, match="is closed"):
            use()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_bank_is_not_used_across_a_fork(bank: Bank) -> None:
    """SQLite's connections must not be carried into a forked child: the child is told to open its own."""
    script = (
        "import os, sys; from bank_help import *; from memr1_plugin.testing import HashEmbedder\n"
        "from memr1_plugin.errors import BankError\n"
        "bank = Bank.open(sys.argv[1], HashEmbedder())\n"
        "if os.fork() == 0:\n"
        "    try: bank.pending()\n"
        "    except BankError as error: os._exit(7 if 'before a fork' in str(error) else 1)\n"
        "    os._exit(2)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))"
    )
    run = subprocess.run([sys.executable, "-c", script, bank.path], cwd=Path(__file__).parent, timeout=120)
    assert run.returncode == 7


WRITER = """
import sys
from bank_help import *
from memr1_plugin.testing import HashEmbedder
from memr1_plugin.types import Turn
with Bank.open(sys.argv[1], HashEmbedder()) as bank:
    for n in range(25):
        turn = Turn(f"turn {n}", scope=ANA, id=f"shared-{n}")
        bank.record([turn])
        bank.apply(ANA, [adding(f"shared number {n}", turn_id=turn.id)], turns=[turn])
        bank.apply(BOB, [adding(f"own {sys.argv[2]} number {n}")])
"""


def test_processes_that_open_and_write_one_file_at_once(path: Path, embedder: HashEmbedder) -> None:
    """Four processes create and fill one bank: nobody meets a lock, each shared turn is managed exactly once."""
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [
        subprocess.Popen([*command, str(n)], cwd=Path(__file__).parent, stderr=subprocess.PIPE) for n in range(4)
    ]
    for writer in writers:
        _, err = writer.communicate(timeout=240)
        assert writer.returncode == 0, err.decode()
    with Bank.open(path, embedder) as bank:
        assert sorted(item.text for item in bank.items(ANA)) == sorted(f"shared number {n}" for n in range(25))
        assert len(bank.items(BOB)) == 100 and bank.pending() == [] and bank.check() == []


def test_check_finds_what_was_tampered_with(bank: Bank) -> None:
    """The doctor names items whose vectors, words or history do not fit their row."""
    for text in ("one apple", "two pears", "three plums"):
        add(bank, text)
    add(bank, "four", BOB)
    with bank._store.writing() as connection:
        connection.execute("DELETE FROM item_vectors WHERE item_id = 1")
        connection.execute("UPDATE items SET text = 'two lemons and a melon' WHERE id = 2")
        connection.execute("UPDATE items SET n_text = 9 WHERE id = 3")
        connection.execute("UPDATE items SET version = 99 WHERE id = 4")
    words = "\n".join(bank.check())
    for n, what in ((1, "no vectors"), (2, "not what its last change"), (3, "words indexed, not 9"), (4, "newer than")):
        assert f"item {n}" in words and what in words
