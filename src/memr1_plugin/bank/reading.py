"""What a bank is asked: items now or as of a date, their history, counts.

Every function reads inside one read transaction that the bank opens, and inside one scope unless it says so.
Not here: search (`index`, `text_index`) and everything that writes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from memr1_plugin.bank.quarantine import HELD
from memr1_plugin.bank.rows import CHANGE, ITEM, LIVE, change_of, from_image, item_of, marks, scope_row
from memr1_plugin.errors import UnknownItemError
from memr1_plugin.types import Change, MemoryItem, Scope


@dataclass(frozen=True)
class BankStats:
    """What a bank holds, in one scope or in all."""

    scopes: int
    items: int
    """Visible now."""
    deleted: int
    """Tombstones, and items past their time."""
    turns: int
    pending: int
    """Turns recorded and not yet managed."""
    changes: Mapping[str, int]
    """By kind: ADD, UPDATE, DELETE, NOOP."""
    rejections: Mapping[str, int]
    """Lines of completions that changed nothing, by reason."""
    bytes: int
    """The file with its write-ahead log and index files (of the whole bank)."""
    quarantined: int = 0
    """Turns that nobody is shown until they are released."""


def get(connection: sqlite3.Connection, scope: Scope, item_id: int, now: float) -> MemoryItem:
    """Return a visible item."""
    row = connection.execute(
        f"SELECT {ITEM}, {LIVE} FROM items WHERE scope_id = :scope AND id = :id",
        {"scope": scope_row(connection, scope), "id": item_id, "now": now},
    ).fetchone()
    if row is None:
        raise UnknownItemError(f"the scope {scope.key} holds no memory item {item_id}. `items` lists what it holds.")
    if not row[-1]:
        how = "was deleted" if row[10] else f"expired at {row[9]}"
        raise UnknownItemError(f"memory item {item_id} {how}. `history` shows its changes; `undo` can bring it back.")
    return item_of(row, scope)


def items(
    connection: sqlite3.Connection,
    scope: Scope,
    now: float,
    *,
    ids: Sequence[int] | None,
    include_deleted: bool,
    limit: int | None,
    offset: int,
) -> list[MemoryItem]:
    """Return items in the order of their ids, or those of `ids` in the order of `ids`."""
    scope_id = scope_row(connection, scope)
    seen = "1" if include_deleted else LIVE
    bound = {"scope": scope_id, "now": now, "limit": -1 if limit is None else limit, "offset": offset}
    if ids is None:
        rows = connection.execute(
            f"SELECT {ITEM} FROM items WHERE scope_id = :scope AND {seen} ORDER BY id LIMIT :limit OFFSET :offset",
            bound,
        )
        return [item_of(row, scope) for row in rows]
    wanted = list(dict.fromkeys(ids))
    # One bound value, whatever the number of ids: SQLite limits how many values a statement may bind.
    rows = connection.execute(
        f"SELECT {ITEM} FROM items WHERE scope_id = :scope AND {seen} AND id IN (SELECT value FROM json_each(:ids))",
        {**bound, "ids": json.dumps(wanted)},
    )
    found = {row[0]: item_of(row, scope) for row in rows}
    ordered = [found[item_id] for item_id in wanted if item_id in found]
    return ordered[offset : None if limit is None else offset + limit]


def items_as_of(
    connection: sqlite3.Connection,
    scope: Scope,
    at: datetime,
    *,
    ids: Sequence[int] | None,
    include_deleted: bool,
    limit: int | None,
    offset: int,
) -> list[MemoryItem]:
    """Return the items as they stood after everything said up to `at`, from the images in their changes."""
    only = "" if ids is None else f"AND item_id IN ({marks(ids)})"
    rows = connection.execute(
        "SELECT after FROM changes WHERE id IN (SELECT max(id) FROM changes WHERE scope_id = ? AND item_id IS NOT NULL "
        f"AND said <= ? {only} GROUP BY item_id) ORDER BY item_id",
        (scope_row(connection, scope), at.timestamp(), *(ids or ())),
    )
    images = (from_image(row[0], scope) for row in rows)
    found = [item for item in images if item is not None and (include_deleted or _stood(item, at))]
    if ids is not None:
        place = {item_id: n for n, item_id in enumerate(ids)}
        found.sort(key=lambda item: place[item.id])
    return found[offset : None if limit is None else offset + limit]


def _stood(item: MemoryItem, at: datetime) -> bool:
    return not item.deleted and (item.expires_at is None or item.expires_at > at)


def history(connection: sqlite3.Connection, scope: Scope, item_id: int | None, limit: int | None) -> list[Change]:
    """Return the newest `limit` changes of an item, or of the scope, oldest first."""
    rows = connection.execute(
        f"SELECT {CHANGE} FROM changes WHERE scope_id = ? AND {'1' if item_id is None else 'item_id = ?'} "
        "ORDER BY id DESC LIMIT ?",
        (scope_row(connection, scope), *([] if item_id is None else [item_id]), -1 if limit is None else limit),
    ).fetchall()
    return [change_of(row, scope) for row in reversed(rows)]


def version(connection: sqlite3.Connection, scope: Scope) -> int:
    """Return the number of writes to a scope; 0 if the bank has never heard of it."""
    row = connection.execute("SELECT version FROM scopes WHERE key = ?", (scope.key,)).fetchone()
    return int(row[0]) if row else 0


def scopes(connection: sqlite3.Connection) -> list[Scope]:
    """Return all scopes, in the order of their first turn or item."""
    return [Scope(*row) for row in connection.execute("SELECT user, agent, session FROM scopes ORDER BY id")]


def stats(connection: sqlite3.Connection, scope: Scope | None, now: float, size: int) -> BankStats:
    """Count rows, of one scope or of all."""
    scope_id = None if scope is None else scope_row(connection, scope)
    if scope is not None and scope_id is None:
        return BankStats(0, 0, 0, 0, 0, {}, {}, size)
    where, bound = ("1", {}) if scope_id is None else ("scope_id = :scope", {"scope": scope_id})

    def count(table: str, condition: str = "1") -> int:
        query = f"SELECT count(*) FROM {table} WHERE {where} AND {condition}"
        return int(connection.execute(query, {**bound, "now": now}).fetchone()[0])

    def by(table: str, column: str) -> dict[str, int]:
        query = f"SELECT {column}, count(*) FROM {table} WHERE {where} GROUP BY {column} ORDER BY {column}"
        return dict(connection.execute(query, bound).fetchall())

    live, turns = count("items", LIVE), count("turns")
    return BankStats(
        scopes=1 if scope_id is not None else len(scopes(connection)),
        items=live,
        deleted=count("items") - live,
        turns=turns,
        pending=count("turns", "managed = 0"),
        changes=by("changes", "kind"),
        rejections=by("rejections", "reason"),
        bytes=size,
        quarantined=count("turns", HELD),
    )
