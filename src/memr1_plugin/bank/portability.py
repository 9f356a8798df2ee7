"""Moving memories: rows out, rows in, and a private copy of one scope.

A row is a dict that JSON takes, with its "type": bank, turn, item, change or feedback. What comes in is checked
whole before anything is written, and is written in one transaction: an import is all or nothing, and can be repeated.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from memr1_plugin.bank import quarantine, text_index
from memr1_plugin.bank.applying import Writing, insert, log_change
from memr1_plugin.bank.embedded import Embedded
from memr1_plugin.bank.journal import record
from memr1_plugin.bank.row_shapes import SHAPES
from memr1_plugin.bank.rows import (
    CHANGE,
    ITEM,
    LIVE,
    TURN,
    change_of,
    dump,
    image,
    item_of,
    next_version,
    scope_row,
    scope_row_or_new,
    turn_of,
)
from memr1_plugin.errors import DataError, InputError
from memr1_plugin.types import Answer, Change, MemoryItem, OperationKind, Scope, Turn, aware, clean_text

FORMAT = 1
MAX_ROWS = 5_000_000
"""Rows that one import takes."""


def export(connection: sqlite3.Connection, scope: Scope | None) -> Iterator[dict[str, Any]]:
    """Yield all rows of one scope or of all: first what the file is, then turns, items, changes, feedback."""
    yield {"type": "bank", "format": FORMAT}
    for row in connection.execute("SELECT id, user, agent, session FROM scopes ORDER BY id").fetchall():
        one = Scope(*row[1:])
        if scope is None or scope == one:
            yield from _export_scope(connection, row[0], one)


def _export_scope(connection: sqlite3.Connection, scope_id: int, scope: Scope) -> Iterator[dict[str, Any]]:
    def rows(columns: str, table: str, order: str = "id") -> sqlite3.Cursor:
        return connection.execute(f"SELECT {columns} FROM {table} WHERE scope_id = ? ORDER BY {order}", (scope_id,))

    caught = {held.turn.id: {"caught": list(held.rules)} for held in quarantine.held(connection, scope, released=False)}
    for row in rows(f"{TURN}, managed", "turns", "seq"):
        turn = turn_of(row, scope)
        yield {"type": "turn", **turn.to_json(), "managed": bool(row[-1]), **caught.get(turn.id, {})}
    for row in rows(ITEM, "items"):
        yield {"type": "item", **item_of(row, scope).to_json()}
    for row in rows(f"{CHANGE}, said, undoes", "changes"):
        yield {"type": "change", **change_of(row, scope).to_json(), "said": row[-2], "undoes": row[-1]}
    for answer, correct in rows("answer, correct", "feedback"):
        yield {"type": "feedback", "answer": json.loads(answer), "correct": correct}


@dataclass(frozen=True)
class Logged:
    """A change with what `Change` does not say: the time it speaks of, and the change it undoes."""

    change: Change
    said: float
    undoes: int | None


@dataclass
class Bundle:
    """Rows that were read and found good, by scope."""

    turns: list[tuple[Turn, bool, tuple[str, ...]]] = field(default_factory=list)
    """Each with whether it was managed, and what caught it if it was in quarantine."""
    items: list[MemoryItem] = field(default_factory=list)
    changes: list[Logged] = field(default_factory=list)
    feedback: list[tuple[Answer, str]] = field(default_factory=list)

    def parted(self) -> dict[Scope, Bundle]:
        """Return what is for each scope, in one pass: a bank of many users has as many scopes."""
        parts: defaultdict[Scope, Bundle] = defaultdict(Bundle)
        for turn in self.turns:
            parts[turn[0].scope].turns.append(turn)
        for item in self.items:
            parts[item.scope].items.append(item)
        for logged in self.changes:
            parts[logged.change.scope].changes.append(logged)
        for given in self.feedback:
            parts[given[0].scope].feedback.append(given)
        return dict(parts)


def read(rows: Iterable[Mapping[str, Any]], scope: Scope | None) -> Bundle:
    """Check every row; a bad one is a `DataError` that names its number (1 is the first)."""
    bundle = Bundle()
    n = 0
    try:
        for n, row in enumerate(rows, 1):
            if n > MAX_ROWS:
                raise DataError(
                    f"more than {MAX_ROWS:,} rows. Import in parts (one scope a file). Nothing was imported."
                )
            _read_row(bundle, row, scope)
    except DataError:
        raise
    except RecursionError as error:
        raise DataError(
            f"row {n} or the one after it cannot be imported: it nests too deep. Nothing was imported."
        ) from error
    except (InputError, TypeError, ValueError, KeyError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}" if isinstance(error, (KeyError, AttributeError)) else error
        raise DataError(f"row {n} cannot be imported: {what} Nothing was imported.") from error
    return bundle


def _read_row(bundle: Bundle, row: Mapping[str, Any], scope: Scope | None) -> None:
    if not isinstance(row, Mapping):
        raise InputError(f"it is {type(row).__name__}; expected an object.")
    data = dict(row)
    kind = data.pop("type", None)
    if isinstance(kind, str) and kind in SHAPES:
        SHAPES[kind](data, kind)
    if kind == "bank":
        _check_format(data)
    elif kind == "turn":
        managed = bool(data.pop("managed", False))
        caught = tuple(clean_text(rule, "a rule", 200) for rule in data.pop("caught", ()))
        turn = Turn.from_json(data)
        dump(turn.metadata, "the turn's metadata")
        bundle.turns.append((replace(turn, scope=scope or turn.scope), managed, caught))
    elif kind == "item":
        bundle.items.append(_checked(MemoryItem.from_json(data), scope))
    elif kind == "change":
        bundle.changes.append(_read_change(data, scope))
    elif kind == "feedback":
        answer = Answer.from_json(data["answer"])
        bundle.feedback.append((replace(answer, scope=scope or answer.scope), clean_text(data["correct"], "correct")))
    else:
        raise InputError(f'its "type" is {kind!r}; expected "bank", "turn", "item", "change" or "feedback".')


def _check_format(data: Mapping[str, Any]) -> None:
    if data.get("format") != FORMAT:
        raise InputError(f"its format is {data.get('format')!r}; this version reads {FORMAT}. Upgrade memr1-plugin.")


def _read_change(data: dict[str, Any], scope: Scope | None) -> Logged:
    said, undoes = data.pop("said", None), data.pop("undoes", None)
    change = Change.from_json(data)
    images = [None if item is None else _checked(item, scope) for item in (change.before, change.after)]
    change = replace(
        change, scope=scope or change.scope, before=images[0], after=images[1], kind=OperationKind(change.kind)
    )
    if (change.item_id is None) != (change.kind is OperationKind.NOOP):
        raise InputError("a change needs an item_id unless it is a NOOP.")
    for name, text in (("turn_id", change.turn_id), ("source", change.source)):
        clean_text(text, f"the change's {name}", max_chars=200)
    return Logged(change, float(change.at.timestamp() if said is None else said), undoes)


def _checked(item: MemoryItem, scope: Scope | None) -> MemoryItem:
    if not clean_text(item.text, "the item's text").strip():
        raise InputError("the item's text is empty; expected something to remember.")
    clean_text(item.speaker, "the item's speaker", max_chars=200)
    clean_text(item.context, "the item's context")
    for turn_id in item.turn_ids:
        clean_text(turn_id, "the item's turn id", max_chars=200)
    dump(item.metadata, "the item's metadata")
    return replace(
        item,
        scope=scope or item.scope,
        at=aware(item.at),
        created_at=aware(item.created_at),
        updated_at=aware(item.updated_at),
        expires_at=None if item.expires_at is None else aware(item.expires_at),
        deleted=bool(item.deleted),
        score=None,
    )


def write(connection: sqlite3.Connection, bundle: Bundle, embedded: Embedded) -> int:
    """Write what the bank does not have yet (inside one write transaction); return how many rows were new."""
    turns = [turn for turn, _, _ in bundle.turns]
    managed, caught = [done for _, done, _ in bundle.turns], [rules for _, _, rules in bundle.turns]
    n = sum(record(connection, turns, managed=managed, caught=caught))
    now = aware(None)
    for scope, part in bundle.parted().items():
        scope_id = scope_row_or_new(connection, scope)
        n += _write_scope(Writing(connection, scope, scope_id, next_version(connection, scope_id), now), part, embedded)
    return n


def _write_scope(writing: Writing, bundle: Bundle, embedded: Embedded) -> int:
    first = {e.change.item_id: e.change.after for e in reversed(bundle.changes) if e.change.item_id is not None}
    known = _origins(writing)
    new_ids: dict[int, int] = {}
    same_ids: dict[int, int] = {}
    for item in sorted(bundle.items, key=lambda item: item.id):
        origin = _origin(first.get(item.id) or item)
        if origin in known:
            same_ids[item.id] = known[origin]
            continue
        made = insert(writing, replace(item, id=_free_id(writing, item.id)), embedded.of(item))
        new_ids[item.id] = made.id
    n = len(new_ids) + _write_changes(writing, bundle.changes, new_ids)
    _log_unlogged(writing, list(new_ids.values()))
    return n + _write_feedback(writing, bundle, {**same_ids, **new_ids})


def _origin(item: MemoryItem) -> tuple[str, str, str]:
    """What makes an item the same one in two banks: when it was made there, from which words."""
    return item.created_at.astimezone(timezone.utc).isoformat(), item.speaker, item.text


def _origins(writing: Writing) -> dict[tuple[str, str, str], int]:
    rows = writing.connection.execute(
        "SELECT i.id, coalesce((SELECT c.after FROM changes c WHERE c.scope_id = i.scope_id AND c.item_id = i.id "
        "ORDER BY c.id LIMIT 1), json_object('created_at', i.created_at, 'speaker', i.speaker, 'text', i.text)) "
        "FROM items i WHERE i.scope_id = ?",
        (writing.scope_id,),
    )
    origins: dict[tuple[str, str, str], int] = {}
    for item_id, text in rows:
        data = json.loads(text)
        created = datetime.fromisoformat(data["created_at"]).astimezone(timezone.utc).isoformat()
        origins[created, data["speaker"], data["text"]] = item_id
    return origins


def _free_id(writing: Writing, wanted: int) -> int:
    """Keep an id that this bank never gave away; 0 (the next free one) otherwise. Ids are never reused."""
    row = writing.connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'items'").fetchone()
    return wanted if row is None or wanted > row[0] else 0


def _write_changes(writing: Writing, logged: list[Logged], ids: dict[int, int]) -> int:
    """Write the history of new items, and NOOPs that are not here yet, under new change ids."""
    noops = set(
        writing.connection.execute(
            "SELECT at, turn_id, source FROM changes WHERE scope_id = ? AND item_id IS NULL", (writing.scope_id,)
        ).fetchall()
    )
    change_ids: dict[int, int] = {}
    for entry in logged:
        change = entry.change
        noop = (change.at.isoformat(), change.turn_id, change.source)
        if (change.item_id not in ids) if change.item_id is not None else (noop in noops):
            continue
        cursor = writing.connection.execute(
            "INSERT INTO changes (scope_id, item_id, kind, before, after, at, said, turn_id, source, undone, undoes) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                writing.scope_id,
                None if change.item_id is None else ids[change.item_id],
                change.kind.value,
                _moved(change.before, ids),
                _moved(change.after, ids),
                change.at.isoformat(),
                entry.said,
                change.turn_id,
                change.source,
                change.undone,
                None if entry.undoes is None else change_ids.get(entry.undoes),
            ),
        )
        change_ids[change.id] = int(cursor.lastrowid or 0)
    return len(change_ids)


def _moved(item: MemoryItem | None, ids: dict[int, int]) -> str | None:
    return None if item is None else image(replace(item, id=ids.get(item.id, item.id)))


def _log_unlogged(writing: Writing, item_ids: list[int]) -> None:
    """Give items that came without their (whole) history a change that says what they are now."""
    for item_id in item_ids:
        row = writing.connection.execute(f"SELECT {ITEM} FROM items WHERE id = ?", (item_id,)).fetchone()
        item = item_of(row, writing.scope)
        last = writing.connection.execute(
            f"SELECT {CHANGE} FROM changes WHERE scope_id = ? AND item_id = ? ORDER BY id DESC LIMIT 1",
            (writing.scope_id, item_id),
        ).fetchone()
        before = change_of(last, writing.scope).after if last else None
        if before != item:
            kind = OperationKind.UPDATE if before else OperationKind.ADD
            log_change(writing, kind, before, item, source="import", said=item.at)


def _write_feedback(writing: Writing, bundle: Bundle, ids: dict[int, int]) -> int:
    rows = writing.connection.execute("SELECT answer FROM feedback WHERE scope_id = ?", (writing.scope_id,))
    known = {json.loads(answer)["id"] for (answer,) in rows}
    new = [(a, correct) for a, correct in bundle.feedback if a.id not in known]
    for answer, correct in new:
        items = tuple(replace(item, id=ids.get(item.id, item.id), scope=writing.scope) for item in answer.items)
        moved = replace(answer, items=items, used=tuple(ids.get(i, i) for i in answer.used))
        writing.connection.execute(
            "INSERT INTO feedback (scope_id, answer, correct, at) VALUES (?, ?, ?, ?)",
            (writing.scope_id, dump(moved.to_json(), "the answer"), correct, writing.now.isoformat()),
        )
    return len(new)


_ALL = "id, scope_id, text, speaker, context, at, created_at, updated_at, turn_ids, metadata, expires_at, expires, "
_ALL += "deleted, n_text, n_context, version"


def copy_scope(source: sqlite3.Connection, target: sqlite3.Connection, scope: Scope, now: float) -> None:
    """Copy a scope's visible items with their vectors into an empty bank, under the same ids."""
    scope_id = scope_row(source, scope)
    if scope_id is None:
        return
    target.execute(
        "INSERT INTO scopes (id, key, user, agent, session, version) VALUES (?, ?, ?, ?, ?, 1)",
        (scope_id, scope.key, scope.user, scope.agent, scope.session),
    )
    bound = {"scope": scope_id, "now": now}
    rows = source.execute(f"SELECT {_ALL} FROM items WHERE scope_id = :scope AND {LIVE} ORDER BY id", bound).fetchall()
    target.executemany(f"INSERT INTO items ({_ALL}) VALUES ({', '.join('?' * 16)})", [(*r[:15], 1) for r in rows])
    vectors = source.execute(
        "SELECT v.item_id, v.text, v.context FROM item_vectors v JOIN items i ON i.id = v.item_id "
        f"WHERE i.scope_id = :scope AND {LIVE}",
        bound,
    )
    target.executemany("INSERT INTO item_vectors (item_id, text, context) VALUES (?, ?, ?)", vectors)
    for item_id, _, text, speaker, context, *_ in rows:
        own = text_index.words(f"{speaker}: {text}")
        text_index.add(target, scope_id, item_id, text_index.words(context), own)
    newest = source.execute("SELECT seq FROM sqlite_sequence WHERE name = 'items'").fetchall()
    target.execute("DELETE FROM sqlite_sequence WHERE name = 'items'")
    target.executemany("INSERT INTO sqlite_sequence (name, seq) VALUES ('items', ?)", newest)
