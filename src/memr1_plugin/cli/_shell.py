"""What all verbs share: the options that say where, two consoles, JSON or text, exit codes.

No verb is here. Nothing heavy is imported before a verb asks for it, so that ``memr1 --help`` is instant.
The shape, a thin function per verb over the library, is sqlite-utils'.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from memr1_plugin.errors import BankError, InputError, MemoryR1Error, MissingExtraError, WeightsNotFoundError
from memr1_plugin.operations import one_line
from memr1_plugin.types import Change, MemoryItem, OperationKind, Scope, aware

if TYPE_CHECKING:
    from memr1_plugin.memory import Memory

FAILED, BAD_INPUT, MISSING, BANK, UNHEALTHY = 1, 2, 3, 4, 5
EXIT_CODES = """\
Exit codes: 0 done; 1 the model failed, or a question of ours was answered with no; 2 wrong usage or input;
3 weights or an extra are missing; 4 the bank could not be used; 5 doctor, data check or train --dry-run found
something wrong; 130 interrupted.
Errors are one line on stderr; with --json, one JSON object on stderr."""

# No markup: what people said is full of brackets, and is never styling.
out = Console(markup=False, highlight=False, soft_wrap=True)
err = Console(markup=False, highlight=False, soft_wrap=True, stderr=True)

_WHERE = "Where"
Db = Annotated[
    Path, typer.Option("--db", envvar="MEMR1_DB", help="The bank's file.", rich_help_panel=_WHERE, dir_okay=False)
]
User = Annotated[str, typer.Option("--user", envvar="MEMR1_USER", help="Whose memories.", rich_help_panel=_WHERE)]
Agent = Annotated[str, typer.Option("--agent", help="Of which agent.", rich_help_panel=_WHERE)]
Session = Annotated[str, typer.Option("--session", help="Of which session.", rich_help_panel=_WHERE)]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        envvar="MEMR1_MODEL",
        help="A preset, hub id or local folder.",
        show_default="SmolLM2-135M-Instruct in 4 bits",
        rich_help_panel=_WHERE,
    ),
]
Loras = Annotated[
    str,
    typer.Option(
        "--loras",
        envvar="MEMR1_LORAS",
        help="A folder with manager/ and answer/.",
        show_default="those that ship for the model",
        rich_help_panel=_WHERE,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
EveryScope = Annotated[bool, typer.Option("--all", help="All scopes, not the one named.")]

DEFAULT_DB = Path("memory.db")


@dataclass(frozen=True)
class Where:
    """What the options of a verb name: a bank, a scope in it, a model."""

    db: Path = DEFAULT_DB
    user: str = ""
    agent: str = ""
    session: str = ""
    model: str = ""
    loras: str = ""

    @property
    def scope(self) -> Scope:
        """The exact (user, agent, session) triple."""
        return Scope(user=self.user, agent=self.agent, session=self.session)

    @contextmanager
    def open(self, *, create: bool = False, **options: Any) -> Iterator[Memory]:
        """Open the memory for one verb; a bank that is not there is an error unless the verb makes one."""
        if not create and not self.db.exists():
            raise InputError(f"there is no bank at {self.db}; `memr1 add` makes one. Name another with --db.")
        from memr1_plugin.memory import Memory

        with Memory.open(self.db, model=self.model or None, loras=self.loras or None, **options) as memory:
            yield memory


def emit(value: Any, as_json: bool, show: Callable[[], None]) -> None:
    """Print `value` as one JSON document, or `show` it to a person."""
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
    else:
        show()


def report(error: MemoryR1Error, as_json: bool) -> int:
    """Print an error as one line on stderr; return the exit code that stands for it."""
    message = one_line(str(error))
    if as_json:
        typer.echo(json.dumps({"error": type(error).__name__, "message": message}, ensure_ascii=False), err=True)
    else:
        err.print(f"memr1: {plain(message)}", style="red")
    return exit_code(error)


def exit_code(error: MemoryR1Error) -> int:
    """Return the exit code of an error, as `EXIT_CODES` documents it."""
    if isinstance(error, (MissingExtraError, WeightsNotFoundError)):
        return MISSING
    if isinstance(error, BankError):
        return BANK
    return BAD_INPUT if isinstance(error, ValueError) else FAILED


@contextmanager
def progress(label: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr; yields a function that takes how many are done, and of how many."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=quiet) as bar:
        task = bar.add_task(plain(label), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def plain(text: str) -> str:
    """Return `text` on one line without control characters: what somebody said must not steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in one_line(text))


def moment(text: str | None) -> datetime | None:
    """Read a time given on the command line: ISO 8601, e.g. 2026-11-22 or 2026-11-22T14:30+01:00."""
    if text is None:
        return None
    from dateutil.parser import isoparse

    try:
        return aware(isoparse(text))
    except ValueError as error:
        raise InputError(f"{text!r} is not a time; expected ISO 8601, e.g. 2026-11-22 or 2026-11-22T14:30.") from error


def item_line(item: MemoryItem) -> str:
    """One memory as people read it: its id, relevance, date, speaker and text."""
    score = "" if item.score is None else f" {item.score:.2f}"
    return f"{item.id:>5}{score}  [{item.at:%Y-%m-%d}] {plain(item.speaker)}: {plain(item.text)}"


def change_line(change: Change) -> str:
    """One change as people read it: what was done to which item, and the text before and after."""
    what = f"{change.id:>5}  {change.at:%Y-%m-%d %H:%M}  {change.kind.value:<6}"
    item = "" if change.item_id is None else f" item {change.item_id}"
    before = "" if change.before is None else repr_text(change.before.text)
    after = "" if change.after is None or change.after.deleted else repr_text(change.after.text)
    arrow = " -> " if before and after and change.kind is OperationKind.UPDATE else ""
    text = f"{before}{arrow}{after}" if arrow else (after or before)
    return f"{what}{item} ({change.source}{', undone' if change.undone else ''})  {text}".rstrip()


def counted(row: Mapping[str, Any]) -> str:
    """Counters on one line: "3 items, 1 deleted, changes: 3 ADD"; what is zero is left out."""
    parts = [
        f"{name}: {counted(value)}" if isinstance(value, Mapping) else f"{value:,} {name.replace('_', ' ')}"
        for name, value in row.items()
        if value
    ]
    return ", ".join(parts) or "nothing"


def repr_text(text: str) -> str:
    """Quote a text for a line of history."""
    return f'"{plain(text)}"'


def private(path: Path) -> IO[str]:
    """Open a new or old file for writing, for its owner alone: what people said is in it."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, 0o600)  # an old file keeps the mode that it had
    return open(descriptor, "w", encoding="utf-8")


def stdin_text() -> str:
    """Read all of stdin, as UTF-8."""
    return sys.stdin.read()
