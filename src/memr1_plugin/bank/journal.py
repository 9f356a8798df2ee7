"""The journal: turns as they were said, durable before anything else happens to them.

Not here: what becomes of a turn (`applying` marks it managed in the transaction of its operations). Turns are in the
order of their recording; the same (scope, id) is one turn however often it is delivered.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Literal

from memr1_plugin.bank.quarantine import HELD, hold, withheld
from memr1_plugin.bank.rows import TURN, dump, scope_row, scope_row_or_new, turn_of
from memr1_plugin.types import Scope, Turn

Quarantined = Literal["out", "withheld", "shown"]
"""What a reader of turns gets of those in quarantine: nothing, a stand-in without their words, or themselves."""


def record(
    connection: sqlite3.Connection,
    turns: Sequence[Turn],
    *,
    managed: Sequence[bool] | None = None,
    caught: Sequence[Sequence[str]] | None = None,
) -> list[bool]:
    """Write the turns that are new; return for each whether it was.

    Those that are `managed` already are never pending; those with `caught` rules go into quarantine.
    """
    known: dict[Scope, int] = {}
    new = []
    done = managed or [False] * len(turns)
    for turn, is_managed, rules in zip(turns, done, caught or [()] * len(turns), strict=True):
        scope_id = _known_row(connection, known, turn.scope)
        new.append(_record(connection, scope_id, turn, is_managed))
        if new[-1] and rules:
            hold(connection, scope_id, turn.id, rules)
    return new


def _known_row(connection: sqlite3.Connection, known: dict[Scope, int], scope: Scope) -> int:
    if scope not in known:
        known[scope] = scope_row_or_new(connection, scope)
    return known[scope]


def _record(connection: sqlite3.Connection, scope_id: int, turn: Turn, managed: bool) -> bool:
    cursor = connection.execute(
        "INSERT OR IGNORE INTO turns (scope_id, id, session, speaker, role, text, at, metadata, managed) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            scope_id,
            turn.id,
            turn.session,
            turn.speaker,
            turn.role,
            turn.text,
            turn.at.isoformat(),
            dump(turn.metadata, "the turn's metadata"),
            managed,
        ),
    )
    return cursor.rowcount == 1


def claim(connection: sqlite3.Connection, scope_id: int, turns: Sequence[Turn]) -> list[Turn]:
    """Mark turns managed and return those that were not yet: of two processes exactly one gets each."""
    won = []
    for turn in turns:
        if _record(connection, scope_id, turn, managed=True):
            won.append(turn)
            continue
        cursor = connection.execute(
            "UPDATE turns SET managed = 1 WHERE scope_id = ? AND id = ? AND managed = 0", (scope_id, turn.id)
        )
        won += [turn] * cursor.rowcount
    return won


def pending(connection: sqlite3.Connection, scope: Scope | None, limit: int | None) -> list[Turn]:
    """Return the turns that were recorded and not yet managed, oldest first."""
    columns = ", ".join(f"t.{name}" for name in TURN.split(", "))
    rows = connection.execute(
        f"SELECT {columns}, s.user, s.agent, s.session FROM turns t JOIN scopes s ON s.id = t.scope_id "
        "WHERE t.managed = 0 AND (? IS NULL OR s.key = ?) ORDER BY t.seq LIMIT ?",
        (None if scope is None else 1, None if scope is None else scope.key, -1 if limit is None else limit),
    )
    return [turn_of(row, scope or Scope(*row[-3:])) for row in rows]


def turns(
    connection: sqlite3.Connection, scope: Scope, session: str | None, limit: int | None, quarantined: Quarantined
) -> list[Turn]:
    """Return the newest `limit` turns of a scope, or of one session in it, oldest first."""
    seen = f"NOT {HELD}" if quarantined == "out" else "1"
    rows = connection.execute(
        f"SELECT {TURN}, {HELD} FROM turns WHERE scope_id = ? AND (? IS NULL OR session = ?) AND {seen} "
        "ORDER BY seq DESC LIMIT ?",
        (scope_row(connection, scope), session, session, -1 if limit is None else limit),
    ).fetchall()
    found = [(turn_of(row, scope), bool(row[-1]) and quarantined == "withheld") for row in reversed(rows)]
    return [withheld(turn) if hidden else turn for turn, hidden in found]


def waiting_scopes(connection: sqlite3.Connection) -> list[Scope]:
    """Return the scopes with turns that are not yet managed, in the order of the oldest of each."""
    rows = connection.execute(
        "SELECT s.user, s.agent, s.session FROM turns t JOIN scopes s ON s.id = t.scope_id WHERE t.managed = 0 "
        "GROUP BY s.id ORDER BY min(t.seq)"
    )
    return [Scope(*row) for row in rows]


def waiting(connection: sqlite3.Connection) -> int:
    """Count the turns that are not yet managed."""
    return int(connection.execute("SELECT count(*) FROM turns WHERE managed = 0").fetchone()[0])


def previous(connection: sqlite3.Connection, turn: Turn) -> Turn | None:
    """Return the turn recorded before this one in its session; the last one, if this one is not recorded.

    None if that one is in quarantine: the turn before it says nothing of what this one answers.
    """
    scope_id = scope_row(connection, turn.scope)
    row = connection.execute(
        f"SELECT {TURN}, {HELD} FROM turns WHERE scope_id = :scope AND session = :session AND seq < coalesce("
        "(SELECT seq FROM turns WHERE scope_id = :scope AND id = :id), 9223372036854775807) ORDER BY seq DESC LIMIT 1",
        {"scope": scope_id, "session": turn.session, "id": turn.id},
    ).fetchone()
    return None if row is None or row[-1] else turn_of(row, turn.scope)
