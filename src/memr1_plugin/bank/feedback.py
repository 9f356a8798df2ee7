"""Answers with what they should have been: the questions that training learns from.

Kept beside the memories that were shown, and erased with them. Not here: what training makes of it (`training`).
"""

from __future__ import annotations

import json
import sqlite3

from memr1_plugin.bank.rows import dump, scope_row_or_new
from memr1_plugin.types import Answer, Scope, aware, clean_text


def add(connection: sqlite3.Connection, answer: Answer, correct: str) -> None:
    """Keep one (inside a write transaction)."""
    row = (dump(answer.to_json(), "the answer"), clean_text(correct, "the right answer"), aware(None).isoformat())
    scope_id = scope_row_or_new(connection, answer.scope)
    connection.execute("INSERT INTO feedback (scope_id, answer, correct, at) VALUES (?, ?, ?, ?)", (scope_id, *row))


def read(connection: sqlite3.Connection, scope: Scope | None) -> list[tuple[Answer, str]]:
    """Return those of one scope, or all, oldest first."""
    rows = connection.execute(
        "SELECT f.answer, f.correct FROM feedback f JOIN scopes s ON s.id = f.scope_id "
        "WHERE ? IS NULL OR s.key = ? ORDER BY f.id",
        (None if scope is None else 1, None if scope is None else scope.key),
    )
    return [(Answer.from_json(json.loads(answer)), correct) for answer, correct in rows]
