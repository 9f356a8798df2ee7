"""Verbs that take back or erase: undo, forget."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from memr1_plugin.cli._shell import DEFAULT_DB, Agent, Db, Json, Session, User, Where, change_line, counted, emit, out
from memr1_plugin.errors import InputError


def register(app: typer.Typer) -> None:
    """Add this file's verbs to the command line."""
    for verb in (undo, forget):
        app.command()(verb)


def undo(
    change: Annotated[int, typer.Argument(help="The change's id, as `memr1 history` shows it.")],
    db: Db = DEFAULT_DB,
    user: User = "",
    agent: Agent = "",
    session: Session = "",
    as_json: Json = False,
) -> None:
    """Take one change back. The history keeps both, and an undo can be undone."""
    where = Where(db, user, agent, session)
    with where.open() as memory:
        done = memory.undo(change, scope=where.scope)
    emit(done.to_json(), as_json, lambda: out.print(change_line(done)))


def forget(
    item: Annotated[int | None, typer.Argument(help="The item's id.")] = None,
    everything: Annotated[bool, typer.Option("--everything", help="The whole scope: all items and turns.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    db: Db = DEFAULT_DB,
    user: User = "",
    agent: Agent = "",
    session: Session = "",
    as_json: Json = False,
) -> None:
    """Erase one item and the turns it came from, or a whole scope, from everywhere. There is no undo."""
    if (item is None) != everything:
        raise InputError("expected an item's id, or --everything for the whole scope; found neither or both.")
    where = Where(db, user, agent, session)
    with where.open() as memory:
        if not yes:
            what = f"everything of {where.scope}" if item is None else f"item {item} and the turns it came from"
            typer.confirm(f"Erase {what} for good?", abort=True, err=True)
        forgotten = memory.forget(item, scope=where.scope)
    row = asdict(forgotten)
    emit(row, as_json, lambda: out.print("erased: " + counted(row)))
