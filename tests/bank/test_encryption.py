"""Encryption at rest, and files that are their owner's alone."""

from __future__ import annotations

import os
import secrets
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
from bank_help import ANA, add, adding, found, near

from memr1_plugin import Memory
from memr1_plugin.bank.bank import Bank
from memr1_plugin.errors import BankError, InputError, MissingExtraError
from memr1_plugin.testing import HashEmbedder, ScriptedModel

SECRET = "the cat is called Rexamillion"  # long: three letters turn up in random bytes now and then


@pytest.fixture
def _sqlcipher() -> None:
    pytest.importorskip("sqlcipher3", reason="the extra `encrypt` is not installed")


def raw(folder: Path) -> bytes:
    """All bytes of all files."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.usefixtures("_sqlcipher")
@pytest.mark.parametrize(
    "key",
    ['it\'s a "pass" phrase \u00e4', secrets.token_hex(32), lambda: "called"],
    ids=["passphrase", "raw", "function"],
)
def test_no_word_is_in_the_files_and_all_of_it_comes_back(tmp_path: Path, key: Any) -> None:
    """With a passphrase, a raw key or a function: all is found again, and no byte of it can be read in the files."""
    path = tmp_path / "bank.db"
    with Bank.open(path, HashEmbedder(), key=key, persist_from=1) as bank:
        first = add(bank, SECRET)
        assert b"Rexamil" not in raw(tmp_path) and b"rexamil" not in raw(tmp_path)
    assert not (tmp_path / "bank.db.index").exists()
    with Bank.open(path, HashEmbedder(), key=key) as bank:
        assert found(bank, "Rexamillion") == near(bank, "Rexamillion") == [first] and bank.check() == []
        bank.forget(ANA, first)
        add(bank, "I have a dachshund.")
    assert b"dachshund" not in raw(tmp_path) and not path.read_bytes().startswith(b"SQLite format 3")


@pytest.mark.usefixtures("_sqlcipher")
def test_a_wrong_key_and_no_key_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither opens the file or harms it; a plain file does not open with a key."""
    path = tmp_path / "bank.db"
    Bank.open(path, HashEmbedder(), key="right").close()
    before = path.read_bytes()
    with pytest.raises(BankError, match="key is another one"):
        Bank.open(path, HashEmbedder(), key="wrong")
    with pytest.raises(BankError, match="give its key"):
        Bank.open(path, HashEmbedder())
    assert path.read_bytes() == before
    Bank.open(tmp_path / "plain.db", HashEmbedder()).close()
    with pytest.raises(BankError, match="not encrypted"):
        Bank.open(tmp_path / "plain.db", HashEmbedder(), key="right")
    monkeypatch.setenv("MEMR1_KEY", "right")
    Bank.open(path, HashEmbedder()).close()
    with pytest.raises(InputError, match="empty"):
        Bank.open(path, HashEmbedder(), key=lambda: "")


@pytest.mark.usefixtures("_sqlcipher")
def test_sqlite_errors_of_an_encrypted_bank_are_the_librarys(tmp_path: Path) -> None:
    """A full disk is a full disk, whichever driver says so."""
    with Bank.open(tmp_path / "bank.db", HashEmbedder(), key="k") as bank:
        with bank._store.outside_transaction() as connection:
            connection.execute("PRAGMA max_page_count = 60")
        with pytest.raises(BankError, match="no disk space"):
            for _ in range(200):
                bank.apply(ANA, [adding("x" * 4000)])
        assert bank.check() == []


@pytest.mark.usefixtures("_sqlcipher")
def test_a_memory_replays_into_a_bank_under_the_same_key(tmp_path: Path) -> None:
    """What is built beside an encrypted bank is encrypted too."""
    options: dict[str, Any] = {"engine": ScriptedModel.heuristic(), "embedder": HashEmbedder(), "key": "k"}
    with Memory.open(tmp_path / "bot.db", **options) as memory:
        memory.observe(SECRET)
        memory.replay(into=tmp_path / "again.db")
    assert b"Rexamil" not in raw(tmp_path)
    with Memory.open(tmp_path / "again.db", **options) as memory:
        assert memory.search("Rexamillion")


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key without SQLCipher never means an unencrypted file."""
    import sys

    monkeypatch.setitem(sys.modules, "sqlcipher3", None)
    with pytest.raises(MissingExtraError, match=r"memr1-plugin\[encrypt\]"):
        Bank.open(tmp_path / "bank.db", HashEmbedder(), key="k")
    assert not (tmp_path / "bank.db").exists()


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX's")
def test_every_file_of_a_bank_is_its_owners_alone(tmp_path: Path) -> None:
    """Database, write-ahead log, shared memory and index files are 0600 whatever the umask, their folder 0700."""
    old = os.umask(0)
    try:
        with Bank.open(tmp_path / "bank.db", HashEmbedder(), persist_from=1) as bank:
            add(bank, SECRET)
            assert near(bank, "Rexamillion")
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
            assert modes == {"bank.db": 0o600, "bank.db-wal": 0o600, "bank.db-shm": 0o600}
        index = tmp_path / "bank.db.index"
        assert stat.S_IMODE(index.stat().st_mode) == 0o700
        files = list(index.iterdir())
        assert files and all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    finally:
        os.umask(old)


def test_the_plain_bank_is_sqlite(tmp_path: Path) -> None:
    """Without a key nothing changes: any SQLite reads the file."""
    with Bank.open(tmp_path / "bank.db", HashEmbedder()) as bank:
        add(bank, SECRET)
    with sqlite3.connect(tmp_path / "bank.db") as connection:
        assert connection.execute("SELECT text FROM items").fetchone() == (SECRET,)
    connection.close()
