"""Verbs about the bank as a whole: stats, export, import, reembed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from memr1_plugin.cli._shell import (
    DEFAULT_DB,
    Agent,
    Db,
    EveryScope,
    Json,
    Session,
    User,
    Where,
    counted,
    emit,
    err,
    out,
    private,
)
from memr1_plugin.errors import DataError, InputError
from memr1_plugin.json_files import loads


def register(app: typer.Typer) -> None:
    """Add this file's verbs to the command line."""
    app.command()(stats)
    app.command()(export)
    app.command(name="import")(import_)
    app.command()(reembed)


def stats(
    every: EveryScope = False,
    db: Db = DEFAULT_DB,
    user: User = "",
    agent: Agent = "",
    session: Session = "",
    as_json: Json = False,
) -> None:
    """Count what the bank holds: turns, items, changes, bytes."""
    where = Where(db, user, agent, session)
    with where.open() as memory:
        row = asdict(memory.stats(None if every else where.scope).bank)

    def show() -> None:
        for name, value in row.items():
            out.print(f"{name:<12} {counted(value) if isinstance(value, Mapping) else f'{value:,}'}")

    emit(row, as_json, show)


def export(
    to: Annotated[Path | None, typer.Option("--out", help="A file.", show_default="stdout", dir_okay=False)] = None,
    every: EveryScope = False,
    db: Db = DEFAULT_DB,
    user: User = "",
    agent: Agent = "",
    session: Session = "",
    as_json: Annotated[bool, typer.Option("--json", help="With --out: print the count as JSON.")] = False,
) -> None:
    """Write the journal, the items and their history as JSON lines."""
    where = Where(db, user, agent, session)
    with where.open() as memory:
        if memory.bank.encrypted:
            err.print("the export is not encrypted: it holds all words as plain text", style="yellow")
        rows = memory.export(None if every else where.scope)
        if to is None:
            for row in rows:
                typer.echo(json.dumps(row, ensure_ascii=False))
            return
        with private(to) as file:
            written = sum(1 for row in rows if file.write(json.dumps(row, ensure_ascii=False) + "\n"))
    emit({"rows": written, "file": str(to)}, as_json, lambda: out.print(f"{written} rows in {to}"))


def import_(
    file: Annotated[
        typer.FileText, typer.Argument(encoding="utf-8", help="JSON lines that `memr1 export` wrote; - reads stdin.")
    ],
    trusted: Annotated[
        bool, typer.Option("--trusted", help="A backup of your own: take memories in without screening them.")
    ] = False,
    db: Db = DEFAULT_DB,
    as_json: Json = False,
) -> None:
    """Take in what `memr1 export` wrote; what the bank holds already is left as it is."""
    with Where(db).open(create=True) as memory:
        new = memory.import_(_rows(file), trusted=trusted)
    emit({"new": new}, as_json, lambda: out.print(f"{new} new rows"))


MAX_LINE_CHARS = 70_000_000
"""Longest line of an import: a change shows an item before and after, each with up to 32 million characters of what a
framework keeps of a message (pictures)."""
MAX_FILE_CHARS = 4_000_000_000


def _rows(file: IO[str]) -> Iterator[dict[str, Any]]:
    read = 0
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_CHARS + 1), ""), 1):
        read += len(line)
        if read > MAX_FILE_CHARS:
            raise DataError(
                f"{file.name}: more than {MAX_FILE_CHARS:,} characters. Import in parts (one scope a file). "
                "Nothing was imported."
            )
        if len(line) > MAX_LINE_CHARS:
            raise DataError(
                f"{file.name}: line {number} has more than {MAX_LINE_CHARS:,} characters; expected one row a line, as "
                "`memr1 export` writes it. Nothing was imported."
            )
        if line.strip():
            row = loads(line, f"{file.name}: line {number}")
            if not isinstance(row, dict):
                raise DataError(f"{file.name}: line {number} is {type(row).__name__}; expected an object.")
            yield row


def reembed(
    db: Db = DEFAULT_DB,
    as_json: Json = False,
) -> None:
    """Embed every item again with MiniLM, for a bank that another embedder or another version made."""
    if not db.exists():
        raise InputError(f"there is no bank at {db}; name another with --db.")
    from memr1_plugin.bank.bank import Bank
    from memr1_plugin.embedding import as_embedder

    embedder = as_embedder(None)
    with err.status("embedding"), Bank.open(db, embedder, reembed=True) as bank:
        done = bank.reembed(embedder)
    emit(
        {"items": done, "embedder": embedder.id}, as_json, lambda: out.print(f"{done} items embedded by {embedder.id}")
    )
