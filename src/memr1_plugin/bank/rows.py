"""Rows to nouns and back: how a MemoryItem, a Turn and a Change lie in their tables.

Not here: SQL that changes anything. Times are ISO strings (they keep their zone); an item's image in a change is
the JSON of the item without its scope, which the row itself names.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from memr1_plugin.errors import InputError
from memr1_plugin.types import Change, MemoryItem, OperationKind, Scope, Turn

Row = Sequence[Any]
MAX_JSON_CHARS = 32_000_000
"""Longest JSON of one row: a message with a picture has some megabytes."""

ITEM = "id, text, speaker, context, at, created_at, updated_at, turn_ids, metadata, expires_at, deleted"
TURN = "id, text, speaker, at, role, session, metadata"
CHANGE = "id, kind, item_id, before, after, at, turn_id, source, undone"

LIVE = "deleted = 0 AND (expires IS NULL OR expires > :now)"
"""What reads see: not a tombstone, not past its time."""


def item_of(row: Row, scope: Scope) -> MemoryItem:
    """Build an item from a row of `ITEM`."""
    return MemoryItem(
        id=row[0],
        scope=scope,
        text=row[1],
        speaker=row[2],
        context=row[3],
        at=datetime.fromisoformat(row[4]),
        created_at=datetime.fromisoformat(row[5]),
        updated_at=datetime.fromisoformat(row[6]),
        turn_ids=tuple(json.loads(row[7])),
        metadata=json.loads(row[8]),
        expires_at=datetime.fromisoformat(row[9]) if row[9] else None,
        deleted=bool(row[10]),
    )


def turn_of(row: Row, scope: Scope) -> Turn:
    """Build a turn from a row of `TURN`."""
    return Turn(
        id=row[0],
        text=row[1],
        speaker=row[2],
        scope=scope,
        at=datetime.fromisoformat(row[3]),
        role=row[4],
        session=row[5],
        metadata=json.loads(row[6]),
    )


def change_of(row: Row, scope: Scope) -> Change:
    """Build a change from a row of `CHANGE`."""
    return Change(
        id=row[0],
        kind=OperationKind(row[1]),
        scope=scope,
        item_id=row[2],
        before=from_image(row[3], scope),
        after=from_image(row[4], scope),
        at=datetime.fromisoformat(row[5]),
        turn_id=row[6],
        source=row[7],
        undone=bool(row[8]),
    )


def image(item: MemoryItem | None) -> str | None:
    """Return what a change keeps of an item: its JSON without scope and score."""
    if item is None:
        return None
    data = item.to_json()
    del data["scope"], data["score"]
    return dump(data, "the item")


def from_image(text: str | None, scope: Scope) -> MemoryItem | None:
    """Read `image` back."""
    if text is None:
        return None
    return MemoryItem.from_json({**json.loads(text), "scope": scope.to_json()})


def dump(value: Mapping[str, Any] | Sequence[Any], what: str) -> str:
    """Return JSON, or raise `InputError` naming `what` cannot be said in it."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{what} is not JSON: {error}. Use strings, numbers, booleans, lists and dicts.") from error
    if len(text) > MAX_JSON_CHARS:
        raise InputError(
            f"{what} has {len(text):,} characters as JSON; at most {MAX_JSON_CHARS:,} fit. Keep files elsewhere, and "
            "their address here."
        )
    return text


def scope_row(connection: sqlite3.Connection, scope: Scope) -> int | None:
    """Return the scope's row id, or None if the bank has never heard of it."""
    row = connection.execute("SELECT id FROM scopes WHERE key = ?", (scope.key,)).fetchone()
    return None if row is None else int(row[0])


def scope_row_or_new(connection: sqlite3.Connection, scope: Scope) -> int:
    """Return the scope's row id, making the row if need be (inside a write transaction)."""
    found = scope_row(connection, scope)
    if found is not None:
        return found
    cursor = connection.execute(
        "INSERT INTO scopes (key, user, agent, session) VALUES (?, ?, ?, ?)",
        (scope.key, scope.user, scope.agent, scope.session),
    )
    return int(cursor.lastrowid or 0)


def next_version(connection: sqlite3.Connection, scope_id: int) -> int:
    """Count one more write to the scope and return its number (inside a write transaction)."""
    connection.execute("UPDATE scopes SET version = version + 1 WHERE id = ?", (scope_id,))
    return int(connection.execute("SELECT version FROM scopes WHERE id = ?", (scope_id,)).fetchone()[0])


def marks(values: Sequence[Any]) -> str:
    """Return "?, ?, ?" for an IN list of bound values."""
    return ", ".join("?" * len(values))
