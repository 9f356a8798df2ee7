"""The shape of a bank's file, as numbered steps: each runs once, with its record, in one transaction.

Not here: connections and locks (`store`), reading and writing rows (`rows`, `applying`). The way of keeping
the record in the file itself is sqlite-utils' and Django's; a file from a newer version is refused, never guessed at.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime, timezone

from memr1_plugin.errors import BankError, BankVersionError

APPLICATION_ID = 0x4D523142
"""SQLite's application_id of a bank ("MR1B"), so that another program's database is not taken for one."""

MIGRATIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "scopes, turns, items, vectors, changes, rejections, full text",
        (
            "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
            # version counts the writes to a scope, epoch its erasures: what an index compares itself with.
            """CREATE TABLE scopes (
                id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE,
                user TEXT NOT NULL, agent TEXT NOT NULL, session TEXT NOT NULL,
                version INTEGER NOT NULL DEFAULT 0, epoch INTEGER NOT NULL DEFAULT 0)""",
            """CREATE TABLE turns (
                seq INTEGER PRIMARY KEY AUTOINCREMENT, scope_id INTEGER NOT NULL REFERENCES scopes(id),
                id TEXT NOT NULL, session TEXT NOT NULL, speaker TEXT NOT NULL, role TEXT NOT NULL, text TEXT NOT NULL,
                at TEXT NOT NULL, metadata TEXT NOT NULL, managed INTEGER NOT NULL DEFAULT 0,
                UNIQUE (scope_id, id))""",
            "CREATE INDEX turns_by_session ON turns (scope_id, session, seq)",
            "CREATE INDEX turns_pending ON turns (seq) WHERE managed = 0",
            """CREATE TABLE items (
                id INTEGER PRIMARY KEY AUTOINCREMENT, scope_id INTEGER NOT NULL REFERENCES scopes(id),
                text TEXT NOT NULL, speaker TEXT NOT NULL, context TEXT NOT NULL, at TEXT NOT NULL,
                created_at TEXT NOT NULL, updated_at TEXT NOT NULL, turn_ids TEXT NOT NULL, metadata TEXT NOT NULL,
                expires_at TEXT, expires REAL, deleted INTEGER NOT NULL DEFAULT 0,
                n_text INTEGER NOT NULL, n_context INTEGER NOT NULL, version INTEGER NOT NULL)""",
            "CREATE INDEX items_by_scope ON items (scope_id, id)",
            "CREATE INDEX items_by_version ON items (scope_id, version)",
            "CREATE INDEX items_by_expiry ON items (expires) WHERE expires IS NOT NULL AND deleted = 0",
            # One row per item, one blob per view; context is NULL where it would equal text.
            """CREATE TABLE item_vectors (
                item_id INTEGER PRIMARY KEY REFERENCES items(id) ON DELETE CASCADE,
                text BLOB NOT NULL, context BLOB)""",
            """CREATE TABLE changes (
                id INTEGER PRIMARY KEY AUTOINCREMENT, scope_id INTEGER NOT NULL REFERENCES scopes(id),
                item_id INTEGER, kind TEXT NOT NULL, before TEXT, after TEXT, at TEXT NOT NULL, said REAL NOT NULL,
                turn_id TEXT NOT NULL, source TEXT NOT NULL, undone INTEGER NOT NULL DEFAULT 0,
                undoes INTEGER)""",
            "CREATE INDEX changes_by_item ON changes (scope_id, item_id, id)",
            "CREATE INDEX changes_by_scope ON changes (scope_id, id)",
            """CREATE TABLE rejections (
                id INTEGER PRIMARY KEY, scope_id INTEGER NOT NULL REFERENCES scopes(id),
                turn_id TEXT NOT NULL, reason TEXT NOT NULL, line TEXT NOT NULL, at TEXT NOT NULL)""",
            "CREATE INDEX rejections_by_scope ON rejections (scope_id, reason)",
            """CREATE TABLE feedback (
                id INTEGER PRIMARY KEY AUTOINCREMENT, scope_id INTEGER NOT NULL REFERENCES scopes(id),
                answer TEXT NOT NULL, correct TEXT NOT NULL, at TEXT NOT NULL)""",
            "CREATE INDEX feedback_by_scope ON feedback (scope_id, id)",
            # Contentless: the words come from items, and erasing an item need not hunt for a second copy of its text.
            """CREATE VIRTUAL TABLE items_fts USING fts5 (
                context, text, content='', columnsize=0, tokenize='porter unicode61')""",
            "CREATE VIRTUAL TABLE items_words USING fts5vocab (items_fts, 'instance')",
        ),
    ),
    (
        "quarantine",
        (
            """CREATE TABLE quarantine (
                scope_id INTEGER NOT NULL REFERENCES scopes(id), turn_id TEXT NOT NULL, rules TEXT NOT NULL,
                caught_at TEXT NOT NULL, released_at TEXT, PRIMARY KEY (scope_id, turn_id))""",
        ),
    ),
)

Writing = Callable[[], AbstractContextManager[sqlite3.Connection]]


def migrate(writing: Writing, path: str, steps: tuple[tuple[str, tuple[str, ...]], ...] = MIGRATIONS) -> int:
    """Bring the file to this version, one transaction a step; return the number of steps made."""
    made = 0
    while True:
        with writing() as connection:
            version = _version(connection, path)
            if version > len(steps):
                raise BankVersionError(
                    f"{path} has schema version {version}; this memr1-plugin knows up to {len(steps)}. "
                    "It was written by a newer version: upgrade memr1-plugin, or open another file."
                )
            if version == len(steps):
                return made
            _step(connection, version + 1, *steps[version])
            made += 1


def _version(connection: sqlite3.Connection, path: str) -> int:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "migrations" in tables and connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID:
        return int(connection.execute("SELECT coalesce(max(version), 0) FROM migrations").fetchone()[0])
    if tables:
        raise BankError(
            f"{path} is a SQLite database of another program (tables {sorted(tables)[:3]}); expected a memory bank "
            "or a new file. Choose another path."
        )
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("CREATE TABLE migrations (version INTEGER PRIMARY KEY, name TEXT, at TEXT)")
    return 0


def _step(connection: sqlite3.Connection, version: int, name: str, statements: tuple[str, ...]) -> None:
    for statement in statements:
        connection.execute(statement)
    now = datetime.now(timezone.utc).isoformat()
    connection.execute("INSERT INTO migrations (version, name, at) VALUES (?, ?, ?)", (version, name, now))
