"""The bank's SQLite file: connections, transactions, locks, and errors in words.

Not here: what the tables hold (`migrations`) and what is written to them (`applying`, `journal`). One writer at
a time (a lock per file and process, then BEGIN IMMEDIATE), any number of readers, each on a connection of its own.

WAL with synchronous=FULL: a commit is on the disk before it is acknowledged, so it survives a SIGKILL and a power
cut as well (as far as the disk keeps its promise on fsync).
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from memr1_plugin.bank.migrations import migrate
from memr1_plugin.errors import BankBusyError, BankError

MEMORY = ":memory:"

Connect = Callable[..., sqlite3.Connection]


class _WriteLock:
    """A lock that can be held weakly: one per file, shared by all banks of the process on it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()


_locks: WeakValueDictionary[str, _WriteLock] = WeakValueDictionary()
_locks_guard = threading.Lock()


class Store:
    """An open bank file. Thread-safe; one per file and process is enough, more do no harm."""

    def __init__(
        self,
        path: str | Path,
        *,
        busy_timeout_s: float = 30.0,
        connect: Connect = sqlite3.connect,
        errors: tuple[type[Exception], ...] = (sqlite3.Error,),
        encrypted: bool = False,
    ) -> None:
        self.path = str(path)
        self.memory = self.path == MEMORY
        self.busy_timeout_s = busy_timeout_s
        self._connect, self._errors, self.encrypted = connect, errors, encrypted
        self._pid = os.getpid()
        self._closed = False
        self._readers: list[sqlite3.Connection] = []
        self._readers_guard = threading.Lock()
        if not self.memory:
            _create_private(Path(path))
        self._write_lock = _lock_of(self.path)
        with self.explained():
            self._writer = self._patiently(self._open_writer)
        try:
            migrate(self.writing, self.path)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One write transaction: committed at the end, rolled back on any exception. Not reentrant.

        Other threads of this process are waited for as long as it takes: each of them is at work, or waits for another
        process and gives up after `busy_timeout_s`. Only that one wait is limited, whatever the queue before it.
        """
        with self._write_lock.lock:
            self._check_open()
            with self.explained():
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield self._writer
                    self._writer.execute("COMMIT")
                except BaseException:
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
                    raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One read transaction: everything read inside is of one moment. Never waits for a writer of a file."""
        if self.memory:
            with self._reading_memory() as connection:
                yield connection
            return
        self._check_open()
        with self.explained():
            connection = self._take_reader()
            try:
                connection.execute("BEGIN")
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                self._give_reader(connection)

    @contextmanager
    def _reading_memory(self) -> Iterator[sqlite3.Connection]:
        self._check_open()
        with self._write_lock.lock, self.explained():
            yield self._writer

    @contextmanager
    def outside_transaction(self) -> Iterator[sqlite3.Connection]:
        """The writer's connection under the write lock, without a transaction (VACUUM, checkpoints, backup)."""
        with self._write_lock.lock:
            self._check_open()
            with self.explained():
                yield self._writer

    def truncate_wal(self) -> None:
        """Move the WAL into the file and cut it to zero bytes, waiting for readers to leave."""
        if self.memory:
            return
        deadline = time.monotonic() + self.busy_timeout_s
        while True:
            with self.outside_transaction() as connection:
                busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if not busy:
                return
            if time.monotonic() > deadline:
                raise BankBusyError(
                    f"{self.path}: a reader of another process has held its view for {self.busy_timeout_s:g} s, so the "
                    "write-ahead log could not be emptied. Let it finish and call this again."
                )
            time.sleep(0.01)

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._closed

    def close(self) -> None:
        """Close all connections. Calling it twice does nothing."""
        self._closed = True
        with self._readers_guard:
            readers, self._readers = self._readers, []
        for reader in readers:
            reader.close()
        if os.getpid() == self._pid:
            with self._write_lock.lock:
                self._writer.close()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn SQLite's errors into the library's, with what to do."""
        try:
            yield
        except self._errors as error:
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> BankError:
        words = str(error).lower()
        if self._closed or "closed database" in words:
            return BankError(f"{self.path} is closed. Open the bank again.")
        if "locked" in words or "busy" in words:
            return BankBusyError(self._busy())
        if "disk is full" in words or "full" in words:
            return BankError(
                f"{self.path}: no disk space left ({error}). Nothing of this write was kept; free some space."
            )
        if "readonly" in words or "read-only" in words:
            return BankError(f"{self.path} cannot be written ({error}). Make the file and its folder writable.")
        if "unable to open" in words:
            return BankError(
                f"{self.path} cannot be opened ({error}). Check that it is a file and may be read and written."
            )
        if "not a database" in words:
            return BankError(f"{self.path} is not a memory bank: SQLite says {error}. {self._key_advice()}")
        if "malformed" in words or "corrupt" in words or "disk i/o" in words:
            return BankError(
                f"{self.path} is damaged or its disk fails ({error}). Run `memr1 doctor`; "
                "`memr1 export` saves what can be read, `memr1 import` brings it into a new file."
            )
        if "no such module: fts5" in words:
            return BankError("this Python's SQLite has no FTS5, which full text needs. Use a build that has it.")
        return BankError(f"{self.path}: SQLite failed: {error}")

    def _key_advice(self) -> str:
        if self.encrypted:
            return "The key is another one, or the file is not encrypted."
        return "Choose another path; if it is an encrypted bank, give its key (MEMR1_KEY, or `key`)."

    def _busy(self) -> str:
        return (
            f"{self.path} was locked by another writer for more than {self.busy_timeout_s:g} s. Nothing was written: "
            "try again, or open the bank with a longer busy_timeout_s."
        )

    def _check_open(self) -> None:
        if self._closed:
            raise BankError(f"{self.path} is closed. Open the bank again.")
        if os.getpid() != self._pid:
            raise BankError(f"{self.path} was opened before a fork. Open the bank in the process that uses it.")

    def _take_reader(self) -> sqlite3.Connection:
        with self._readers_guard:
            if self._readers:
                return self._readers.pop()
        return self._patiently(self._open_reader)

    def _give_reader(self, reader: sqlite3.Connection) -> None:
        with self._readers_guard:
            if not self._closed:
                self._readers.append(reader)
                return
        reader.close()

    def _open_writer(self) -> sqlite3.Connection:
        connection = self._open()
        try:
            if not self.memory:
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def _open_reader(self) -> sqlite3.Connection:
        connection = self._open()
        connection.execute("PRAGMA query_only = ON")
        return connection

    def _open(self) -> sqlite3.Connection:
        return self._connect(self.path, timeout=self.busy_timeout_s, isolation_level=None, check_same_thread=False)

    def _patiently(self, open_: Callable[[], sqlite3.Connection]) -> sqlite3.Connection:
        """Open, trying again while SQLite says "locked": its busy timeout does not cover the switch to WAL."""
        deadline = time.monotonic() + self.busy_timeout_s
        while True:
            try:
                return open_()
            except self._errors as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


def _lock_of(path: str) -> _WriteLock:
    if path == MEMORY:
        return _WriteLock()
    with _locks_guard:
        lock = _locks.get(real := os.path.realpath(path))
        if lock is None:
            lock = _locks[real] = _WriteLock()
        return lock


def _create_private(path: Path) -> None:
    """Create the file for its owner alone (0600) before SQLite does; the WAL takes over its mode."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise BankError(
            f"{path} cannot be opened: {error.strerror or error}. Give a file in a folder that you may write to."
        ) from error
