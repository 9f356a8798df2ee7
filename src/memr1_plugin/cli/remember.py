"""Verbs that write: add, replay."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
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
    counted,
    emit,
    err,
    moment,
    out,
    progress,
    stdin_text,
)
from memr1_plugin.errors import InputError


def register(app: typer.Typer) -> None:
    """Add this file's verbs to the command line."""
    for verb in (add, replay):
        app.command()(verb)


def add(
    text: Annotated[str | None, typer.Argument(help="Something said; - reads it from stdin.")] = None,
    speaker: Annotated[str, typer.Option(help="Who said it.")] = "user",
    at: Annotated[str | None, typer.Option(help="When it was said, in ISO 8601.", show_default="now")] = None,
    turn_id: Annotated[str | None, typer.Option("--id", help="The turn's id: the same id twice is one turn.")] = None,
    conversation: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A file of conversations: this project's JSONL, or LoCoMo's."),
    ] = None,
    only: Annotated[str | None, typer.Option(help="The one conversation of the file to take in.")] = None,
    db: Db = DEFAULT_DB,
    user: User = "",
    agent: Agent = "",
    session: Session = "",
    model: Model = "",
    loras: Loras = "",
    as_json: Json = False,
) -> None:
    """Take in something said, or whole conversations from a file.

    Each conversation goes into a scope of its own (--user is its id) unless a scope is named. A run that was
    interrupted goes on where it stopped when the same command is given again.
    """
    where = Where(db, user, agent, session, model, loras)
    if (text is None) == (conversation is None):
        raise InputError("expected a text or --conversation FILE; found neither or both.")
    if conversation is not None:
        _add_conversations(where, conversation, only, as_json)
        return
    said = stdin_text() if text == "-" else text or ""
    with where.open(create=True) as memory:
        changes = memory.observe(said, speaker=speaker, scope=where.scope, at=moment(at), id=turn_id)

    def show() -> None:
        for change in changes:
            out.print(change_line(change))
        if not changes:
            out.print("nothing to remember in it (the turn is in the journal)")

    emit([change.to_json() for change in changes], as_json, show)


def _add_conversations(where: Where, file: Path, only: str | None, as_json: bool) -> None:
    from memr1_plugin import conversations

    found = conversations.read(file, only=only, scope=where.scope)
    rows = []
    with where.open(create=True) as memory:
        for one in found:
            try:
                with progress(one.id, as_json) as tick:
                    intake = conversations.add(memory, one, tick)
            except KeyboardInterrupt:
                err.print("stopped; nothing is lost, and the same command goes on here")
                raise
            stats = memory.stats(intake.scope)
            rows.append(intake.to_json() | {"bank": asdict(stats.bank), "spent": dict(stats.counts)})
            if not as_json:
                _show_intake(intake, asdict(stats.bank))
    if as_json:
        emit(rows, True, lambda: None)


def _show_intake(intake: object, bank: dict[str, object]) -> None:
    from memr1_plugin.conversations import Intake

    assert isinstance(intake, Intake)
    seconds = intake.to_json()["seconds_per_turn"]
    out.print(f"{intake.conversation}: {intake.turns} turns, {intake.new} new, {sum(intake.seconds):.1f} s")
    out.print(f"  seconds per turn: {seconds['mean']:.2f} mean, {seconds['p50']:.2f} median, {seconds['p95']:.2f} p95")
    out.print("  operations: " + counted(dict(sorted(intake.changes.items()))))
    out.print("  bank: " + counted(bank))


def replay(
    into: Annotated[Path, typer.Option(help="The new bank; it must not exist.", dir_okay=False)],
    every: EveryScope = False,
    db: Db = DEFAULT_DB,
    user: User = "",
    agent: Agent = "",
    session: Session = "",
    model: Model = "",
    loras: Loras = "",
    as_json: Json = False,
) -> None:
    """Rebuild a bank from its journal into a new file, with another model or other LoRAs."""
    where = Where(db, user, agent, session, model, loras)
    with where.open() as memory, progress("replay", as_json) as tick:
        stats = memory.replay(None if every else where.scope, into=into, progress=tick)
    row = {"bank": asdict(stats.bank), "spent": dict(stats.counts)}

    def show() -> None:
        out.print(f"{into}: " + counted(asdict(stats.bank)))

    emit(row, as_json, show)
