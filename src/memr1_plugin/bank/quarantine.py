"""Turns that are journalled and kept from every model, until somebody releases or erases them.

A row here beside a turn's own; the turn's text is in the journal alone, so that forgetting it is forgetting it once.
Which turns come here is `guard`'s decision, not the bank's. A release leaves the row: it says who was let go and when.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from memr1_plugin.bank.forgetting import Forgotten, leave_note, wipe
from memr1_plugin.bank.rows import TURN, scope_row, scope_row_or_new, turn_of
from memr1_plugin.bank.store import Store
from memr1_plugin.errors import UnknownItemError
from memr1_plugin.types import Scope, Turn, aware

HELD = (
    "EXISTS (SELECT 1 FROM quarantine q WHERE q.scope_id = turns.scope_id AND q.turn_id = turns.id "
    "AND q.released_at IS NULL)"
)
"""True of a row of `turns` that nobody may be shown."""
WITHHELD = "(withheld: this message is in quarantine)"


@dataclass(frozen=True)
class Held:
    """A turn in quarantine, and why."""

    turn: Turn
    rules: tuple[str, ...]
    """What caught it, e.g. ("override", "encoded text")."""
    caught_at: datetime
    released_at: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps` takes."""
        released = None if self.released_at is None else self.released_at.isoformat()
        return {
            "turn": self.turn.to_json(),
            "rules": list(self.rules),
            "caught_at": self.caught_at.isoformat(),
            "released_at": released,
        }


class Quarantine:
    """A bank's quarantine: put in, look at, let out, erase. Each in a transaction of its own."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def hold(self, turn: Turn, rules: Sequence[str]) -> bool:
        """Put a recorded turn in, unmanaged; False if it was released from here before."""
        with self._store.writing() as connection:
            return hold(connection, scope_row_or_new(connection, turn.scope), turn.id, rules)

    def held(self, scope: Scope | None = None, *, released: bool = False) -> list[Held]:
        """Return the turns that are in it, oldest first; with those that were released, if wanted."""
        with self._store.reading() as connection:
            return held(connection, scope, released=released)

    def was_released(self, scope: Scope, turn_id: str) -> bool:
        """True if somebody let this turn out."""
        with self._store.reading() as connection:
            row = connection.execute(
                "SELECT 1 FROM quarantine WHERE scope_id = ? AND turn_id = ? AND released_at IS NOT NULL",
                (scope_row(connection, scope), turn_id),
            ).fetchone()
        return row is not None

    def release(self, scope: Scope, turn_id: str) -> None:
        """Let a turn out: it is pending again, in its old place."""
        with self._store.writing() as connection:
            release(connection, scope, turn_id)

    def discard(self, scope: Scope, turn_id: str) -> Forgotten:
        """Erase a turn that is in it, with every byte of it."""
        with self._store.writing() as connection:
            discard(connection, scope, turn_id)
        wipe(self._store)
        return Forgotten(turns=1)


def hold(connection: sqlite3.Connection, scope_id: int, turn_id: str, rules: Sequence[str]) -> bool:
    """Put a recorded turn into quarantine; False if it has been there before: what was released stays released."""
    cursor = connection.execute(
        "INSERT OR IGNORE INTO quarantine (scope_id, turn_id, rules, caught_at) VALUES (?, ?, ?, ?)",
        (scope_id, turn_id, json.dumps(list(rules)), aware(None).isoformat()),
    )
    if cursor.rowcount:
        connection.execute("UPDATE turns SET managed = 1 WHERE scope_id = ? AND id = ?", (scope_id, turn_id))
    return bool(cursor.rowcount)


def held(connection: sqlite3.Connection, scope: Scope | None, *, released: bool) -> list[Held]:
    """Return what is in quarantine, oldest first; with what was `released` from it, if wanted."""
    columns = ", ".join(f"t.{name}" for name in TURN.split(", "))
    rows = connection.execute(
        f"SELECT {columns}, s.user, s.agent, s.session, q.rules, q.caught_at, q.released_at FROM quarantine q "
        "JOIN turns t ON t.scope_id = q.scope_id AND t.id = q.turn_id JOIN scopes s ON s.id = q.scope_id "
        "WHERE (? IS NULL OR s.key = ?) AND (? OR q.released_at IS NULL) ORDER BY t.seq",
        (None if scope is None else 1, None if scope is None else scope.key, released),
    )
    return [_held_of(row) for row in rows]


def _held_of(row: Sequence[Any]) -> Held:
    *_, user, agent, session, rules, caught_at, released_at = row
    return Held(
        turn_of(row, Scope(user, agent, session)),
        tuple(json.loads(rules)),
        datetime.fromisoformat(caught_at),
        None if released_at is None else datetime.fromisoformat(released_at),
    )


def release(connection: sqlite3.Connection, scope: Scope, turn_id: str) -> None:
    """Let a turn go: it is pending, and will be managed like any other."""
    scope_id = _row_of(connection, scope, turn_id)
    connection.execute(
        "UPDATE quarantine SET released_at = ? WHERE scope_id = ? AND turn_id = ?",
        (aware(None).isoformat(), scope_id, turn_id),
    )
    connection.execute("UPDATE turns SET managed = 0 WHERE scope_id = ? AND id = ?", (scope_id, turn_id))


def discard(connection: sqlite3.Connection, scope: Scope, turn_id: str) -> None:
    """Delete the rows of a turn in quarantine; nothing quotes it, since nobody was shown it."""
    scope_id = _row_of(connection, scope, turn_id)
    connection.execute("DELETE FROM quarantine WHERE scope_id = ? AND turn_id = ?", (scope_id, turn_id))
    connection.execute("DELETE FROM turns WHERE scope_id = ? AND id = ?", (scope_id, turn_id))
    leave_note(connection)


def _row_of(connection: sqlite3.Connection, scope: Scope, turn_id: str) -> int:
    scope_id = scope_row(connection, scope)
    row = connection.execute(
        "SELECT 1 FROM quarantine WHERE scope_id = ? AND turn_id = ? AND released_at IS NULL", (scope_id, turn_id)
    ).fetchone()
    if row is None or scope_id is None:
        raise UnknownItemError(
            f"the scope {scope.key} has no turn {turn_id!r} in quarantine. `memr1 quarantine list` shows what it has."
        )
    return scope_id


def withheld(turn: Turn) -> Turn:
    """Return a stand-in that keeps a dialogue's order and says nothing."""
    return replace(turn, text=WITHHELD, metadata={})
