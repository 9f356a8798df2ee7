"""Operations to rows: what one decision of the Memory Manager writes, and how a change is taken back.

Everything here runs inside one write transaction of the bank; vectors come in ready, and the index follows after
the commit. Nothing is destroyed: an UPDATE leaves its before-image in the change, a DELETE is a tombstone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

from memr1_plugin.bank import text_index
from memr1_plugin.bank.embedded import Embedded, Vectorised
from memr1_plugin.bank.rows import CHANGE, ITEM, LIVE, change_of, dump, image, item_of
from memr1_plugin.embedding import Vectors
from memr1_plugin.errors import InputError, UnknownItemError
from memr1_plugin.operations import Rejection
from memr1_plugin.types import Change, MemoryItem, Operation, OperationKind, Scope, Turn, aware, clean_text, storable

MAX_LINE_CHARS = 500
"""How much is kept of a line that was refused: enough to see what the model meant."""


class Lost(Exception):  # noqa: N818 - not an error: the bank rolls back and returns no changes
    """All turns of these operations were managed by somebody else first."""


class Outdated(Exception):  # noqa: N818 - not an error: the memory decides again
    """The scope was written to since these operations were decided on."""


@dataclass(frozen=True)
class Writing:
    """Where a write happens: the transaction, the scope, and the numbers it runs under."""

    connection: sqlite3.Connection
    scope: Scope
    scope_id: int
    version: int
    now: datetime


def find(writing: Writing, item_id: int | None) -> MemoryItem | None:
    """Return a live item of the scope, or None."""
    row = writing.connection.execute(
        f"SELECT {ITEM} FROM items WHERE scope_id = :scope AND id = :id AND {LIVE}",
        {"scope": writing.scope_id, "id": item_id, "now": writing.now.timestamp()},
    ).fetchone()
    return None if row is None else item_of(row, writing.scope)


def insert(writing: Writing, item: MemoryItem, vectors: Vectorised) -> MemoryItem:
    """Write a new item with its vectors and words; an id of 0 stands for the next free one."""
    context, text = _words(item)
    cursor = writing.connection.execute(
        "INSERT INTO items (id, scope_id, text, speaker, context, at, created_at, updated_at, turn_ids, metadata, "
        "expires_at, expires, deleted, n_text, n_context, version) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (item.id or None, writing.scope_id, *_columns(item), len(text), len(context), writing.version),
    )
    item = replace(item, id=int(cursor.lastrowid or 0))
    writing.connection.execute(
        "INSERT INTO item_vectors (item_id, text, context) VALUES (?, ?, ?)", (item.id, *map(_blob, vectors))
    )
    if not item.deleted:
        text_index.add(writing.connection, writing.scope_id, item.id, context, text)
    return item


def overwrite(writing: Writing, old: MemoryItem, new: MemoryItem, vectors: Vectorised | None) -> None:
    """Make the row of `old` say `new`; `vectors` are needed where its texts differ."""
    old_words, new_words = _words(old), _words(new)
    if not old.deleted:
        text_index.remove(writing.connection, writing.scope_id, old.id, *old_words)
    if not new.deleted:
        text_index.add(writing.connection, writing.scope_id, new.id, *new_words)
    writing.connection.execute(
        "UPDATE items SET text = ?, speaker = ?, context = ?, at = ?, created_at = ?, updated_at = ?, turn_ids = ?, "
        "metadata = ?, expires_at = ?, expires = ?, deleted = ?, n_text = ?, n_context = ?, version = ? WHERE id = ?",
        (*_columns(new), len(new_words[1]), len(new_words[0]), writing.version, new.id),
    )
    if vectors is not None:
        writing.connection.execute(
            "UPDATE item_vectors SET text = ?, context = ? WHERE item_id = ?", (*map(_blob, vectors), new.id)
        )


def _columns(item: MemoryItem) -> tuple[object, ...]:
    expires = item.expires_at
    return (
        item.text,
        item.speaker,
        item.context,
        item.at.isoformat(),
        item.created_at.isoformat(),
        item.updated_at.isoformat(),
        dump(item.turn_ids, "the turn ids"),
        dump(item.metadata, "the item's metadata"),
        expires.isoformat() if expires else None,
        expires.timestamp() if expires else None,
        item.deleted,
    )


def _words(item: MemoryItem) -> tuple[list[str], list[str]]:
    return text_index.words(item.context), text_index.words(f"{item.speaker}: {item.text}")


def _blob(vector: Vectors | None) -> bytes | None:
    return None if vector is None else np.ascontiguousarray(vector, np.float32).tobytes()


def log_change(
    writing: Writing,
    kind: OperationKind,
    before: MemoryItem | None,
    after: MemoryItem | None,
    *,
    source: str,
    turn_id: str = "",
    said: datetime | None = None,
    undoes: int | None = None,
) -> Change:
    """Write the change row, with the images that undo and "as of" need."""
    item = after or before
    cursor = writing.connection.execute(
        "INSERT INTO changes (scope_id, item_id, kind, before, after, at, said, turn_id, source, undoes) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            writing.scope_id,
            item.id if item else None,
            kind.value,
            image(before),
            image(after),
            writing.now.isoformat(),
            (said or writing.now).timestamp(),
            turn_id,
            source,
            undoes,
        ),
    )
    change_id = int(cursor.lastrowid or 0)
    return Change(
        change_id, kind, writing.scope, item.id if item else None, before, after, writing.now, turn_id, source
    )


def new_item(
    scope: Scope, operation: Operation, turn_id: str, expires_at: datetime | None, now: datetime
) -> MemoryItem:
    """Return the item that an ADD makes, without an id yet."""
    fact = operation.fact
    return MemoryItem(
        id=0,
        scope=scope,
        text=operation.new_text,
        speaker=fact.speaker if fact else "user",
        at=aware(fact.at) if fact else now,
        created_at=now,
        updated_at=now,
        turn_ids=(turn_id,) if turn_id else (),
        context=fact.context if fact else "",
        expires_at=expires_at,
        metadata=dict(fact.metadata) if fact else {},
    )


def updated_item(item: MemoryItem, operation: Operation, turn_id: str, now: datetime) -> MemoryItem:
    """Return what an UPDATE makes of an item; without a fact (a user's correction) speaker and date stay."""
    fact = operation.fact
    item = replace(item, text=operation.new_text, updated_at=now)
    if turn_id and turn_id not in item.turn_ids:
        item = replace(item, turn_ids=(*item.turn_ids, turn_id))
    if fact is None:
        return item
    metadata = {**item.metadata, **fact.metadata}
    return replace(item, speaker=fact.speaker, at=aware(fact.at), context=fact.context, metadata=metadata)


def reject(writing: Writing, rejections: Sequence[Rejection], turn_id: str = "") -> None:
    """Count completions' lines that changed nothing, with their reasons."""
    writing.connection.executemany(
        "INSERT INTO rejections (scope_id, turn_id, reason, line, at) VALUES (?, ?, ?, ?, ?)",
        [
            (writing.scope_id, r.fact.turn_id if r.fact else turn_id, r.reason, _kept(r.line), writing.now.isoformat())
            for r in rejections
        ],
    )


def _kept(line: str) -> str:
    return storable(line if len(line) <= MAX_LINE_CHARS else f"{line[: MAX_LINE_CHARS - 3]}...")


def check(scope: Scope, operations: Sequence[Operation], turns: Sequence[Turn], sources: Sequence[str] | None) -> None:
    """Refuse what no bank could hold, before anything is embedded or written."""
    if sources is not None and len(sources) != len(operations):
        raise InputError(f"{len(sources)} sources for {len(operations)} operations; expected one each.")
    for turn in turns:
        if turn.scope != scope:
            raise InputError(f"turn {turn.id} is of scope {turn.scope.key}, not {scope.key}. Apply it in its own.")
    for n, operation in enumerate(operations, 1):
        _check_operation(operation, f"operation {n} ({operation.kind.value})")


def _check_operation(operation: Operation, what: str) -> None:
    if operation.kind in (OperationKind.UPDATE, OperationKind.DELETE) and not isinstance(operation.target, int):
        raise InputError(f"{what} has the target {operation.target!r}; expected the id of a memory item.")
    writes = operation.kind in (OperationKind.ADD, OperationKind.UPDATE)
    if writes and not clean_text(operation.new_text, f"the text of {what}").strip():
        raise InputError(f"the text of {what} is empty; expected something to remember. Use DELETE to remove.")
    if operation.fact is not None:
        clean_text(operation.fact.speaker, f"the speaker of {what}", max_chars=200)
        clean_text(operation.fact.context, f"the context of {what}")
        aware(operation.fact.at)


def texts(scope: Scope, operations: Sequence[Operation], now: datetime) -> list[str]:
    """Return the texts that these operations will want vectors of, as far as can be told before the write."""
    found: list[str] = []
    for operation in operations:
        if operation.kind is OperationKind.ADD or (operation.kind is OperationKind.UPDATE and operation.fact):
            found += Embedded.texts_of(new_item(scope, operation, "", None, now))
    return found


def lost(operation: Operation, turns: Sequence[Turn], won: Sequence[Turn]) -> bool:
    """True if the operation belongs to one of `turns` that somebody else managed first."""
    turn_id = operation.fact.turn_id if operation.fact else ""
    return turn_id in {turn.id for turn in turns} - {turn.id for turn in won}


def apply_one(
    writing: Writing, operation: Operation, source: str, turn_id: str, expires_at: datetime | None, embedded: Embedded
) -> Change | None:
    """Write one operation; None if its target is gone, which is counted as a rejection."""
    fact = operation.fact
    turn_id = (fact.turn_id if fact else "") or turn_id
    said = aware(fact.at) if fact else None
    before, after = None, None
    if operation.kind is OperationKind.ADD:
        after = new_item(writing.scope, operation, turn_id, expires_at, writing.now)
        after = insert(writing, after, embedded.of(after))
    elif operation.kind is not OperationKind.NOOP:
        before = find(writing, operation.target)
        if before is None:
            line = f"{operation.kind.value} {operation.target}"
            reject(writing, [Rejection("unknown_id", line, fact)], turn_id)
            return None
        after = _changed(writing, before, operation, turn_id, embedded)
    return log_change(writing, operation.kind, before, after, source=source, turn_id=turn_id, said=said)


def _changed(
    writing: Writing, before: MemoryItem, operation: Operation, turn_id: str, embedded: Embedded
) -> MemoryItem:
    if operation.kind is OperationKind.DELETE:
        after = replace(before, deleted=True, updated_at=writing.now)
        overwrite(writing, before, after, None)
    else:
        after = updated_item(before, operation, turn_id, writing.now)
        overwrite(writing, before, after, embedded.of(after))
    return after


def amend(writing: Writing, item_id: int, edit: Callable[[MemoryItem], MemoryItem], source: str) -> Change:
    """Change something of an item that is in none of its texts."""
    before = _row(writing, item_id)
    if before is None or before.deleted:
        raise UnknownItemError(f"the scope {writing.scope.key} holds no memory item {item_id}, or only a tombstone.")
    after = replace(edit(before), updated_at=writing.now)
    overwrite(writing, before, after, None)
    return log_change(writing, OperationKind.UPDATE, before, after, source=source)


def expire(writing: Writing, at: datetime) -> int:
    """Make tombstones of the scope's items past their time."""
    rows = writing.connection.execute(
        f"SELECT {ITEM} FROM items WHERE scope_id = ? AND deleted = 0 AND expires <= ?",
        (writing.scope_id, at.timestamp()),
    ).fetchall()
    for row in rows:
        before = item_of(row, writing.scope)
        after = replace(before, deleted=True, updated_at=writing.now)
        overwrite(writing, before, after, None)
        log_change(writing, OperationKind.DELETE, before, after, source="expiry", said=before.expires_at)
    return len(rows)


def undo(writing: Writing, change_id: int, embedded: Embedded) -> Change:
    """Put an item back to what it was before a change, if no later change of it stands."""
    change = _undoable(writing, change_id)
    current = _row(writing, change.item_id)
    assert current is not None and change.after is not None  # items and their changes are erased together
    restored = change.before or replace(change.after, deleted=True)
    vectors = None if Embedded.texts_of(restored) == Embedded.texts_of(current) else embedded.of(restored)
    overwrite(writing, current, restored, vectors)
    _mark_undone(writing, change_id)
    kind = OperationKind.UPDATE
    if restored.deleted != current.deleted:
        kind = OperationKind.DELETE if restored.deleted else OperationKind.ADD
    return log_change(writing, kind, current, restored, source="undo", undoes=change_id)


def _undoable(writing: Writing, change_id: int) -> Change:
    row = writing.connection.execute(
        f"SELECT {CHANGE}, undoes FROM changes WHERE scope_id = ? AND id = ?", (writing.scope_id, change_id)
    ).fetchone()
    if row is None:
        raise UnknownItemError(f"the scope {writing.scope.key} has no change {change_id}. `history` lists its changes.")
    change, undoes = change_of(row, writing.scope), row[-1]
    if change.item_id is None:
        raise InputError(f"change {change_id} is a NOOP: it changed nothing, so there is nothing to undo.")
    if change.undone:
        raise InputError(f"change {change_id} of memory item {change.item_id} was undone already.")
    # A change and its undoing cancel out; before an undoing can be undone, everything after it must go.
    stands = "undone = 0 AND undoes IS NULL" if undoes is None else "1"
    later = writing.connection.execute(
        f"SELECT id, kind, at FROM changes WHERE scope_id = ? AND item_id = ? AND id > ? AND {stands} "
        "ORDER BY id DESC LIMIT 1",
        (writing.scope_id, change.item_id, change_id),
    ).fetchone()
    if later is not None:
        raise InputError(
            f"change {change_id} of memory item {change.item_id} cannot be undone: the later change {later[0]} "
            f"({later[1]}, {later[2]}) stands. Undo that one first."
        )
    return change


def _mark_undone(writing: Writing, change_id: int) -> None:
    """Mark a change undone; what it had itself undone stands again, and so on down the chain."""
    undone = True
    link: int | None = change_id
    while link is not None:
        writing.connection.execute("UPDATE changes SET undone = ? WHERE id = ?", (undone, link))
        row = writing.connection.execute("SELECT undoes FROM changes WHERE id = ?", (link,)).fetchone()
        link, undone = row[0], not undone


def _row(writing: Writing, item_id: int | None) -> MemoryItem | None:
    row = writing.connection.execute(
        f"SELECT {ITEM} FROM items WHERE scope_id = ? AND id = ?", (writing.scope_id, item_id)
    ).fetchone()
    return None if row is None else item_of(row, writing.scope)
