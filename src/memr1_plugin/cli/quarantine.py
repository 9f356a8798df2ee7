"""Verbs about what screening caught: list it, let it go, erase it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from memr1_plugin.cli._shell import (
    DEFAULT_DB,
    Agent,
    Db,
    EveryScope,
    Json,
    Loras,
    Model,
    Session,
    User,
    Where,
    change_line,
    emit,
    out,
    plain,
)

group = typer.Typer(
    name="quarantine",
    help="What screening caught, and nobody is shown.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
TurnId = Annotated[str, typer.Argument(help="The turn's id, as `memr1 quarantine list` shows it.")]


def register(app: typer.Typer) -> None:
    """Add this file's verbs to the command line."""
    for verb in (release, discard):
        group.command()(verb)
    group.command(name="list")(list_)
    app.add_typer(group)


def list_(
    every: EveryScope = False,
    db: Db = DEFAULT_DB,
    user: User = "",
    agent: Agent = "",
    session: Session = "",
    as_json: Json = False,
) -> None:
    """Show the turns in quarantine, and what caught each."""
    where = Where(db, user, agent, session)
    with where.open() as memory:
        held = memory.quarantine(None if every else where.scope)

    def show() -> None:
        for one in held:
            turn = one.turn
            out.print(f"{turn.id}  {turn.at:%Y-%m-%d}  {', '.join(one.rules)}")
            out.print(f"    {plain(turn.speaker)}: {plain(turn.text)}")
        if not held:
            out.print("nothing is in quarantine")

    emit([one.to_json() for one in held], as_json, show)


def release(
    turn: TurnId,
    db: Db = DEFAULT_DB,
    user: User = "",
    agent: Agent = "",
    session: Session = "",
    model: Model = "",
    loras: Loras = "",
    as_json: Json = False,
) -> None:
    """Let a turn out of quarantine: it is learned from like any other."""
    where = Where(db, user, agent, session, model, loras)
    with where.open() as memory:
        changes = memory.release(turn, scope=where.scope)

    def show() -> None:
        for change in changes:
            out.print(change_line(change))
        if not changes:
            out.print("released; nothing in it was worth remembering")

    emit([change.to_json() for change in changes], as_json, show)


def discard(
    turn: TurnId,
    db: Db = DEFAULT_DB,
    user: User = "",
    agent: Agent = "",
    session: Session = "",
    as_json: Json = False,
) -> None:
    """Erase a turn in quarantine from everywhere. There is no undo."""
    where = Where(db, user, agent, session)
    with where.open() as memory:
        gone = memory.discard(turn, scope=where.scope)
    emit(asdict(gone), as_json, lambda: out.print("erased"))
