"""Damaged, cut, full and read-only: a clear error or a repair, never a wrong answer."""

from __future__ import annotations

import os
import random
import sqlite3
from pathlib import Path

import full_disk
import numpy as np
import pytest

from memr1_plugin.bank.bank import Bank
from memr1_plugin.bank.vectors import VIEWS
from memr1_plugin.errors import BankError, BankVersionError
from memr1_plugin.testing import HashEmbedder
from memr1_plugin.types import Fact, Operation, OperationKind, Scope, Turn, aware

ANA, BOB = Scope(user="ana"), Scope(user="bob")
EMBEDDER = HashEmbedder(16)
needs_mount = pytest.mark.skipif(not full_disk.mountable(), reason="no file system can be mounted here (unshare)")


def fill(bank: Bank, scope: Scope, start: int, n: int) -> None:
    """Add `n` items that all differ."""
    facts = [Fact(f"number {k} has colour {k * 7919 % 97}", "Ana", aware(None)) for k in range(start, start + n)]
    bank.apply(scope, [Operation(OperationKind.ADD, fact) for fact in facts])


def opened(path: Path) -> Bank:
    """A bank that keeps index files of small scopes."""
    return Bank.open(path, EMBEDDER, persist_from=5)


def answers(bank: Bank) -> list[dict[int, float]]:
    """What searches in both views say of both scopes, whole."""
    query = EMBEDDER.embed(["number colour 7"])[0]
    found = [dict(bank.search_vectors(scope, query, 99, view=view)) for scope in (ANA, BOB) for view in VIEWS]
    return [{item: round(cosine, 4) for item, cosine in one.items()} for one in found]


def test_index_files_torn_anywhere_are_rebuilt(tmp_path: Path) -> None:
    """Cut at any length, overwritten, swapped between scopes, doubled, emptied: the answers stay the same."""
    path, rng = tmp_path / "bank.db", random.Random(3)
    with opened(path) as bank:
        fill(bank, ANA, 0, 12)
        fill(bank, BOB, 100, 12)
        expected = answers(bank)
    one, two = sorted(Path(f"{path}.index").iterdir())
    whole, other = one.read_bytes(), two.read_bytes()
    damages = [whole[: rng.randrange(len(whole))] for _ in range(12)]
    damages += [whole + whole, other, b"", whole[:-32] + other[-32:]]
    for _ in range(12):
        at, n = rng.randrange(len(whole)), rng.randrange(1, 64)
        damages.append(whole[:at] + rng.randbytes(n) + whole[at + n :])
    for n, data in enumerate(damages):
        one.write_bytes(data)
        with opened(path) as bank:
            assert answers(bank) == expected, f"damage {n}"


def test_a_database_cut_short_is_told_and_never_half_answered(tmp_path: Path) -> None:
    """Whatever length is left: a BankError that names the way out, or every item."""
    path = tmp_path / "bank.db"
    with opened(path) as bank:
        fill(bank, ANA, 0, 60)
        expected = bank.items(ANA)
    data, told = path.read_bytes(), 0
    for length in range(4096, len(data), 3 * 4096 + 100):
        path.write_bytes(data[:length])
        try:
            with opened(path) as bank:
                assert bank.items(ANA) == expected and bank.check()
        except BankError as error:
            told += "damaged" in str(error) or "not a memory bank" in str(error)
    assert told > 3


def test_a_torn_write_ahead_log_gives_an_earlier_state_whole(tmp_path: Path) -> None:
    """A log whose end was lost (a disk that lied about fsync) opens as some earlier moment, every turn of it whole."""
    path = tmp_path / "bank.db"
    bank = opened(path)
    for n in range(20):
        turn = Turn(f"turn {n}", scope=ANA, id=str(n))
        bank.record([turn])
        fact = Fact(f"number {n}", "Ana", turn.at, turn.id)
        bank.apply(ANA, [Operation(OperationKind.ADD, fact)] * 2, turns=[turn])
    database, log = path.read_bytes(), Path(f"{path}-wal").read_bytes()
    bank.close()
    seen = set()
    for length in np.linspace(0, len(log), 25).astype(int).tolist():
        for name, data in (("", database), ("-wal", log[:length])):
            Path(f"{tmp_path}/copy.db{name}").write_bytes(data)
        Path(f"{tmp_path}/copy.db-shm").unlink(missing_ok=True)
        with opened(tmp_path / "copy.db") as copy:
            managed = len(copy.turns(ANA)) - copy.waiting()
            assert copy.check() == [] and len(copy.items(ANA)) == 2 * managed
            seen.add(managed)
    assert 20 in seen and len(seen) > 5


@needs_mount
@pytest.mark.parametrize("write", ["sync", "background"])
def test_a_disk_that_is_really_full(tmp_path: Path, write: str) -> None:
    """On a tmpfs of two megabytes refused writes say why, no acknowledged one is lost, and with room all goes on.

    A background writer used to stop for good at the first write that did not fit.
    """
    report = full_disk.run(tmp_path, write)
    assert report.failures == ()


@needs_mount
def test_a_file_system_that_is_read_only(tmp_path: Path) -> None:
    """The bank is not opened, and the error says what stands in the way."""
    with opened(tmp_path / "bank.db") as bank:
        fill(bank, ANA, 0, 3)
    done = full_disk.read_only(tmp_path)
    assert (
        "bank.db cannot be opened: Read-only file system. Give a file in a folder that you may write to" in done.stdout
    )
    with opened(tmp_path / "bank.db") as bank:
        assert len(bank.items(ANA)) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only files")
def test_a_file_without_the_right_to_write(tmp_path: Path) -> None:
    """The same for a file whose mode forbids it."""
    opened(tmp_path / "bank.db").close()
    (tmp_path / "bank.db").chmod(0o400)
    with pytest.raises(BankError, match="cannot be opened: Permission denied"):
        opened(tmp_path / "bank.db")


def test_a_newer_versions_file_is_left_byte_for_byte(tmp_path: Path) -> None:
    """Refused with the remedy, and not changed by the attempt."""
    path = tmp_path / "bank.db"
    opened(path).close()
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO migrations VALUES (99, 'from the future', '2030')")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(BankVersionError, match="upgrade memr1-plugin"):
        opened(path)
    assert path.read_bytes() == before
