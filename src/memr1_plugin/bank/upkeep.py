"""Keeping a bank sound: whose vectors it holds, its health, its size, embedding it anew.

Not here: the schema (`migrations`) and erasing (`forgetting`). `check` is what `memr1 doctor` prints.
"""

from __future__ import annotations

import sqlite3
from datetime import datetime
from pathlib import Path

from memr1_plugin.bank import text_index
from memr1_plugin.bank.embedded import Embedded
from memr1_plugin.bank.rows import ITEM, from_image, item_of
from memr1_plugin.bank.store import Store
from memr1_plugin.embedding import Embedder
from memr1_plugin.errors import EmbedderMismatchError
from memr1_plugin.types import Scope


def meta(connection: sqlite3.Connection) -> dict[str, str]:
    """Return the bank's own facts: its id, its embedder and dimension, its version of words."""
    return dict(connection.execute("SELECT key, value FROM meta").fetchall())


def introduce(connection: sqlite3.Connection, embedder: Embedder, bank_id: str) -> bool:
    """Write a new bank's facts; return whether the bank is this embedder's."""
    facts = {"bank": bank_id, "embedder": embedder.id, "dim": str(embedder.dim), "words": text_index.WORDS_VERSION}
    if not meta(connection):
        _set(connection, facts)
    found = meta(connection)
    return (found["embedder"], found["dim"]) == (embedder.id, str(embedder.dim))


def _set(connection: sqlite3.Connection, facts: dict[str, str]) -> None:
    connection.executemany("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", facts.items())


def check_embedder(connection: sqlite3.Connection, embedder: Embedder, path: str) -> None:
    """Raise `EmbedderMismatchError` if the bank's vectors are another embedder's."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'embedder'").fetchone()
    if row[0] != embedder.id:
        raise _mismatch(connection, embedder, path)


def _mismatch(connection: sqlite3.Connection, embedder: Embedder, path: str) -> EmbedderMismatchError:
    found = meta(connection)
    return EmbedderMismatchError(
        f"{path} was embedded by {found['embedder']} (dim {found['dim']}); the embedder given is {embedder.id} "
        f"(dim {embedder.dim}). Open it with {found['embedder']}, or embed it anew: `memr1 reembed`, Bank.reembed."
    )


def refresh_words(connection: sqlite3.Connection) -> bool:
    """Build the full text anew if it was built with other stop words; return whether it was."""
    if meta(connection)["words"] == text_index.WORDS_VERSION:
        return False
    rebuild_words(connection)
    _set(connection, {"words": text_index.WORDS_VERSION})
    return True


def rebuild_words(connection: sqlite3.Connection) -> None:
    """Build the full text of all items from their rows (inside a write transaction)."""
    connection.execute("INSERT INTO items_fts (items_fts) VALUES ('delete-all')")
    rows = connection.execute("SELECT id, scope_id, speaker, text, context, deleted FROM items").fetchall()
    for item_id, scope_id, speaker, text, context, deleted in rows:
        before, own = text_index.words(context), text_index.words(f"{speaker}: {text}")
        connection.execute("UPDATE items SET n_text = ?, n_context = ? WHERE id = ?", (len(own), len(before), item_id))
        if not deleted:
            text_index.add(connection, scope_id, item_id, before, own)
    connection.execute("UPDATE scopes SET version = version + 1, epoch = epoch + 1")


def size(path: str) -> int:
    """Return the bytes of the file, its write-ahead log and its index files."""
    files = [Path(path), Path(f"{path}-wal"), *Path(f"{path}.index").glob("*")]
    return sum(file.stat().st_size for file in files if file.is_file())


def expired(connection: sqlite3.Connection, at: datetime) -> list[Scope]:
    """Return the scopes that hold items past their time."""
    rows = connection.execute(
        "SELECT DISTINCT s.user, s.agent, s.session FROM items i JOIN scopes s ON s.id = i.scope_id "
        "WHERE i.deleted = 0 AND i.expires <= ?",
        (at.timestamp(),),
    )
    return [Scope(*row) for row in rows]


def check(connection: sqlite3.Connection, embedder: Embedder) -> list[str]:
    """Look for damage: SQLite's own, vectors, words, and items that are not what their history says."""
    found = [f"SQLite: {row[0]}" for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
    found += [f"foreign key: {tuple(row)}" for row in connection.execute("PRAGMA foreign_key_check")]
    size = 4 * embedder.dim
    rows = connection.execute(
        "SELECT i.id FROM items i LEFT JOIN item_vectors v ON v.item_id = i.id WHERE v.text IS NULL "
        "OR length(v.text) != ? OR length(coalesce(v.context, v.text)) != ?",
        (size, size),
    )
    found += [f"item {item_id} has no vectors of {embedder.dim} numbers: run `memr1 reembed`" for (item_id,) in rows]
    rows = connection.execute("SELECT i.id FROM items i JOIN scopes s ON s.id = i.scope_id WHERE i.version > s.version")
    found += [f"item {item_id} is newer than its scope's version" for (item_id,) in rows]
    return found + _check_words(connection) + _check_history(connection)


def _check_words(connection: sqlite3.Connection) -> list[str]:
    indexed = dict(connection.execute("SELECT doc, count(*) FROM items_words GROUP BY doc").fetchall())
    rows = connection.execute("SELECT id, n_text + n_context FROM items WHERE deleted = 0 AND n_text + n_context > 0")
    expected = dict(rows.fetchall())
    wrong = sorted(item_id for item_id in {*indexed, *expected} if indexed.get(item_id) != expected.get(item_id))
    return [
        f"item {item_id} has {indexed.get(item_id, 0)} words indexed, not {expected.get(item_id, 0)}"
        for item_id in wrong
    ]


def _check_history(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute(
        f"SELECT {', '.join('i.' + name for name in ITEM.split(', '))}, c.after FROM items i JOIN changes c ON c.id = "
        "(SELECT max(id) FROM changes WHERE scope_id = i.scope_id AND item_id = i.id)"
    )
    scope = Scope()
    wrong = [row[0] for row in rows if item_of(row, scope) != from_image(row[-1], scope)]
    return [f"item {item_id} is not what its last change says" for item_id in wrong]


def reembed(store: Store, embedder: Embedder, batch: int) -> int:
    """Write every item's vectors anew, in one transaction at the end; what changes meanwhile is embedded in it."""
    embedded, done = Embedded(embedder), 0
    with store.reading() as connection:
        newest = connection.execute("SELECT coalesce(max(id), 0) FROM items").fetchone()[0]
    while done < newest:
        with store.reading() as connection:
            rows = connection.execute(
                f"SELECT {ITEM} FROM items WHERE id > ? ORDER BY id LIMIT ?", (done, batch)
            ).fetchall()
        if not rows:
            break
        embedded.add(text for row in rows for text in Embedded.texts_of(item_of(row, Scope())))
        done = rows[-1][0]
    with store.writing() as connection:
        items = [item_of(row, Scope()) for row in connection.execute(f"SELECT {ITEM} FROM items")]
        embedded.add(text for item in items for text in Embedded.texts_of(item))
        for item in items:
            own, context = embedded.of(item)
            blobs = (own.tobytes(), None if context is None else context.tobytes())
            connection.execute(
                "INSERT OR REPLACE INTO item_vectors (item_id, text, context) VALUES (?, ?, ?)", (item.id, *blobs)
            )
        _set(connection, {"embedder": embedder.id, "dim": str(embedder.dim)})
        connection.execute("UPDATE scopes SET version = version + 1, epoch = epoch + 1")
    return len(items)
