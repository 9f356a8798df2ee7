"""Verbs that read: search, ask, history."""

from __future__ import annotations

from typing import Annotated

import typer

from memr1_plugin.cli._shell import (
    DEFAULT_DB,
    Agent,
    Db,
    Json,
    Loras,
    Model,
    Session,
    User,
    Where,
    change_line,
    emit,
    item_line,
    moment,
    out,
    plain,
)
from memr1_plugin.types import Answer


def register(app: typer.Typer) -> None:
    """Add this file's verbs to the command line."""
    for verb in (search, ask, history):
        app.command()(verb)


def search(
    query: Annotated[str, typer.Argument(help="What to look for, in words.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many at most.")] = 10,
    as_of: Annotated[str | None, typer.Option(help="Search the bank as it was at this ISO time.")] = None,
    speaker: Annotated[str | None, typer.Option(help="Only what this person said.")] = None,
    db: Db = DEFAULT_DB,
    user: User = "",
    agent: Agent = "",
    session: Session = "",
    as_json: Json = False,
) -> None:
    """Find memories by meaning and words, best first; no model call."""
    where = Where(db, user, agent, session)
    with where.open() as memory:
        items = memory.search(query, scope=where.scope, k=k, as_of=moment(as_of), speaker=speaker)

    def show() -> None:
        for item in items:
            out.print(item_line(item))
        if not items:
            out.print("nothing relevant")

    emit([item.to_json() for item in items], as_json, show)


def ask(
    question: Annotated[str, typer.Argument(help="A question, in words.")],
    k: Annotated[int | None, typer.Option("-k", min=1, help="Memories shown to the Answer Agent.")] = None,
    at: Annotated[str | None, typer.Option(help="The ISO time at which it is asked.")] = None,
    db: Db = DEFAULT_DB,
    user: User = "",
    agent: Agent = "",
    session: Session = "",
    model: Model = "",
    loras: Loras = "",
    as_json: Json = False,
) -> None:
    """Answer a question from the memories, and name the ones used."""
    where = Where(db, user, agent, session, model, loras)
    with where.open() as memory:
        answer = memory.answer(question, scope=where.scope, k=k, at=moment(at))
    emit(answer.to_json(), as_json, lambda: show_answer(answer))


def show_answer(answer: Answer) -> None:
    """Print an answer, and under it the memories that it rests on."""
    out.print(plain(answer.text), style="bold")
    for item in answer.selected:
        out.print(item_line(item), style="dim")
    if not answer.abstained and not answer.used:
        out.print("  (names no memory)", style="dim")


def history(
    item: Annotated[int | None, typer.Argument(help="One item's id; without it, the whole scope.")] = None,
    db: Db = DEFAULT_DB,
    user: User = "",
    agent: Agent = "",
    session: Session = "",
    as_json: Json = False,
) -> None:
    """Show what was done to the memories, oldest first; each line begins with the id that `undo` takes."""
    where = Where(db, user, agent, session)
    with where.open() as memory:
        changes = memory.history(item, scope=where.scope)

    def show() -> None:
        for change in changes:
            out.print(change_line(change))
        if not changes:
            out.print("no changes yet")

    emit([change.to_json() for change in changes], as_json, show)
